// A whole decode step: the same functions in the same order as the network calls them one by one.
#pragma once
#include "attention.h"

struct Layer {
  const float *norm_in, *norm_mlp;
  Heads heads;
  Linear qkv, out, gate_up, down;
  int64_t window;
};

struct Program {
  int64_t layers, hidden, threads;
  const Layer* layer;
  const float* norm;
  double eps;
  Array embedding;  // [vocab, hidden]
  Linear head;
};

struct Step {
  int64_t rows, wanted;
  const int64_t *tokens, *positions, *slots, *last;  // last [wanted]: rows whose logits are wanted
  Tables tables;
};

static void run(const Program& p, const Step& s, const Cache& cache, float* logits) {
  int64_t rows = s.rows, hidden = p.hidden, threads = p.threads;
  thread_local std::vector<float> residual, normed, wide, q, mixed, moved;
  auto room = [](std::vector<float>& v, int64_t n) { if ((int64_t)v.size() < n) v.resize(n); return v.data(); };
  float* x = room(residual, rows * hidden);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < hidden; i++) x[r * hidden + i] = p.embedding.get(s.tokens[r] * hidden + i);
  float *delta = room(moved, rows * hidden), *in = room(normed, rows * hidden);
  rms_norm(x, nullptr, p.layer[0].norm_in, p.eps, rows, hidden, in, threads);
  for (int64_t i = 0; i < p.layers; i++) {
    const Layer& l = p.layer[i];
    int64_t attended = l.heads.heads * l.heads.dim, n = l.down.x_columns;
    room(wide, rows * std::max(l.qkv.n, l.gate_up.n)), room(q, rows * attended), room(mixed, rows * std::max(attended, n));
    linear(l.qkv, Array{in, 0}, rows, wide.data(), threads);
    store_qkv(wide.data(), l.heads, cache, i, s.positions, s.slots, rows, q.data(), nullptr, nullptr, threads);
    attend(q.data(), rows, l.heads.heads, cache, i, s.tables, l.window, mixed.data(), threads);
    linear(l.out, Array{mixed.data(), 0}, rows, delta, threads);
    rms_norm(x, delta, l.norm_mlp, p.eps, rows, hidden, in, threads);
    linear(l.gate_up, Array{in, 0}, rows, wide.data(), threads);
    gated(wide.data(), rows, n, mixed.data(), threads);
    linear(l.down, Array{mixed.data(), 0}, rows, delta, threads);
    const float* next = i + 1 < p.layers ? p.layer[i + 1].norm_in : p.norm;
    rms_norm(x, delta, next, p.eps, rows, hidden, in, threads);
  }
  float* final = room(mixed, s.wanted * hidden);
  for (int64_t r = 0; r < s.wanted; r++) memcpy(final + r * hidden, in + s.last[r] * hidden, hidden * 4);
  linear(p.head, Array{final, 0}, s.wanted, logits, threads);
}
