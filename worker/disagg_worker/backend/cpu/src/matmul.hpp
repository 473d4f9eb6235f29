// y = x W^T + b with W packed in panels: [out / PANEL][in][PANEL], so that a tile of the result reads one stream.
//
// Every element of y is one chain of fused multiply-adds over `in`, in order, whatever the number of rows: a row's result does not depend
// on the batch it is in. Weights are widened in registers; the accumulators are a tile of up to 6 rows by one panel, or 1 row by 4 panels.
#pragma once
#include <algorithm>

#include "threads.hpp"
#include "vector.hpp"

enum Kind : int32_t { F32 = 0, BF16 = 1, INT8 = 2, INT4 = 3 };

// `bytes` a panel needs for one input feature, and how these become two vectors of floats.
struct FromF32 {
    static constexpr int bytes = PANEL * 4;
    static constexpr bool grouped = false;
    static void get(const uint8_t* at, vf& low, vf& high) {
        low = load<vf>(at);
        high = load<vf>(at + LANES * 4);
    }
};
// Word j holds features j (low half) and j + LANES (high half).
struct FromBf16 {
    static constexpr int bytes = PANEL * 2;
    static constexpr bool grouped = false;
    static void get(const uint8_t* at, vf& low, vf& high) {
        vu words = load<vu>(at);
        low = as_float(words << 16);
        high = as_float(words & 0xffff0000u);
    }
};
struct FromInt8 {
    static constexpr int bytes = PANEL;
    static constexpr bool grouped = true;
    static void get(const uint8_t* at, vf& low, vf& high) {
        low = __builtin_convertvector(from_bytes(at), vf);
        high = __builtin_convertvector(from_bytes(at + LANES), vf);
    }
};
// Byte j holds features j (low half) and j + LANES (high half).
struct FromInt4 {
    static constexpr int bytes = PANEL / 2;
    static constexpr bool grouped = true;
    static void get(const uint8_t* at, vf& low, vf& high) {
        vi pairs = from_bytes(at);
        low = __builtin_convertvector(pairs & 15, vf);
        high = __builtin_convertvector(pairs >> 4, vf);
    }
};

struct Matrix {
    int32_t kind, in, out, group;
    const uint8_t* data;   // [panels][in][PANEL] packed
    const float* scale;    // [panels][in / group][PANEL]
    const float* zero;     // the same shape
    const float* bias;     // [panels * PANEL] or null
};

// Adds the products of inputs [from, to). FETCH: prefetch 1 KiB ahead, a cache line at a time, where weights come from memory only once;
// the hardware's own prefetching stops at every page. (Measured with bf16: 1.2 to 1.3 times as fast at 3 to 6 rows, no change at 1.)
template <class W, int ROWS, int PANELS, bool FETCH>
static inline void accumulate(vf (&sums)[PANELS][ROWS][2], const uint8_t* data, size_t panel_bytes, const float* x, size_t stride, int from, int to) {
    const auto one = [&](int k) __attribute__((always_inline)) {
        vf w[PANELS][2];
#pragma GCC unroll 4
        for (int p = 0; p < PANELS; p++) W::get(data + p * panel_bytes + (size_t)k * W::bytes, w[p][0], w[p][1]);
#pragma GCC unroll 6
        for (int m = 0; m < ROWS; m++) {
            vf value = splat(x[m * stride + k]);
#pragma GCC unroll 4
            for (int p = 0; p < PANELS; p++) {
                sums[p][m][0] += value * w[p][0];
                sums[p][m][1] += value * w[p][1];
            }
        }
    };
    int k = from;
    if constexpr (FETCH) {
        constexpr int LINE = W::bytes >= 64 ? 1 : 64 / W::bytes;
        for (; k + LINE <= to; k += LINE) {
#pragma GCC unroll 4
            for (int p = 0; p < PANELS; p++)
                for (int byte = 0; byte < W::bytes * LINE; byte += 64)
                    _mm_prefetch((const char*)data + p * panel_bytes + (size_t)k * W::bytes + byte + 1024, _MM_HINT_T0);
#pragma GCC unroll 4
            for (int i = 0; i < LINE; i++) one(k + i);
        }
    }
    for (; k < to; k++) one(k);
}

// Sums of ROWS rows of x (`stride` floats apart) over PANELS panels from `panel` on. `totals`: the sums of x over each group, of grouped kinds.
template <class W, int ROWS, int PANELS, bool FETCH = false>
static inline void tile(const Matrix& a, int panel, const float* x, size_t stride, const float* totals, vf (&sums)[PANELS][ROWS][2]) {
    const size_t panel_bytes = (size_t)a.in * W::bytes;
    const uint8_t* data = a.data + panel * panel_bytes;
    if constexpr (!W::grouped) {
        accumulate<W, ROWS, PANELS, FETCH>(sums, data, panel_bytes, x, stride, 0, a.in);
    } else {
        const int groups = a.in / a.group;
        for (int g = 0; g < groups; g++) {
            vf part[PANELS][ROWS][2] = {};
            accumulate<W, ROWS, PANELS, FETCH>(part, data, panel_bytes, x, stride, g * a.group, (g + 1) * a.group);
            for (int m = 0; m < ROWS; m++) {
                const float total = totals[m * groups + g];
                for (int p = 0; p < PANELS; p++)
                    for (int h = 0; h < 2; h++) {
                        const size_t at = ((size_t)(panel + p) * groups + g) * PANEL + h * LANES;
                        sums[p][m][h] += load<vf>(a.scale + at) * (part[p][m][h] - load<vf>(a.zero + at) * total);
                    }
            }
        }
    }
}

template <class W, int ROWS, int PANELS, bool FETCH>
static void block(const Matrix& a, int panel, const float* x, const float* totals, float* y, bool add) {
    vf sums[PANELS][ROWS][2] = {};
    tile<W, ROWS, PANELS, FETCH>(a, panel, x, a.in, totals, sums);
    for (int p = 0; p < PANELS; p++) {
        const int n0 = (panel + p) * PANEL;
        for (int m = 0; m < ROWS; m++) {
            float row[PANEL];
            vf low = sums[p][m][0], high = sums[p][m][1];
            if (a.bias) low += load<vf>(a.bias + n0), high += load<vf>(a.bias + n0 + LANES);
            store(row, low);
            store(row + LANES, high);
            float* to = y + (size_t)m * a.out + n0;
            const int n = std::min(PANEL, a.out - n0);
            if (add)
                for (int i = 0; i < n; i++) to[i] += row[i];
            else
                std::memcpy(to, row, n * sizeof(float));
        }
    }
}

// Few rows leave registers free: more panels at once hide the latency of the multiply-adds. No more than this, though: sums that spill to
// the stack inside the loop halve the speed, and unpacking needs registers, too. `once`: the panels are used for these rows only.
template <class W, int ROWS>
static void row_tile(const Matrix& a, int from, int to, const float* x, const float* totals, float* y, bool add, bool once) {
    constexpr bool unpacks = W::bytes != PANEL * 4;
    constexpr int PANELS = ROWS == 1 ? (W::grouped ? 3 : 4) : ROWS == 2 ? (unpacks ? 2 : 3) : ROWS == 3 && !unpacks ? 2 : 1;
    int panel = from;
    if (once && !W::grouped)
        for (; panel + PANELS <= to; panel += PANELS) block<W, ROWS, PANELS, !W::grouped>(a, panel, x, totals, y, add);
    for (; panel + PANELS <= to; panel += PANELS) block<W, ROWS, PANELS, false>(a, panel, x, totals, y, add);
    for (; panel < to; panel++) block<W, ROWS, 1, false>(a, panel, x, totals, y, add);
}

template <class W>
static void rows_tile(const Matrix& a, int from, int to, const float* x, const float* totals, float* y, int rows, bool add, bool once) {
    switch (rows) {
        case 1: return row_tile<W, 1>(a, from, to, x, totals, y, add, once);
        case 2: return row_tile<W, 2>(a, from, to, x, totals, y, add, once);
        case 3: return row_tile<W, 3>(a, from, to, x, totals, y, add, once);
        case 4: return row_tile<W, 4>(a, from, to, x, totals, y, add, once);
        case 5: return row_tile<W, 5>(a, from, to, x, totals, y, add, once);
        default: return row_tile<W, 6>(a, from, to, x, totals, y, add, once);
    }
}

// Panels [from, to) of all rows. Rows go in blocks that stay in the second-level cache while the panels stream by, tiles of one panel share it.
template <class W>
static void panels(const Matrix& a, int from, int to, const float* x, const float* totals, float* y, int rows, bool add) {
    constexpr int MOST = 6;
    const int per_block = std::max(MOST, (192 << 10) / (4 * a.in) / MOST * MOST);
    const size_t groups = W::grouped ? a.in / a.group : 0;
    for (int first = 0; first < rows; first += per_block) {
        const int here = std::min(per_block, rows - first), tiles = (here + MOST - 1) / MOST;
        // One tile runs through all panels; several share each panel, which then comes from the first-level cache but once.
        const int step = tiles == 1 ? to - from : 1;
        for (int panel = from; panel < to; panel += step)
            for (int t = 0, m = 0; t < tiles; t++) {
                const int n = (here - m + tiles - t - 1) / (tiles - t);
                const size_t row = (size_t)(first + m);
                rows_tile<W>(a, panel, panel + step, x + row * a.in, totals + row * groups, y + row * a.out, n, add, tiles == 1);
                m += n;
            }
    }
}

// x [rows, in] float -> y [rows, out] float; `add`: y += instead of y =.
static void matmul(Pool& pool, const Matrix& a, const float* x, float* y, int rows, bool add) {
    const int count = (a.out + PANEL - 1) / PANEL;
    std::vector<float> sums;
    if (a.kind == INT8 || a.kind == INT4) {
        sums.resize((size_t)rows * (a.in / a.group));
        for (size_t g = 0; g < sums.size(); g++)
            for (int k = 0; k < a.group; k++) sums[g] += x[g * a.group + k];
    }
    const float* totals = sums.data();
    pool.run([&](int part, int parts) {
        const int from = (int)((int64_t)count * part / parts), to = (int)((int64_t)count * (part + 1) / parts);
        switch (a.kind) {
            case F32: return panels<FromF32>(a, from, to, x, totals, y, rows, add);
            case BF16: return panels<FromBf16>(a, from, to, x, totals, y, rows, add);
            case INT8: return panels<FromInt8>(a, from, to, x, totals, y, rows, add);
            default: return panels<FromInt4>(a, from, to, x, totals, y, rows, add);
        }
    });
}
