// Attention of one token a sequence over the paged cache, read in place. All query heads of a KV head go together (GQA), so that its
// keys and values come from memory once. Two passes: scores into a buffer, softmax, then the weighted values. Sums in float32.
#pragma once
#include "ops.h"

struct Tables {
  const int64_t* blocks;  // [sequences, width]
  int64_t width;
  const int64_t* lengths;  // [sequences]
};

// scores[g * length + t] = q[g] . K[t] for `count` tokens from `keys` on.
template <int ND>
static void score(const Array& data, int64_t keys, int64_t count, int64_t dim, const float* q, int64_t group, float* scores, int64_t length) {
  int64_t vectors = ND ? ND : dim / W;
  for (int64_t t = 0; t < count; t++, keys += dim) {
    if constexpr (ND != 0) {
      vf key[ND];
#pragma GCC unroll 16
      for (int i = 0; i < ND; i++) key[i] = data.load(keys + i * W);
      for (int64_t g = 0; g < group; g++) {
        vf a = vset(0), b = vset(0);
#pragma GCC unroll 16
        for (int i = 0; i < ND; i += 2) {
          a = vfma(key[i], vload(q + g * dim + i * W), a);
          b = vfma(key[i + 1], vload(q + g * dim + (i + 1) * W), b);
        }
        scores[g * length + t] = vsum(a + b);
      }
    } else {
      for (int64_t g = 0; g < group; g++) {
        vf a = vset(0);
        for (int64_t i = 0; i < vectors; i++) a = vfma(data.load(keys + i * W), vload(q + g * dim + i * W), a);
        float sum = vsum(a);
        for (int64_t i = vectors * W; i < dim; i++) sum += data.get(keys + i) * q[g * dim + i];
        scores[g * length + t] = sum;
      }
    }
  }
}

// out[g] += sum over t of p[g * length + t] V[t].
template <int ND>
static void weigh(const Array& data, int64_t values, int64_t count, int64_t dim, const float* p, int64_t group, float* out, int64_t length) {
  for (int64_t g = 0; g < group; g++, out += dim, p += length) {
    if constexpr (ND != 0) {
      vf sum[ND];
#pragma GCC unroll 16
      for (int i = 0; i < ND; i++) sum[i] = vload(out + i * W);
      for (int64_t t = 0; t < count; t++) {
        vf weight = vset(p[t]);
#pragma GCC unroll 16
        for (int i = 0; i < ND; i++) sum[i] = vfma(weight, data.load(values + t * dim + i * W), sum[i]);
      }
#pragma GCC unroll 16
      for (int i = 0; i < ND; i++) vstore(out + i * W, sum[i]);
    } else {
      int64_t i = 0;
      for (; i + W <= dim; i += W) {
        vf sum = vload(out + i);
        for (int64_t t = 0; t < count; t++) sum = vfma(vset(p[t]), data.load(values + t * dim + i), sum);
        vstore(out + i, sum);
      }
      for (; i < dim; i++)
        for (int64_t t = 0; t < count; t++) out[i] += p[t] * data.get(values + t * dim + i);
    }
  }
}

// In place; returns the sum.
static float exponentials(float* x, int64_t n) {
  float highest = -INFINITY, sum;
  vf high = vset(-INFINITY), sums = vset(0);
  int64_t i = 0;
  for (; i + W <= n; i += W) high = vmax(high, vload(x + i));
  highest = vhighest(high);
  for (; i < n; i++) highest = x[i] > highest ? x[i] : highest;
  for (i = 0; i + W <= n; i += W) {
    vf e = vexp(vload(x + i) - vset(highest));
    vstore(x + i, e);
    sums = sums + e;
  }
  sum = vsum(sums);
  for (; i < n; i++) sum += x[i] = std::exp(x[i] - highest);
  return sum;
}

template <int ND, bool BF>
static void one_head(const float* q, int64_t group, const Cache& cache, int64_t layer, int64_t head, const int64_t* blocks, int64_t first,
                     int64_t end, float* out) {
  int64_t dim = cache.dim, length = end - first;
  thread_local std::vector<float> scores, scaled;
  scores.resize(group * length);
  scaled.resize(group * dim);
  Array data{cache.data.data, BF};  // a constant: the branch on the type leaves the loops
  float scale = 1.0f / std::sqrt((float)dim);
  for (int64_t i = 0; i < group * dim; i++) scaled[i] = q[i] * scale, out[i] = 0;
  auto each_block = [&](int64_t value, auto&& f) {
    for (int64_t t = first; t < end;) {
      int64_t inside = t % cache.tokens, count = std::min(cache.tokens - inside, end - t);
      f(cache.at(blocks[t / cache.tokens], layer, value, head) + inside * dim, count, t - first);
      t += count;
    }
  };
  each_block(0, [&](int64_t keys, int64_t count, int64_t t) {
    score<ND>(data, keys, count, dim, scaled.data(), group, scores.data() + t, length);
  });
  for (int64_t g = 0; g < group; g++) {
    float* p = scores.data() + g * length;
    float inverse = 1.0f / exponentials(p, length);
    for (int64_t t = 0; t < length; t++) p[t] *= inverse;
  }
  each_block(1, [&](int64_t values, int64_t count, int64_t t) {
    weigh<ND>(data, values, count, dim, scores.data() + t, group, out, length);
  });
}

// q [sequences, heads, dim] -> out, the same shape. window 0: none.
static void attend(const float* q, int64_t sequences, int64_t heads, const Cache& cache, int64_t layer, const Tables& tables, int64_t window,
                   float* out, int64_t threads) {
  int64_t group = heads / cache.kv_heads, items = sequences * cache.kv_heads;
  pool().parallel(threads, [&](int64_t index) {
    Part mine(items, index, threads);
    for (int64_t item = mine.begin; item < mine.end; item++) {
      int64_t s = item / cache.kv_heads, head = item % cache.kv_heads, end = tables.lengths[s];
      int64_t first = window && end > window ? end - window : 0, at = (s * heads + head * group) * cache.dim;
      const int64_t* blocks = tables.blocks + s * tables.width;
#define ONE_HEAD(nd, bf) one_head<nd, bf>(q + at, group, cache, layer, head, blocks, first, end, out + at)
      bool bf = cache.data.bf16;
      if (cache.dim == 64) bf ? ONE_HEAD(64 / W, true) : ONE_HEAD(64 / W, false);
      else if (cache.dim == 128) bf ? ONE_HEAD(128 / W, true) : ONE_HEAD(128 / W, false);
      else bf ? ONE_HEAD(0, true) : ONE_HEAD(0, false);
#undef ONE_HEAD
    }
  });
}
