// The left side of a product, packed for the tiles that read it: [tile][step][rows of the tile],
// with one word per step and row.
#pragma once
#include <algorithm>

#include "formats.hpp"

// The most rows of a tile whose sums fit into the registers.
#if defined(__AVX512F__)
constexpr int MOST_ROWS = 12;
#else
constexpr int MOST_ROWS = 6;
#endif

// The division of rows into tiles of nearly the same size.
struct Tiling {
    int rows, count;
    explicit Tiling(int rows_) : rows(rows_), count((rows_ + MOST_ROWS - 1) / MOST_ROWS) {}
    int begin(int tile) const { return (int)((int64_t)rows * tile / count); }
};

// Write one row into every `stride`-th word. A word is a float, or two bfloat16 with `pairs` (an
// odd last input is paired with zero).
static inline void pack_row(const float* x, int in, bool pairs, uint32_t* to, int stride) {
    int k = 0;
    if (!pairs) {
        if (stride == 1)
            std::memcpy(to, x, in * sizeof(float));
        else
            for (; k < in; k++) std::memcpy(to + (size_t)k * stride, x + k, 4);
        return;
    }
    for (; k + 2 * LANES <= in; k += 2 * LANES) {
        const vu words = rounded(load<vf>(x + k), load<vf>(x + k + LANES));
        uint32_t* at = to + (size_t)(k / 2) * stride;
        if (stride == 1) {
            store(at, words);
            continue;
        }
        uint32_t room[LANES];
        store(room, words);
        for (int i = 0; i < LANES; i++) at[(size_t)i * stride] = room[i];
    }
    for (; k < in; k += 2)
        to[(size_t)(k / 2) * stride] = narrow(x[k]) | (uint32_t)(k + 1 < in ? narrow(x[k + 1]) : 0) << 16;
}

// The sum of x[0..n), rounded as in the product and always added in the same order.
static inline float total(const float* x, int n, bool pairs) {
    float parts[16] = {};
    int k = 0;
    for (; k + 16 <= n; k += 16)
        for (int i = 0; i < 16; i++) parts[i] += pairs ? widen_one(narrow(x[k + i])) : x[k + i];
    for (; k < n; k++) parts[0] += pairs ? widen_one(narrow(x[k])) : x[k];
    for (int step = 8; step > 0; step /= 2)
        for (int i = 0; i < step; i++) parts[i] += parts[i + step];
    return parts[0];
}
