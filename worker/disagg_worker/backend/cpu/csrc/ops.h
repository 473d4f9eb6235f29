// The row-wise parts of a layer. Activations are float32; only the cache may be bf16.
#pragma once
#include "linear.h"

// The KV cache [block, layer, 2, kv_head, token, head_dim], contiguous.
struct Cache {
  Array data;
  int64_t layers, kv_heads, tokens, dim;
  int64_t at(int64_t block, int64_t layer, int64_t value, int64_t head) const {
    return (((block * layers + layer) * 2 + value) * kv_heads + head) * tokens * dim;
  }
};

struct Heads {
  int64_t heads, kv_heads, dim;
  const float *q_norm, *k_norm;  // [dim] or null
  double eps;
  Array cos, sin;  // [positions, dim]
};

// Work below this many elements is not worth waking threads for.
INLINE int64_t enough(int64_t elements, int64_t threads) { return elements < 32768 ? 1 : threads; }

// x += delta (if there is one), then y = w * x / sqrt(mean(x^2) + eps). Row by row.
static void rms_norm(float* x, const float* delta, const float* w, double eps, int64_t rows, int64_t n, float* y, int64_t threads) {
  int64_t busy = enough(rows * n, threads);
  pool().parallel(busy, [&](int64_t index) {
    Part mine(rows, index, busy);
    for (int64_t r = mine.begin; r < mine.end; r++) {
      float *at = x + r * n, *to = y + r * n;
      int64_t i = 0;
      if (delta)
        for (int64_t j = 0; j < n; j++) at[j] += delta[r * n + j];
      vf sums = vset(0);
      for (; i + W <= n; i += W) sums = vfma(vload(at + i), vload(at + i), sums);
      float sum = vsum(sums);
      for (; i < n; i++) sum += at[i] * at[i];
      float inverse = 1.0f / std::sqrt(sum / (float)n + (float)eps);
      for (i = 0; i < n; i++) to[i] = at[i] * inverse * w[i];
    }
  });
}

// Norm (if any) and rotation of one head: x -> y [dim].
static void place_head(const float* x, const float* norm, const Heads& h, int64_t position, float* y) {
  int64_t dim = h.dim, half = dim / 2;
  const float* from = x;
  if (norm) {
    float sum = 0;
    for (int64_t i = 0; i < dim; i++) sum += x[i] * x[i];
    float inverse = 1.0f / std::sqrt(sum / (float)dim + (float)h.eps);
    for (int64_t i = 0; i < dim; i++) y[i] = x[i] * inverse * norm[i];
    from = y;
  }
  int64_t at = position * dim;
  for (int64_t i = 0; i < half; i++) {
    float a = from[i], b = from[i + half];
    y[i] = a * h.cos.get(at + i) - b * h.sin.get(at + i);
    y[i + half] = b * h.cos.get(at + i + half) + a * h.sin.get(at + i + half);
  }
}

// qkv [rows, (heads + 2 kv_heads) * dim] -> q, k, v; k and v also into the cache, and as they are stored there.
static void store_qkv(const float* qkv, const Heads& h, const Cache& cache, int64_t layer, const int64_t* positions, const int64_t* slots,
                      int64_t rows, float* q, float* k, float* v, int64_t threads) {
  int64_t width = (h.heads + 2 * h.kv_heads) * h.dim, busy = enough(rows * width, threads);
  pool().parallel(busy, [&](int64_t index) {
    Part mine(rows, index, busy);
    std::vector<float> key(h.dim);
    for (int64_t r = mine.begin; r < mine.end; r++) {
      const float* x = qkv + r * width;
      for (int64_t i = 0; i < h.heads; i++) place_head(x + i * h.dim, h.q_norm, h, positions[r], q + (r * h.heads + i) * h.dim);
      int64_t slot = slots[r] % cache.tokens;
      for (int64_t i = 0; i < h.kv_heads; i++) {
        place_head(x + (h.heads + i) * h.dim, h.k_norm, h, positions[r], key.data());
        const float* value = x + (h.heads + h.kv_heads + i) * h.dim;
        int64_t to_k = cache.at(slots[r] / cache.tokens, layer, 0, i) + slot * h.dim;
        int64_t to_v = cache.at(slots[r] / cache.tokens, layer, 1, i) + slot * h.dim, to = (r * h.kv_heads + i) * h.dim;
        for (int64_t d = 0; d < h.dim; d++) {
          float stored_k = cache.data.set(to_k + d, key[d]), stored_v = cache.data.set(to_v + d, value[d]);
          if (k) k[to + d] = stored_k, v[to + d] = stored_v;
        }
      }
    }
  });
}

// silu(gate) * up of x [rows, 2 n] -> y [rows, n].
static void gated(const float* x, int64_t rows, int64_t n, float* y, int64_t threads) {
  int64_t busy = enough(rows * n, threads);
  pool().parallel(busy, [&](int64_t index) {
    Part mine(rows, index, busy);
    for (int64_t r = mine.begin; r < mine.end; r++) {
      const float *gate = x + r * 2 * n, *up = gate + n;
      int64_t i = 0;
      for (; i + W <= n; i += W) {
        vf g = vload(gate + i);
        vstore(y + r * n + i, g / (vset(1) + vexp(vset(0) - g)) * vload(up + i));
      }
      for (; i < n; i++) y[r * n + i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
    }
  });
}
