// y[r, n] = sum over k of x[r, k] w[n, k] + bias[n], weights packed in panels of NR outputs: [panel][k][NR].
// Every output is one chain of FMAs in the order of k whatever the number of rows: a row's result does not depend on its batch.
#pragma once
#include "pool.h"
#include "simd.h"

enum Kind : int64_t { BF16 = 0, F32 = 1, INT8 = 2, INT4 = 3 };

struct Linear {
  int64_t kind, n, k, group;  // k: a multiple of 8, padded with zero weights; group: inputs per scale (0: no scales)
  const uint8_t* w;
  const float *scale, *zero;  // [panel][k / group][NR]
  const float* bias;          // [n] or null
  int64_t x_columns;          // inputs of a row of x (k without padding)
};

// How a panel's weights become two vectors of float. STEP: inputs per load; BYTES: bytes per load of a panel.
struct Bf16 {  // 32-bit lane j: outputs j (low half) and j + W (high half), so that a shift and a mask widen both
  static constexpr int STEP = 1, BYTES = NR * 2;
  INLINE vi raw(const uint8_t* p) { return viload(p); }
  INLINE void get(const uint8_t*, vi r, vi, int, vf& lo, vf& hi) {
    lo = vbits(vshl16(r));
    hi = vbits(viand(r, viset((int)0xffff0000)));
  }
};
struct F32s {
  static constexpr int STEP = 1, BYTES = NR * 4;
  INLINE vi raw(const uint8_t*) { return viset(0); }
  INLINE void get(const uint8_t* p, vi, vi, int, vf& lo, vf& hi) {
    lo = vload((const float*)p);
    hi = vload((const float*)p + W);
  }
};
struct Int8 {
  static constexpr int STEP = 1, BYTES = NR;
  INLINE vi raw(const uint8_t*) { return viset(0); }
  INLINE void get(const uint8_t* p, vi, vi, int, vf& lo, vf& hi) {
    lo = vfloat(vload_u8(p));
    hi = vfloat(vload_u8(p + W));
  }
};
// 32-bit lane j: inputs k .. k + 3 of output j in the low four nibbles, of output j + W in the high ones. A masked nibble is the value
// times 16^(k mod 4); x comes multiplied by 16^-(k mod 4), which is exact, so no shift is needed.
struct Int4 {
  static constexpr int STEP = 4, BYTES = W * 4;
  INLINE vi raw(const uint8_t* p) { return viload(p); }
  INLINE void get(const uint8_t*, vi r, vi high, int s, vf& lo, vf& hi) {
    lo = vfloat(viand(r, viset(15 << (4 * s))));
    hi = vfloat(viand(high, viset(15 << (4 * s))));
  }
};

// acc += the products of `count` inputs for MR rows and NP panels. x is [k][MR].
template <class D, int MR, int NP>
INLINE void products(const uint8_t* w, int64_t stride, const float* x, int64_t count, int64_t ahead, vf (&acc)[MR][2 * NP]) {
#pragma GCC unroll 2
  for (int64_t k = 0; k < count; k += D::STEP) {
    vi raw[NP], high[NP];
#pragma GCC unroll 8
    for (int p = 0; p < NP; p++) {
      raw[p] = D::raw(w + p * stride);
      high[p] = D::STEP == 4 ? vshr16(raw[p]) : raw[p];
      _mm_prefetch((const char*)(w + p * stride + ahead), _MM_HINT_T0);
    }
#pragma GCC unroll 4
    for (int s = 0; s < D::STEP; s++) {
      vf lo[NP], hi[NP];
#pragma GCC unroll 8
      for (int p = 0; p < NP; p++) D::get(w + p * stride, raw[p], high[p], s, lo[p], hi[p]);
#pragma GCC unroll 12
      for (int r = 0; r < MR; r++) {
        vf b = vset(x[r]);
#pragma GCC unroll 8
        for (int p = 0; p < NP; p++) {
          acc[r][2 * p] = vfma(b, lo[p], acc[r][2 * p]);
          acc[r][2 * p + 1] = vfma(b, hi[p], acc[r][2 * p + 1]);
        }
      }
      x += MR;
    }
    w += D::BYTES;
  }
}

struct Rows {  // MR rows in packed form, and where their results go
  const float* x;
  const float* sums;  // [k / group][MR]: sums of x over the groups
  float* y;
  int64_t y_stride;
};

template <class D, int MR, int NP>
static void tile(const Linear& l, const uint8_t* w, int64_t stride, int64_t panel, const Rows& rows, int64_t ahead) {
  vf total[MR][2 * NP];
  for (auto& row : total)
    for (auto& v : row) v = vset(0);
  if (!l.group) {
    products<D, MR, NP>(w, stride, rows.x, l.k, ahead, total);
  } else {
    int64_t groups = l.k / l.group;
    for (int64_t g = 0; g < groups; g++) {
      vf acc[MR][2 * NP];
      for (auto& row : acc)
        for (auto& v : row) v = vset(0);
      products<D, MR, NP>(w + g * (l.group / D::STEP) * D::BYTES, stride, rows.x + g * l.group * MR, l.group, ahead, acc);
      for (int p = 0; p < NP; p++)
        for (int h = 0; h < 2; h++) {
          int64_t at = ((panel + p) * groups + g) * NR + h * W;
          vf scale = vload(l.scale + at), zero = vload(l.zero + at);
          for (int r = 0; r < MR; r++) {
            vf centred = vfnma(zero, vset(rows.sums[g * MR + r]), acc[r][2 * p + h]);
            total[r][2 * p + h] = vfma(scale, centred, total[r][2 * p + h]);
          }
        }
    }
  }
  for (int p = 0; p < NP; p++)
    for (int h = 0; h < 2; h++) {
      int64_t n = (panel + p) * NR + h * W, have = l.n - n < W ? l.n - n : W;
      for (int r = 0; r < MR; r++) {
        float* y = rows.y + r * rows.y_stride + n;
        vf v = total[r][2 * p + h];
        if (have == W) {
          vstore(y, l.bias ? v + vload(l.bias + n) : v);
        } else {
          float part[W];
          vstore(part, v);
          for (int64_t i = 0; i < have; i++) y[i] = part[i] + (l.bias ? l.bias[n + i] : 0.0f);
        }
      }
    }
}

template <class D>
INLINE int64_t panel_bytes(const Linear& l) { return l.k / D::STEP * D::BYTES; }

// Panels [begin, end) for MR rows, as many at once as registers allow: at one row the FMA latency asks for 8 chains.
template <class D, int MR>
static void panels(const Linear& l, const uint8_t* w, int64_t begin, int64_t end, const Rows& rows, int64_t ahead) {
  constexpr int NP = MR == 1 ? 4 : MR <= 3 ? 2 : 1;
  int64_t stride = panel_bytes<D>(l), p = begin;
  for (; p + NP <= end; p += NP) tile<D, MR, NP>(l, w + (p - begin) * stride, stride, p, rows, ahead);
  for (; p < end; p++) tile<D, MR, 1>(l, w + (p - begin) * stride, stride, p, rows, ahead);
}

template <class D, int MR = MAX_ROWS>
static void any_rows(int64_t mr, const Linear& l, const uint8_t* w, int64_t begin, int64_t end, const Rows& rows, int64_t ahead) {
  if (mr == MR) return panels<D, MR>(l, w, begin, end, rows, ahead);
  if constexpr (MR > 1) any_rows<D, MR - 1>(mr, l, w, begin, end, rows, ahead);
}
