// The functions that Python calls, one of which runs a whole decode step. Activations are float;
// the cache is float or bfloat16.
#include "decode_attention.hpp"

// The norm over `n` floats: weight * x / sqrt(mean(x^2) + eps).
static void norm_row(const float* x, const float* weight, float eps, int n, float* out) {
    vf squares{};
    float rest = 0;
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
        vf v = load<vf>(x + i);
        squares += v * v;
    }
    for (; i < n; i++) rest += x[i] * x[i];
    const float scale = 1.0f / std::sqrt((sum(squares) + rest) / n + eps);
    for (i = 0; i < n; i++) out[i] = weight[i] * (x[i] * scale);
}

static void gate_row(const float* gate_up, int n, float* out) {
    const float *gate = gate_up, *up = gate_up + n;
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
        vf g = load<vf>(gate + i);
        store(out + i, g / (1.0f + exponential(-g)) * load<vf>(up + i));
    }
    for (; i < n; i++) out[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

// Split a row of the fused projection, norm and rotate q and k, write k and v into the cache at
// `slot`, and write q to `q`.
static void store_row(const Cache& c, int layer, int heads, const float* qkv, const float* q_norm, const float* k_norm,
                      float eps, const float* cos, const float* sin, int64_t slot, float* q) {
    const int d = c.head_dim, half = d / 2;
    float room[1024];
    const int64_t block = slot / c.size, offset = slot % c.size;
    for (int h = 0; h < heads + 2 * c.kv_heads; h++) {
        const float* in = qkv + h * d;
        const bool value = h >= heads + c.kv_heads, query = h < heads;
        const float* norm = value ? nullptr : query ? q_norm : k_norm;
        if (norm) norm_row(in, norm, eps, d, room), in = room;
        float turned[1024];
        if (value)
            std::memcpy(turned, in, d * sizeof(float));
        else
            for (int i = 0; i < half; i++) {
                turned[i] = in[i] * cos[i] - in[i + half] * sin[i];
                turned[i + half] = in[i + half] * cos[i + half] + in[i] * sin[i + half];
            }
        if (query) {
            std::memcpy(q + h * d, turned, d * sizeof(float));
            continue;
        }
        const int head = value ? h - heads - c.kv_heads : h - heads;
        const int64_t to = c.at(block, layer, value, head) + offset * d;
        if (c.bf16)
            for (int i = 0; i < d; i++) ((uint16_t*)c.data)[to + i] = narrow(turned[i]);
        else
            std::memcpy((float*)c.data + to, turned, d * sizeof(float));
    }
}

struct Layer {
    const float *norm_in, *norm_mlp, *q_norm, *k_norm;
    float head_eps;
    int32_t window;
    Matrix qkv, out, gate_up, down;
};

struct Network {
    int32_t layers, heads, hidden, inner, vocab;
    float eps;
    const Layer* layer;
    const float* norm;
    Matrix head;
    const float *cos, *sin;  // [positions][head_dim].
};

extern "C" {

int disagg_lanes() { return LANES; }
int disagg_panel() { return PANEL; }
int disagg_pairs() { return PAIRS; }
size_t disagg_sizes(int which) {
    return which == 0   ? sizeof(Matrix)
           : which == 1 ? sizeof(Layer)
           : which == 2 ? sizeof(Network)
                        : sizeof(Cache);
}

void* disagg_pool(int threads) { return new Pool(threads); }
void disagg_pool_free(void* pool) { delete (Pool*)pool; }

void disagg_pack(int kind, int in, int from, int rows, const void* source, uint8_t* data) {
    pack(kind, in, from, rows, source, data);
}

void disagg_matmul(void* pool, const Matrix* a, const float* x, float* y, int rows, int add) {
    matmul(*(Pool*)pool, *a, x, y, rows, add);
}

void disagg_norm(const float* x, const float* weight, float eps, int rows, int n, float* out) {
    for (int r = 0; r < rows; r++) norm_row(x + (size_t)r * n, weight, eps, n, out + (size_t)r * n);
}

void disagg_gated(const float* gate_up, int rows, int n, float* out) {
    for (int r = 0; r < rows; r++) gate_row(gate_up + (size_t)r * 2 * n, n, out + (size_t)r * n);
}

void disagg_store_qkv(const Cache* c, int layer, int heads, const float* qkv, const float* q_norm, const float* k_norm,
                      float eps, const float* cos, const float* sin, const int64_t* positions, const int64_t* slots,
                      int rows, float* q) {
    const int d = c->head_dim;
    for (int r = 0; r < rows; r++)
        store_row(*c, layer, heads, qkv + (size_t)r * (heads + 2 * c->kv_heads) * d, q_norm, k_norm, eps,
                  cos + positions[r] * d, sin + positions[r] * d, slots[r], q + (size_t)r * heads * d);
}

void disagg_attend_decode(void* pool, const Cache* c, int layer, const int64_t* tables, int width,
                          const int64_t* lengths, int sequences, int heads, int window, const float* q, float* out) {
    attend_decode(*(Pool*)pool, *c, layer, tables, width, lengths, sequences, heads, window, q, out);
}

void disagg_attend_chunk(void* pool, const Cache* c, int layer, const int64_t* table, int tokens, int length, int heads,
                         int window, const float* q, float* out) {
    attend_chunk(*(Pool*)pool, *c, layer, table, tokens, length, heads, window, q, out);
}

// Run one token of every sequence through all layers. x [sequences][hidden] holds the embeddings
// and is overwritten; the result is logits [sequences][vocab].
void disagg_decode(void* pool_, const Network* net, const Cache* c, float* x, const int64_t* positions,
                   const int64_t* slots, const int64_t* tables, int width, const int64_t* lengths, int sequences,
                   float* logits) {
    Pool& pool = *(Pool*)pool_;
    const int d = c->head_dim, n = sequences, q_width = net->heads * d, qkv_width = q_width + 2 * c->kv_heads * d;
    static thread_local std::vector<float> normed, qkv, q, attended, gate_up, inner;
    normed.resize((size_t)n * net->hidden);
    qkv.resize((size_t)n * qkv_width);
    q.resize((size_t)n * q_width);
    attended.resize((size_t)n * q_width);
    gate_up.resize((size_t)n * 2 * net->inner);
    inner.resize((size_t)n * net->inner);
    for (int i = 0; i < net->layers; i++) {
        const Layer& l = net->layer[i];
        disagg_norm(x, l.norm_in, net->eps, n, net->hidden, normed.data());
        matmul(pool, l.qkv, normed.data(), qkv.data(), n, false);
        disagg_store_qkv(c, i, net->heads, qkv.data(), l.q_norm, l.k_norm, l.head_eps, net->cos, net->sin, positions,
                         slots, n, q.data());
        attend_decode(pool, *c, i, tables, width, lengths, n, net->heads, l.window, q.data(), attended.data());
        matmul(pool, l.out, attended.data(), x, n, true);
        disagg_norm(x, l.norm_mlp, net->eps, n, net->hidden, normed.data());
        matmul(pool, l.gate_up, normed.data(), gate_up.data(), n, false);
        disagg_gated(gate_up.data(), n, net->inner, inner.data());
        matmul(pool, l.down, inner.data(), x, n, true);
    }
    disagg_norm(x, net->norm, net->eps, n, net->hidden, normed.data());
    matmul(pool, net->head, normed.data(), logits, n, false);
}
}
