// The product y = x W^T + b, with W packed in panels.
//
// Every element of y is one chain of multiply-adds over `in`, in order, whatever the number of
// rows, so a row's result does not depend on the batch that it is in. The sums of a tile, up to
// MOST_ROWS rows by one panel, stay in registers, and weights are unpacked there, too. Panels are
// consecutive, so that weights which are used once are one stream, which is fastest for the memory
// (several streams at once are 10 to 20 % slower).
#pragma once
#include "inputs.hpp"
#include "threads.hpp"

// The data to prefetch while a tile is computed: the panel itself, a little ahead (the hardware's
// own prefetching stops at every page); the panel after it; nothing.
enum Fetch { STREAM, NEXT, NONE };
constexpr size_t STREAM_BYTES = 512;

// Add the products of one step. x has [ROWS] words per step.
template <class W, int ROWS>
__attribute__((always_inline)) static inline void step(vf (&sums)[ROWS][2], const uint8_t* at, const uint32_t* x) {
    if constexpr (W::paired) {
        const vu low = W::pair(at), high = W::pair(at + W::bytes / 2);
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; m++) {
            const vu value = x[m] - vu{};
            sums[m][0] = dot(sums[m][0], low, value);
            sums[m][1] = dot(sums[m][1], high, value);
        }
    } else {
#pragma GCC unroll 2
        for (int i = 0; i < W::inputs; i++) {
            const vf low = i == 0 ? W::first(at) : W::second(at);
            const vf high = i == 0 ? W::first(at + W::bytes / 2) : W::second(at + W::bytes / 2);
#pragma GCC unroll 12
            for (int m = 0; m < ROWS; m++) {
                const vf value = splat(((const float*)x)[i * ROWS + m]);
                sums[m][0] += value * low;
                sums[m][1] += value * high;
            }
        }
    }
}

// Add the products of steps [from, to).
template <class W, int ROWS, Fetch FETCH>
static inline void accumulate(vf (&sums)[ROWS][2], const uint8_t* data, size_t panel_bytes, const uint32_t* x, int from,
                              int to) {
    constexpr int WORDS = (W::paired ? 1 : W::inputs) * ROWS;
    int s = from;
    if constexpr (FETCH != NONE) {
        constexpr int LINE = W::bytes >= 64 ? 1 : 64 / W::bytes;
        const size_t ahead = FETCH == STREAM ? STREAM_BYTES : panel_bytes;
        for (; s + LINE <= to; s += LINE) {
#pragma GCC unroll 4
            for (int byte = 0; byte < W::bytes * LINE; byte += 64) {
                const char* at = (const char*)data + (size_t)s * W::bytes + byte + ahead;
                FETCH == STREAM ? _mm_prefetch(at, _MM_HINT_T0) : _mm_prefetch(at, _MM_HINT_T1);
            }
#pragma GCC unroll 4
            for (int i = 0; i < LINE; i++)
                step<W, ROWS>(sums, data + (size_t)(s + i) * W::bytes, x + (size_t)(s + i) * WORDS);
        }
    }
    for (; s < to; s++) step<W, ROWS>(sums, data + (size_t)s * W::bytes, x + (size_t)s * WORDS);
}

// Multiply one panel by ROWS rows into y, whose rows are a.out apart. `totals` [ROWS][groups] holds
// the sums of x over each group, for grouped kinds.
template <class W, int ROWS, Fetch FETCH>
static void tile(const Matrix& a, int panel, const uint32_t* x, const float* totals, float* y, bool add) {
    const int steps = (a.in + W::inputs - 1) / W::inputs;
    const size_t panel_bytes = (size_t)steps * W::bytes;
    const uint8_t* data = a.data + panel * panel_bytes;
    vf sums[ROWS][2] = {};
    if constexpr (!W::grouped) {
        accumulate<W, ROWS, FETCH>(sums, data, panel_bytes, x, 0, steps);
    } else {
        const int groups = a.in / a.group;
        for (int g = 0; g < groups; g++) {
            vf part[ROWS][2] = {};
            accumulate<W, ROWS, FETCH>(part, data, panel_bytes, x, g * a.group / W::inputs,
                                       ((g + 1) * a.group + W::inputs - 1) / W::inputs);
            const size_t at = ((size_t)panel * groups + g) * PANEL;
            for (int m = 0; m < ROWS; m++)
                for (int h = 0; h < 2; h++)
                    sums[m][h] += load<vf>(a.scale + at + h * LANES) *
                                  (part[m][h] - load<vf>(a.zero + at + h * LANES) * totals[m * groups + g]);
        }
    }
    const int n0 = panel * PANEL, n = std::min(PANEL, a.out - n0);
    for (int m = 0; m < ROWS; m++) {
        vf low = sums[m][0], high = sums[m][1];
        if (a.bias) low += load<vf>(a.bias + n0), high += load<vf>(a.bias + n0 + LANES);
        float* to = y + (size_t)m * a.out + n0;
        if (n == PANEL) {
            if (add) low += load<vf>(to), high += load<vf>(to + LANES);
            store(to, low);
            store(to + LANES, high);
            continue;
        }
        float row[PANEL];
        store(row, low);
        store(row + LANES, high);
        for (int i = 0; i < n; i++) to[i] = add ? to[i] + row[i] : row[i];
    }
}

template <class F>
static inline void with_rows(int rows, const F& f) {
    switch (rows) {
        case 1: return f(std::integral_constant<int, 1>());
        case 2: return f(std::integral_constant<int, 2>());
        case 3: return f(std::integral_constant<int, 3>());
        case 4: return f(std::integral_constant<int, 4>());
        case 5: return f(std::integral_constant<int, 5>());
        case 6: return f(std::integral_constant<int, 6>());
    }
    if constexpr (MOST_ROWS > 6) switch (rows) {
            case 7: return f(std::integral_constant<int, 7>());
            case 8: return f(std::integral_constant<int, 8>());
            case 9: return f(std::integral_constant<int, 9>());
            case 10: return f(std::integral_constant<int, 10>());
            case 11: return f(std::integral_constant<int, 11>());
            case 12: return f(std::integral_constant<int, 12>());
        }
}

// Compute panels [from, to) of all rows. Rows are taken in blocks that stay in the second-level
// cache while the panels stream by; the tiles share each panel, and the last of them prefetches the
// next.
template <class W>
static void panels(const Matrix& a, int from, int to, const Tiling& tiling, const uint32_t* x, const float* totals,
                   float* y, bool add) {
    const int steps = (a.in + W::inputs - 1) / W::inputs, words = W::paired ? steps : steps * W::inputs;
    const size_t groups = W::grouped ? a.in / a.group : 0;
    constexpr size_t BLOCK_BYTES = 384 << 10;
    const int at_once = std::max(1, (int)(BLOCK_BYTES / (4 * (size_t)words * MOST_ROWS)));
    for (int first = 0; first < tiling.count; first += at_once) {
        const int last = std::min(tiling.count, first + at_once) - 1;
        for (int panel = from; panel < to; panel++)
            for (int t = first; t <= last; t++) {
                const size_t row = tiling.begin(t);
                with_rows(tiling.begin(t + 1) - (int)row, [&](auto n) {
                    const auto run = first == last ? tile<W, n, STREAM>
                                     : t == last   ? tile<W, n, NEXT>
                                                   : tile<W, n, NONE>;
                    run(a, panel, x + row * words, totals + row * groups, y + row * a.out, add);
                });
            }
    }
}

// Pack rows of x for products with `a`: words into `packed`, sums over the groups into `totals`.
static void pack_inputs(Pool& pool, const Matrix& a, const Tiling& tiling, const float* x,
                        std::vector<uint32_t>& packed, std::vector<float>& totals) {
    const bool pairs = PAIRS && a.kind != F32, grouped = a.kind == INT8 || a.kind == INT4;
    const int words = pairs ? (a.in + 1) / 2 : a.kind == F32 ? a.in : (a.in + 1) / 2 * 2;
    const int groups = grouped ? a.in / a.group : 0;
    packed.resize((size_t)tiling.rows * words);
    totals.resize((size_t)tiling.rows * groups);
    pool.run([&](int part, int parts) {
        for (int t = part; t < tiling.count; t += parts) {
            const int begin = tiling.begin(t), n = tiling.begin(t + 1) - begin;
            for (int m = 0; m < n; m++) {
                const float* row = x + (size_t)(begin + m) * a.in;
                uint32_t* to = packed.data() + (size_t)begin * words + m;
                if (!pairs && words > a.in) to[(size_t)a.in * n] = 0;
                pack_row(row, a.in, pairs, to, n);
                for (int g = 0; g < groups; g++)
                    totals[(size_t)(begin + m) * groups + g] = total(row + g * a.group, a.group, pairs);
            }
        }
    });
}

// Multiply x [rows, in] into y [rows, out], both float; with `add`, the products are added to y.
static void matmul(Pool& pool, const Matrix& a, const float* x, float* y, int rows, bool add) {
    const int count = (a.out + PANEL - 1) / PANEL;
    const Tiling tiling(rows);
    static thread_local std::vector<uint32_t> packed;
    static thread_local std::vector<float> sums;
    pack_inputs(pool, a, tiling, x, packed, sums);
    // The pool's threads have thread-local variables of their own.
    const uint32_t* inputs = packed.data();
    const float* totals = sums.data();
    pool.run([&](int part, int parts) {
        const int from = (int)((int64_t)count * part / parts);
        const int to = (int)((int64_t)count * (part + 1) / parts);
        switch (a.kind) {
            case F32: return panels<FromF32>(a, from, to, tiling, inputs, totals, y, add);
            case BF16: return panels<FromBf16>(a, from, to, tiling, inputs, totals, y, add);
            case INT8: return panels<FromInt8>(a, from, to, tiling, inputs, totals, y, add);
            default: return panels<FromInt4>(a, from, to, tiling, inputs, totals, y, add);
        }
    });
}
