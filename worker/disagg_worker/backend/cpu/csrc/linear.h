// Packing of weights and activations, and the loops around the tiles of gemm.h.
#pragma once
#include <algorithm>

#include "gemm.h"

// Rows are split into groups of nearly equal size, MAX_ROWS at most. Group g starts at row begin(g).
struct Groups {
  int64_t rows, count;
  explicit Groups(int64_t r) : rows(r), count((r + MAX_ROWS - 1) / MAX_ROWS) {}
  int64_t begin(int64_t g) const { return rows * g / count; }
};

struct Packed {
  std::vector<float> x, sums;
};

static void pack_rows(const Linear& l, const Array& x, int64_t first, int64_t rows, Packed& to) {
  static const float shrink[4] = {1.0f, 1.0f / 16, 1.0f / 256, 1.0f / 4096};
  Groups groups(rows);
  int64_t scales = l.group ? l.k / l.group : 0;
  bool nibbles = l.kind == INT4 && rows <= MAX_ROWS;  // beyond, the panel is widened first
  to.x.resize(rows * l.k);
  to.sums.resize(rows * scales);
  for (int64_t g = 0; g < groups.count; g++) {
    int64_t begin = groups.begin(g), mr = groups.begin(g + 1) - begin;
    float* packed = to.x.data() + begin * l.k;
    for (int64_t r = 0; r < mr; r++) {
      int64_t from = (first + begin + r) * l.x_columns;
      for (int64_t k = 0; k < l.x_columns; k++) packed[k * mr + r] = x.get(from + k);
      for (int64_t k = l.x_columns; k < l.k; k++) packed[k * mr + r] = 0.0f;
      for (int64_t s = 0; s < scales; s++) {
        float sum = 0;
        for (int64_t k = s * l.group; k < (s + 1) * l.group; k++) sum += packed[k * mr + r];
        to.sums[begin * scales + s * mr + r] = sum;
      }
      if (nibbles)
        for (int64_t k = 0; k < l.k; k++) packed[k * mr + r] *= shrink[k & 3];
    }
  }
}

template <class D>
static void widen_panel(const Linear& l, const uint8_t* w, float* to) {
  for (int64_t k = 0; k < l.k; k += D::STEP, w += D::BYTES) {
    vi raw = D::raw(w), high = D::STEP == 4 ? vshr16(raw) : raw;
    for (int s = 0; s < D::STEP; s++, to += NR) {
      vf lo, hi, shrink = vset(D::STEP == 4 ? 1.0f / (float)(1 << (4 * s)) : 1.0f);
      D::get(w, raw, high, s, lo, hi);
      vstore(to, lo * shrink);
      vstore(to + W, hi * shrink);
    }
  }
}

template <class D>
static void block(const Linear& l, const Packed& packed, int64_t rows, float* y, int64_t begin, int64_t end, bool widen) {
  Groups groups(rows);
  int64_t scales = l.group ? l.k / l.group : 0, stride = panel_bytes<D>(l);
  thread_local std::vector<float> wide;
  if (widen) wide.resize(l.k * NR);
  // One group: stream all panels through it. Several: a panel stays in the cache while all groups pass over it.
  int64_t step = groups.count == 1 ? end - begin : 1;
  for (int64_t p = begin; p < end; p += step) {
    const uint8_t* w = l.w + p * stride;
    if (widen) widen_panel<D>(l, w, wide.data());
    for (int64_t g = 0; g < groups.count; g++) {
      int64_t r = groups.begin(g), mr = groups.begin(g + 1) - r;
      Rows part{packed.x.data() + r * l.k, packed.sums.data() + r * scales, y + r * l.n, l.n};
      // Alone, fetch 1 KiB ahead of the stream; with several groups the last one fetches the next panel.
      int64_t ahead = groups.count == 1 ? 1024 : g + 1 == groups.count ? stride : 0;
      if (widen) any_rows<F32s>(mr, l, (const uint8_t*)wide.data(), p, p + step, part, 0);
      else any_rows<D>(mr, l, w, p, p + step, part, ahead);
    }
  }
}

// y [rows, n] float32 (contiguous) of x [rows, x_columns].
static void linear(const Linear& l, const Array& x, int64_t rows, float* y, int64_t threads) {
  // A block of rows is packed to stay in half of a 512 KiB second-level cache.
  int64_t fit = std::max<int64_t>(MAX_ROWS * 4, 262144 / (l.k * 4) / MAX_ROWS * MAX_ROWS);
  int64_t count = (l.n + NR - 1) / NR;
  thread_local Packed packed;
  for (int64_t first = 0; first < rows; first += fit) {
    int64_t here = std::min(fit, rows - first);
    Linear part = l;
    pack_rows(part, x, first, here, packed);
    const Packed& shared = packed;
    bool widen = here > MAX_ROWS;
    pool().parallel(threads, [&](int64_t index) {
      Part mine(count, index, threads);
      float* to = y + first * l.n;
      switch (l.kind) {
        case BF16: return block<Bf16>(l, shared, here, to, mine.begin, mine.end, false);
        case F32: return block<F32s>(l, shared, here, to, mine.begin, mine.end, false);
        case INT8: return block<Int8>(l, shared, here, to, mine.begin, mine.end, widen);
        default: return block<Int4>(l, shared, here, to, mine.begin, mine.end, widen);
      }
    });
  }
}

// Place of weight (n, k) in its packed form; in elements of 2, 4 or 1 bytes (not INT4).
INLINE int64_t place(int64_t kind, int64_t k_padded, int64_t n, int64_t k) {
  int64_t base = (n / NR * k_padded + k) * NR, c = n % NR;
  return base + (kind == BF16 ? (c % W) * 2 + c / W : c);
}

// src [n, k] row-major -> dst [panels][k padded][NR]; dst is zeroed by the caller. INT8 and INT4 take one byte a value.
static void pack(int64_t kind, const void* src, int64_t n, int64_t k, int64_t k_padded, void* dst) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < k; j++) {
      int64_t from = i * k + j;
      if (kind == BF16) ((uint16_t*)dst)[place(kind, k_padded, i, j)] = ((const uint16_t*)src)[from];
      else if (kind == F32) ((float*)dst)[place(kind, k_padded, i, j)] = ((const float*)src)[from];
      else if (kind == INT8) ((uint8_t*)dst)[place(kind, k_padded, i, j)] = ((const uint8_t*)src)[from];
      else {
        int64_t c = i % NR, lane = (i / NR * (k_padded / 4) + j / 4) * W + c % W;
        ((uint32_t*)dst)[lane] |= (uint32_t)(((const uint8_t*)src)[from] & 15) << (4 * (j % 4) + 16 * (c / W));
      }
    }
}

// The inverse for BF16: dst [n, x_columns] row-major.
static void unpack_bf16(const Linear& l, uint16_t* dst) {
  for (int64_t i = 0; i < l.n; i++)
    for (int64_t j = 0; j < l.x_columns; j++) dst[i * l.x_columns + j] = ((const uint16_t*)l.w)[place(BF16, l.k, i, j)];
}
