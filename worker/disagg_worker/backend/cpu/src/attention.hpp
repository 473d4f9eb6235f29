// Attention over the paged cache, which is read in place:
// [block, layer, 2, kv_head, token in block, head_dim].
#pragma once
#include <cmath>

#include "matmul.hpp"

struct Cache {
    uint8_t* data;
    int32_t bf16;  // Whether the elements are bfloat16; else they are float.
    int32_t layers, kv_heads, size, head_dim;

    int64_t head_elements() const { return (int64_t)size * head_dim; }
    // The offset of token 0 of `block`, in elements; `which` is 0 for keys and 1 for values.
    int64_t at(int64_t block, int layer, int which, int head) const {
        return (((block * layers + layer) * 2 + which) * kv_heads + head) * head_elements();
    }
    // One block of one head as floats; `room` takes them if they must be widened.
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

// Elements are widened where they are used: a copy of each block as floats costs more than it
// saves.
static inline vf wide(const float* at) { return load<vf>(at); }
static inline vf wide(const uint16_t* at) { return widen(at); }
static inline float wide_one(float v) { return v; }
static inline float wide_one(uint16_t v) { return widen_one(v); }

// The lanes of two vectors that `sums_of` adds up at each of its levels.
struct Folding {
    int32_t left[LANES], right[LANES];
    constexpr explicit Folding(int size) : left(), right() {
        for (int lane = 0; lane < LANES; lane++) {
            const int half = size / 2, at = lane % size, from = lane - at + (at < half ? at : at - half + LANES);
            left[lane] = from;
            right[lane] = from + half;
        }
    }
};

// Lane i of the result is the sum of v[i]'s lanes; v is overwritten. Halves of two vectors are laid
// side by side and added until one vector is left.
static inline vf sums_of(vf (&v)[LANES]) {
    const auto fold = [&](int left, const Folding& by) {
        const vi low = load<vi>(by.left), high = load<vi>(by.right);
        for (int i = 0; i < left; i++)
            v[i] = __builtin_shuffle(v[i], v[i + left], low) + __builtin_shuffle(v[i], v[i + left], high);
    };
    static constexpr Folding first(LANES), second(LANES / 2), third(LANES / 4), fourth(LANES >= 16 ? LANES / 8 : 2);
    fold(LANES / 2, first);
    fold(LANES / 4, second);
    fold(LANES / 8, third);
    if constexpr (LANES >= 16) fold(LANES / 16, fourth);
    return v[0];
}

// The hardware's prefetcher does not know where the next block is, so each token prefetches the
// same token of the next block. (A whole block at once fills the queue of misses and is half as
// fast.)
template <int D, class T>
static inline void fetch(const T* next, int token) {
#pragma GCC unroll 8
    for (size_t byte = 0; byte < D * sizeof(T); byte += 64)
        _mm_prefetch((const char*)(next + (size_t)token * D) + byte, _MM_HINT_T0);
}

// scores[g][t] = scale * q[g] . keys[t]. D is the head size if it is known at compile time (a key
// then stays in registers for all queries), else 0. `next` is the block that is read after this
// one.
template <int D, class T>
static void scores_of(const float* q, int group, const T* keys, const T* next, int tokens, int head_dim, float scale,
                      float* scores, size_t stride) {
    if constexpr (D != 0) {
        constexpr int QUERIES = 8;
        vf parts[QUERIES][LANES];
        for (int first = 0; first < tokens; first += LANES)
            for (int g0 = 0; g0 < group; g0 += QUERIES) {
                const int here = std::min(LANES, tokens - first), queries = std::min(QUERIES, group - g0);
                for (int t = 0; t < here; t++) {
                    if (g0 == 0) fetch<D>(next, first + t);
                    vf key[D / LANES];
#pragma GCC unroll 16
                    for (int i = 0; i < D / LANES; i++) key[i] = wide(keys + (size_t)(first + t) * D + i * LANES);
                    for (int g = 0; g < queries; g++) {
                        const float* query = q + (size_t)(g0 + g) * D;
                        vf even{}, odd{};
#pragma GCC unroll 16
                        for (int i = 0; i < D / LANES; i += 2) {
                            even += key[i] * load<vf>(query + i * LANES);
                            odd += key[i + 1] * load<vf>(query + (i + 1) * LANES);
                        }
                        parts[g][t] = even + odd;
                    }
                }
                for (int g = 0; g < queries; g++) {
                    for (int t = here; t < LANES; t++) parts[g][t] = vf{};
                    const vf found = scale * sums_of(parts[g]);
                    std::memcpy(scores + (g0 + g) * stride + first, &found, here * sizeof(float));
                }
            }
        return;
    }
    for (int t = 0; t < tokens; t++, keys += head_dim)
        for (int g = 0; g < group; g++) {
            const float* query = q + (size_t)g * head_dim;
            vf even{};
            float rest = 0;
            int i = 0;
            for (; i + LANES <= head_dim; i += LANES) even += wide(keys + i) * load<vf>(query + i);
            for (; i < head_dim; i++) rest += wide_one(keys[i]) * query[i];
            scores[g * stride + t] = scale * (sum(even) + rest);
        }
}

// out[g] += sum over t of weights[g][t] * values[t], for G of the group's queries, so that a value
// is widened once for all of them.
template <int D, int G, class T>
static void add_values_for(const float* weights, size_t stride, const T* values, const T* next, int tokens,
                           float* out) {
    vf sums[G][D / LANES];
    for (int g = 0; g < G; g++)
#pragma GCC unroll 16
        for (int i = 0; i < D / LANES; i++) sums[g][i] = load<vf>(out + g * D + i * LANES);
    for (int t = 0; t < tokens; t++) {
        fetch<D>(next, t);
#pragma GCC unroll 16
        for (int i = 0; i < D / LANES; i++) {
            const vf value = wide(values + (size_t)t * D + i * LANES);
#pragma GCC unroll 4
            for (int g = 0; g < G; g++) sums[g][i] += weights[g * stride + t] * value;
        }
    }
    for (int g = 0; g < G; g++)
#pragma GCC unroll 16
        for (int i = 0; i < D / LANES; i++) store(out + g * D + i * LANES, sums[g][i]);
}

template <int D, class T>
static void add_values(const float* weights, size_t stride, int group, const T* values, const T* next, int tokens,
                       int head_dim, float* out) {
    if constexpr (D != 0) {
        // The number of queries at a time that leaves registers free.
        constexpr int MOST = LANES < 16 ? 1 : D <= 64 ? 4 : 2;
        for (int g = 0; g < group;) {
            const int left = group - g;
            const auto go = left >= MOST ? add_values_for<D, MOST, T>
                            : left == 3  ? add_values_for<D, std::min(3, MOST), T>
                            : left == 2  ? add_values_for<D, std::min(2, MOST), T>
                                         : add_values_for<D, 1, T>;
            go(weights + g * stride, stride, values, next, tokens, out + (size_t)g * D);
            g += std::min(left, MOST);
        }
        return;
    }
    for (int g = 0; g < group; g++, out += head_dim, weights += stride) {
        int i = 0;
        for (; i + LANES <= head_dim; i += LANES) {
            vf total = load<vf>(out + i);
            for (int t = 0; t < tokens; t++) total += weights[t] * wide(values + (size_t)t * head_dim + i);
            store(out + i, total);
        }
        for (; i < head_dim; i++)
            for (int t = 0; t < tokens; t++) out[i] += weights[t] * wide_one(values[(size_t)t * head_dim + i]);
    }
}

// The softmax of scale * x, in place; n >= 1.
static inline void softmax(float* x, int n, float scale = 1.0f) {
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
        vf e = exponential((load<vf>(x + i) - most) * scale);
        store(x + i, e);
        total += e;
    }
    if (i < n) {
        float tail[LANES] = {};
        std::memcpy(tail, x + i, (n - i) * sizeof(float));
        store(tail, exponential((load<vf>(tail) - most) * scale));
        for (int j = 0; i < n; i++, j++) rest += x[i] = tail[j];
    }
    const float whole = 1.0f / (sum(total) + rest);
    for (i = 0; i < n; i++) x[i] *= whole;
}

// The attention of one new token of one sequence, for one KV head: q and out are [group][head_dim],
// and keys first..length-1 are seen. `after` is the offset, in elements, at which the cache is read
// next.
template <class T, int D>
static void attend_token(const Cache& c, int layer, int head, const int64_t* table, int first, int length, int group,
                         int64_t after, const float* q, float* out) {
    const int d = c.head_dim;
    const size_t seen = length - first;
    static thread_local std::vector<float> scores;
    scores.resize(group * seen);
    const T* data = (const T*)c.data;
    const float scale = 1.0f / std::sqrt((float)d);
    for (int at = first; at < length;) {
        const int skip = at % c.size, tokens = std::min(c.size - skip, length - at);
        const T* keys = data + c.at(table[at / c.size], layer, 0, head) + (size_t)skip * d;
        const bool more = at + tokens < length;
        const T* next = data + c.at(table[more ? at / c.size + 1 : first / c.size], layer, !more, head);
        scores_of<D>(q, group, keys, next, tokens, d, scale, scores.data() + at - first, seen);
        at += tokens;
    }
    for (int g = 0; g < group; g++) softmax(scores.data() + g * seen, (int)seen);
    std::memset(out, 0, sizeof(float) * group * d);
    for (int at = first; at < length;) {
        const int skip = at % c.size, tokens = std::min(c.size - skip, length - at);
        const T* values = data + c.at(table[at / c.size], layer, 1, head) + (size_t)skip * d;
        const T* next = data + (at + tokens < length ? c.at(table[at / c.size + 1], layer, 1, head) : after);
        add_values<D>(scores.data() + at - first, seen, group, values, next, tokens, d, out);
        at += tokens;
    }
}

template <class T>
static auto attend_token_of(int head_dim) {
    return head_dim == 64 ? attend_token<T, 64> : head_dim == 128 ? attend_token<T, 128> : attend_token<T, 0>;
}

// The attention of a decode batch: q and out are [sequences][heads * head_dim].
static void attend_decode(Pool& pool, const Cache& c, int layer, const int64_t* tables, int width,
                          const int64_t* lengths, int sequences, int heads, int window, const float* q, float* out) {
    const int group = heads / c.kv_heads, jobs = sequences * c.kv_heads;
    pool.run([&](int part, int parts) {
        for (int job = part; job < jobs; job += parts) {
            const int s = job / c.kv_heads, head = job % c.kv_heads, length = (int)lengths[s];
            const int first = window > 0 ? std::max(0, length - window) : 0, then = std::min(job + parts, jobs - 1);
            const int64_t after = c.at(tables[(size_t)(then / c.kv_heads) * width], layer, 0, then % c.kv_heads);
            const size_t at = ((size_t)s * heads + (size_t)head * group) * c.head_dim;
            const auto attend = (c.bf16 ? attend_token_of<uint16_t> : attend_token_of<float>)(c.head_dim);
            attend(c, layer, head, tables + (size_t)s * width, first, length, group, after, q + at, out + at);
        }
    });
}

// The keys and values of one head as packed matrices, so that both products run as `tile`s:
// [key / PANEL][head_dim][PANEL] and [head_dim / PANEL][keys][PANEL]. They are packed in pairs (of
// head_dim, and of keys) if the CPU multiplies pairs.
struct PackedHead {
    std::vector<uint32_t> keys, values;
    int steps;  // Steps of a panel of values.

    void pack(const Cache& c, int layer, int head, const int64_t* table, int length) {
        const int d = c.head_dim, columns = (d + PANEL - 1) / PANEL;
        const bool pairs = PAIRS && c.bf16;
        const int words = pairs ? d / 2 : d;
        steps = pairs ? (length + 1) / 2 : length;
        keys.assign((size_t)(length + PANEL - 1) / PANEL * PANEL * words, 0);
        values.assign((size_t)columns * PANEL * steps, 0);
        std::vector<float> room(c.head_elements());
        for (int at = 0; at < length; at += c.size) {
            const int tokens = std::min(c.size, length - at);
            const int64_t k = c.at(table[at / c.size], layer, 0, head), v = c.at(table[at / c.size], layer, 1, head);
            if (pairs)
                take((const uint16_t*)c.data + k, (const uint16_t*)c.data + v, at, tokens, d);
            else {
                const float* found = c.floats(table[at / c.size], layer, 0, head, tokens, room.data());
                take_keys((const uint32_t*)found, at, tokens, words);
                const float* from = c.floats(table[at / c.size], layer, 1, head, tokens, room.data());
                for (int t = 0; t < tokens; t++)
                    for (int i = 0; i < d; i += PANEL)
                        std::memcpy(word(i, at + t), from + t * d + i, sizeof(float) * std::min(PANEL, d - i));
            }
        }
    }

  private:
    uint32_t* word(int i, int step) {
        return values.data() + ((size_t)(i / PANEL) * steps + step) * PANEL + i % PANEL;
    }
    void take_keys(const uint32_t* from, int at, int tokens, int words) {
        for (int t = 0; t < tokens; t++) {
            uint32_t* to = keys.data() + (size_t)((at + t) / PANEL) * PANEL * words + (at + t) % PANEL;
            for (int i = 0; i < words; i++) to[(size_t)i * PANEL] = from[(size_t)t * words + i];
        }
    }
    void take(const uint16_t* k, const uint16_t* v, int at, int tokens, int d) {
        take_keys((const uint32_t*)k, at, tokens, d / 2);
        for (int t = 0; t < tokens; t++) {
            const int shift = (at + t) % 2 * 16;
            int i = 0;
            for (; i + LANES <= d; i += LANES) {
                uint32_t* to = word(i, (at + t) / 2);
                store(to, load<vu>(to) | from_words(v + (size_t)t * d + i) << shift);
            }
            for (; i < d; i++) *word(i, (at + t) / 2) |= (uint32_t)v[(size_t)t * d + i] << shift;
        }
    }
};

// The attention of a chunk of one sequence: q and out are [tokens][heads * head_dim], the last
// tokens of `length` keys. MOST_ROWS queries are computed at a time; each sees the keys up to its
// own.
template <class W>
static void attend_chunk_as(Pool& pool, const Cache& c, int layer, const int64_t* table, int tokens, int length,
                            int heads, int window, const float* q, float* out) {
    constexpr int ROWS = MOST_ROWS;
    constexpr bool pairs = W::paired;
    const int d = c.head_dim, group = heads / c.kv_heads, earlier = length - tokens, stride = heads * d;
    const int words = pairs ? d / 2 : d;
    const int columns = (d + PANEL - 1) / PANEL, kind = pairs ? BF16 : F32;
    const float scale = 1.0f / std::sqrt((float)d);
    pool.run([&](int part, int parts) {
        PackedHead packed;
        std::vector<float> scores, o((size_t)ROWS * PANEL);
        std::vector<uint32_t> x((size_t)ROWS * words), p;
        for (int head = part; head < c.kv_heads; head += parts) {
            packed.pack(c, layer, head, table, length);
            for (int h = head * group; h < (head + 1) * group; h++)
                for (int t0 = 0; t0 < tokens; t0 += ROWS) {
                    const int here = std::min(ROWS, tokens - t0), last = earlier + t0 + here;
                    const int low = window > 0 ? std::max(0, earlier + t0 + 1 - window) / PANEL : 0;
                    const int high = (last + PANEL - 1) / PANEL, width = (high - low) * PANEL;
                    const int from = low * PANEL, rows = last - from;
                    scores.resize((size_t)ROWS * width);
                    if (here < ROWS) std::fill(x.begin(), x.end(), 0);
                    for (int m = 0; m < here; m++)
                        pack_row(q + (size_t)(t0 + m) * stride + h * d, d, pairs, x.data() + m, ROWS);
                    const auto* keys = (const uint8_t*)(packed.keys.data() + (size_t)from * words);
                    const Matrix k{kind, d, width, 0, keys, nullptr, nullptr, nullptr};
                    for (int panel = 0; panel < high - low; panel++)
                        tile<W, ROWS, NONE>(k, panel, x.data(), nullptr, scores.data(), false);
                    p.assign((size_t)ROWS * (rows + 1), 0);
                    for (int m = 0; m < here; m++) {
                        float* row = scores.data() + (size_t)m * width;
                        const int end = earlier + t0 + m + 1 - from;
                        const int begin = window > 0 ? std::max(0, end - window) : 0;
                        std::fill(row, row + begin, 0.0f);
                        softmax(row + begin, end - begin, scale);
                        std::fill(row + end, row + width, 0.0f);
                        pack_row(row, rows, pairs, p.data() + m, ROWS);
                    }
                    // Only the keys that are seen take part.
                    for (int column = 0; column < columns; column++) {
                        const size_t step = (size_t)column * packed.steps + (pairs ? from / 2 : from);
                        const uint32_t* values = packed.values.data() + step * PANEL;
                        const Matrix v{kind, rows, PANEL, 0, (const uint8_t*)values, nullptr, nullptr, nullptr};
                        tile<W, ROWS, NONE>(v, 0, p.data(), nullptr, o.data(), false);
                        const size_t bytes = std::min(PANEL, d - column * PANEL) * sizeof(float);
                        for (int m = 0; m < here; m++)
                            std::memcpy(out + (size_t)(t0 + m) * stride + h * d + column * PANEL,
                                        o.data() + (size_t)m * PANEL, bytes);
                    }
                }
        }
    });
}

// The products are of pairs if the CPU has such an instruction and the cache is bfloat16; queries
// and probabilities are then rounded, too. A single token is computed as in a decode step.
static void attend_chunk(Pool& pool, const Cache& c, int layer, const int64_t* table, int tokens, int length, int heads,
                         int window, const float* q, float* out) {
    const int64_t all = length;
    if (tokens == 1) return attend_decode(pool, c, layer, table, 0, &all, 1, heads, window, q, out);
    const auto attend = PAIRS && c.bf16 ? attend_chunk_as<FromBf16> : attend_chunk_as<FromF32>;
    attend(pool, c, layer, table, tokens, length, heads, window, q, out);
}
