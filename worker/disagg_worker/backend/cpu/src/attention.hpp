// Attention over the paged cache [block, layer, 2, kv_head, token in block, head_dim], read in place.
#pragma once
#include <cmath>

#include "matmul.hpp"

struct Cache {
    uint8_t* data;
    int32_t bf16;  // else float
    int32_t layers, kv_heads, size, head_dim;

    int64_t head_elements() const { return (int64_t)size * head_dim; }
    // Where token 0 of `block` begins, in elements; `which`: 0 keys, 1 values.
    int64_t at(int64_t block, int layer, int which, int head) const {
        return (((block * layers + layer) * 2 + which) * kv_heads + head) * head_elements();
    }
    // One block of one head as floats; `room` holds it where it must be widened.
    const float* floats(int64_t block, int layer, int which, int head, int tokens, float* room) const {
        const int64_t from = at(block, layer, which, head);
        if (!bf16) return (const float*)data + from;
        const uint16_t* source = (const uint16_t*)data + from;
        const int n = tokens * head_dim;
        int i = 0;
        for (; i + LANES <= n; i += LANES) store(room + i, widen(source + i));
        for (; i < n; i++) room[i] = widen_one(source[i]);
        return room;
    }
};

// The cache's own type, widened where it is used: a copy of each block as floats costs more than it saves.
static inline vf wide(const float* at) { return load<vf>(at); }
static inline vf wide(const uint16_t* at) { return widen(at); }
static inline float wide_one(float v) { return v; }
static inline float wide_one(uint16_t v) { return widen_one(v); }

// scores[g][t] = scale * q[g] . keys[t]. D: the head size where it is known here (a key then stays in registers for all queries), else 0.
template <int D, class T>
static void scores_of(const float* q, int group, const T* keys, int tokens, int head_dim, float scale, float* scores, size_t stride) {
    const int d = D ? D : head_dim;
    for (int t = 0; t < tokens; t++, keys += d) {
        vf key[D ? D / LANES : 1];
        if constexpr (D != 0)
#pragma GCC unroll 16
            for (int i = 0; i < D / LANES; i++) key[i] = wide(keys + i * LANES);
        for (int g = 0; g < group; g++) {
            const float* query = q + (size_t)g * d;
            vf even{}, odd{};
            float rest = 0;
            if constexpr (D != 0) {
#pragma GCC unroll 16
                for (int i = 0; i < D / LANES; i += 2) {
                    even += key[i] * load<vf>(query + i * LANES);
                    odd += key[i + 1] * load<vf>(query + (i + 1) * LANES);
                }
            } else {
                int i = 0;
                for (; i + LANES <= d; i += LANES) even += wide(keys + i) * load<vf>(query + i);
                for (; i < d; i++) rest += wide_one(keys[i]) * query[i];
            }
            scores[g * stride + t] = scale * (sum(even + odd) + rest);
        }
    }
}

// out[g] += sum over t of weights[g][t] * values[t].
template <int D, class T>
static void add_values(const float* weights, size_t stride, int group, const T* values, int tokens, int head_dim, float* out) {
    const int d = D ? D : head_dim;
    for (int g = 0; g < group; g++, out += d, weights += stride) {
        if constexpr (D != 0) {
            vf sums[D / LANES];
#pragma GCC unroll 16
            for (int i = 0; i < D / LANES; i++) sums[i] = load<vf>(out + i * LANES);
            for (int t = 0; t < tokens; t++) {
                vf weight = splat(weights[t]);
#pragma GCC unroll 16
                for (int i = 0; i < D / LANES; i++) sums[i] += weight * wide(values + (size_t)t * D + i * LANES);
            }
#pragma GCC unroll 16
            for (int i = 0; i < D / LANES; i++) store(out + i * LANES, sums[i]);
        } else {
            int i = 0;
            for (; i + LANES <= d; i += LANES) {
                vf total = load<vf>(out + i);
                for (int t = 0; t < tokens; t++) total += weights[t] * wide(values + (size_t)t * d + i);
                store(out + i, total);
            }
            for (; i < d; i++)
                for (int t = 0; t < tokens; t++) out[i] += weights[t] * wide_one(values[(size_t)t * d + i]);
        }
    }
}

// Softmax in place. n >= 1.
static inline void softmax(float* x, int n) {
    float most = x[0];
    int i = 0;
    if (n >= LANES) {
        vf widest = load<vf>(x);
        for (i = LANES; i + LANES <= n; i += LANES) {
            vf v = load<vf>(x + i);
            widest = v > widest ? v : widest;
        }
        for (int j = 0; j < LANES; j++) most = std::max(most, widest[j]);
    }
    for (; i < n; i++) most = std::max(most, x[i]);
    vf total{};
    float rest = 0;
    i = 0;
    for (; i + LANES <= n; i += LANES) {
        vf e = exponential(load<vf>(x + i) - most);
        store(x + i, e);
        total += e;
    }
    if (i < n) {
        float tail[LANES] = {};
        std::memcpy(tail, x + i, (n - i) * sizeof(float));
        store(tail, exponential(load<vf>(tail) - most));
        for (int j = 0; i < n; i++, j++) rest += x[i] = tail[j];
    }
    const float scale = 1.0f / (sum(total) + rest);
    for (i = 0; i < n; i++) x[i] *= scale;
}

// One new token of one sequence and one KV head: q, out [group][head_dim]; keys first..length-1 are seen.
template <class T, int D>
static void attend_token(const Cache& c, int layer, int head, const int64_t* table, int first, int length, int group, const float* q, float* out) {
    const int d = c.head_dim;
    const size_t seen = length - first;
    static thread_local std::vector<float> scores;
    scores.resize(group * seen);
    const T* data = (const T*)c.data;
    const float scale = 1.0f / std::sqrt((float)d);
    for (int at = first; at < length;) {
        const int skip = at % c.size, tokens = std::min(c.size - skip, length - at);
        const T* keys = data + c.at(table[at / c.size], layer, 0, head) + (size_t)skip * d;
        scores_of<D>(q, group, keys, tokens, d, scale, scores.data() + at - first, seen);
        at += tokens;
    }
    for (int g = 0; g < group; g++) softmax(scores.data() + g * seen, (int)seen);
    std::memset(out, 0, sizeof(float) * group * d);
    for (int at = first; at < length;) {
        const int skip = at % c.size, tokens = std::min(c.size - skip, length - at);
        const T* values = data + c.at(table[at / c.size], layer, 1, head) + (size_t)skip * d;
        add_values<D>(scores.data() + at - first, seen, group, values, tokens, d, out);
        at += tokens;
    }
}

template <class T>
static auto attend_token_of(int head_dim) {
    return head_dim == 64 ? attend_token<T, 64> : head_dim == 128 ? attend_token<T, 128> : attend_token<T, 0>;
}

// A decode batch: q, out [sequences][heads * head_dim].
static void attend_decode(Pool& pool, const Cache& c, int layer, const int64_t* tables, int width, const int64_t* lengths, int sequences, int heads,
                          int window, const float* q, float* out) {
    const int group = heads / c.kv_heads, jobs = sequences * c.kv_heads;
    pool.run([&](int part, int parts) {
        for (int job = part; job < jobs; job += parts) {
            const int s = job / c.kv_heads, head = job % c.kv_heads, length = (int)lengths[s];
            const int first = window > 0 ? std::max(0, length - window) : 0;
            const size_t at = ((size_t)s * heads + (size_t)head * group) * c.head_dim;
            (c.bf16 ? attend_token_of<uint16_t> : attend_token_of<float>)(c.head_dim)(c, layer, head, tables + (size_t)s * width, first, length, group, q + at, out + at);
        }
    });
}

// Keys as a packed matrix [key / PANEL][head_dim][PANEL] and values as [head_dim / PANEL][keys][PANEL], so that both products run as `tile`s.
static void pack_head(const Cache& c, int layer, int head, const int64_t* table, int length, std::vector<float>& keys, std::vector<float>& values) {
    const int d = c.head_dim, columns = (d + PANEL - 1) / PANEL;
    keys.assign((size_t)(length + PANEL - 1) / PANEL * PANEL * d, 0.0f);
    values.assign((size_t)columns * PANEL * length, 0.0f);
    std::vector<float> room(c.head_elements());
    for (int at = 0; at < length; at += c.size) {
        const int tokens = std::min(c.size, length - at);
        const float* k = c.floats(table[at / c.size], layer, 0, head, tokens, room.data());
        for (int t = 0; t < tokens; t++) {
            float* to = keys.data() + (size_t)((at + t) / PANEL) * PANEL * d + (at + t) % PANEL;
            for (int i = 0; i < d; i++) to[(size_t)i * PANEL] = k[t * d + i];
        }
        const float* v = c.floats(table[at / c.size], layer, 1, head, tokens, room.data());
        for (int t = 0; t < tokens; t++)
            for (int i = 0; i < d; i += PANEL)
                std::memcpy(values.data() + ((size_t)(i / PANEL) * length + at + t) * PANEL, v + t * d + i, sizeof(float) * std::min(PANEL, d - i));
    }
}

template <int ROWS>
static void product(const Matrix& a, int panels, const float* x, size_t x_stride, float* y, size_t y_stride) {
    for (int panel = 0; panel < panels; panel++) {
        vf sums[1][ROWS][2] = {};
        tile<FromF32, ROWS, 1>(a, panel, x, x_stride, nullptr, sums);
        for (int m = 0; m < ROWS; m++) {
            store(y + m * y_stride + (size_t)panel * PANEL, sums[0][m][0]);
            store(y + m * y_stride + (size_t)panel * PANEL + LANES, sums[0][m][1]);
        }
    }
}

// A chunk of one sequence: q, out [tokens][heads * head_dim], the last of `length` keys. Six queries at a time see the keys up to their own.
static void attend_chunk(Pool& pool, const Cache& c, int layer, const int64_t* table, int tokens, int length, int heads, int window, const float* q,
                         float* out) {
    constexpr int ROWS = 6;
    const int d = c.head_dim, group = heads / c.kv_heads, earlier = length - tokens, stride = heads * d;
    const int columns = (d + PANEL - 1) / PANEL;
    const float scale = 1.0f / std::sqrt((float)d);
    pool.run([&](int part, int parts) {
        std::vector<float> keys, values, scores, x(ROWS * d), o((size_t)ROWS * columns * PANEL);
        for (int head = part; head < c.kv_heads; head += parts) {
            pack_head(c, layer, head, table, length, keys, values);
            for (int h = head * group; h < (head + 1) * group; h++)
                for (int t0 = 0; t0 < tokens; t0 += ROWS) {
                    const int here = std::min(ROWS, tokens - t0), last = earlier + t0 + here;
                    const int low = window > 0 ? std::max(0, earlier + t0 + 1 - window) / PANEL : 0;
                    const int high = (last + PANEL - 1) / PANEL, width = (high - low) * PANEL;
                    scores.resize((size_t)ROWS * width);
                    for (int m = 0; m < ROWS; m++)
                        for (int i = 0; i < d; i++) x[m * d + i] = m < here ? scale * q[(size_t)(t0 + m) * stride + h * d + i] : 0.0f;
                    Matrix k{F32, d, width, 0, (const uint8_t*)(keys.data() + (size_t)low * PANEL * d), nullptr, nullptr, nullptr};
                    product<ROWS>(k, high - low, x.data(), d, scores.data(), width);
                    for (int m = 0; m < ROWS; m++) {
                        float* row = scores.data() + (size_t)m * width;
                        const int end = m < here ? earlier + t0 + m + 1 - low * PANEL : 1;
                        const int begin = m < here && window > 0 ? std::max(0, end - window) : 0;
                        std::fill(row, row + begin, 0.0f);
                        softmax(row + begin, end - begin);
                        std::fill(row + end, row + width, 0.0f);
                    }
                    // The panels of `values` are `length` rows long; only the rows that are seen take part.
                    const int from = low * PANEL, rows = last - from;
                    for (int column = 0; column < columns; column++) {
                        Matrix v{F32, rows, PANEL, 0, (const uint8_t*)(values.data() + ((size_t)column * length + from) * PANEL), nullptr, nullptr, nullptr};
                        product<ROWS>(v, 1, scores.data(), width, o.data() + column * PANEL, (size_t)columns * PANEL);
                    }
                    for (int m = 0; m < here; m++) std::memcpy(out + (size_t)(t0 + m) * stride + h * d, o.data() + (size_t)m * columns * PANEL, d * sizeof(float));
                }
        }
    });
}
