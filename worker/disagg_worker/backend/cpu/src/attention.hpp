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

// The softmax of scale * x, in place; n >= 1. It is compiled once, so that all callers get the same
// bits.
static __attribute__((noinline)) void softmax(float* x, int n, float scale) {
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
