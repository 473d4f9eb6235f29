// The attention of single tokens, with the arithmetic of a chunk: a token has the same bits whether
// it is decoded or prefilled, alone or with others.
//
// As in a chunk, a score is one chain of multiply-adds over head_dim, in order, and an element of
// the result one chain over the tokens. The lanes of a vector are therefore tokens for the scores,
// for which keys are transposed, and elements of the head for the values.
#pragma once
#include "attention.hpp"

static inline vf wide(const float* at) { return load<vf>(at); }
static inline vf wide(const uint16_t* at) { return widen(at); }
static inline float wide_one(float v) { return v; }
static inline float wide_one(uint16_t v) { return widen_one(v); }

// The rows of up to PANEL consecutive tokens of one head in the paged cache.
template <class T>
struct Rows {
    const T* at[PANEL];
    int count = 0;

    void find(const T* base, const Cache& c, const int64_t* table, int token, int end) {
        const int64_t stride = (int64_t)c.layers * 2 * c.kv_heads * c.head_elements();
        count = std::min(PANEL, end - token);
        int block = token / c.size, offset = token % c.size;
        const T* row = base + table[block] * stride + (int64_t)offset * c.head_dim;
        for (int i = 0; i < count; i++, row += c.head_dim) {
            if (offset == c.size) offset = 0, row = base + table[++block] * stride;
            at[i] = row;
            offset++;
        }
    }
    // The hardware's prefetcher does not know where the next block is, so each token prefetches one
    // of the tokens that are read next. (A whole block at once fills the queue of misses and is half
    // as fast.)
    void fetch(int i, size_t byte) const {
        if (i < count) _mm_prefetch((const char*)at[i] + byte, _MM_HINT_T0);
    }
};

// Transpose: lane i of v[j] becomes lane j of v[i].
static inline void transpose(vu (&v)[LANES]) {
    vu t[LANES];
#if defined(__AVX512F__)
#define DISAGG_UNPACK(which, x, y) (vu) _mm512_unpack##which((__m512i)(x), (__m512i)(y))
#define DISAGG_LANES(x, y, lanes) (vu) _mm512_shuffle_i32x4((__m512i)(x), (__m512i)(y), lanes)
#else
#define DISAGG_UNPACK(which, x, y) (vu) _mm256_unpack##which((__m256i)(x), (__m256i)(y))
#define DISAGG_LANES(x, y, lanes) (vu) _mm256_permute2x128_si256((__m256i)(x), (__m256i)(y), lanes)
#endif
#pragma GCC unroll 8
    for (int i = 0; i < LANES; i += 2) {
        t[i] = DISAGG_UNPACK(lo_epi32, v[i], v[i + 1]);
        t[i + 1] = DISAGG_UNPACK(hi_epi32, v[i], v[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < LANES; i += 4) {
        v[i] = DISAGG_UNPACK(lo_epi64, t[i], t[i + 2]);
        v[i + 1] = DISAGG_UNPACK(hi_epi64, t[i], t[i + 2]);
        v[i + 2] = DISAGG_UNPACK(lo_epi64, t[i + 1], t[i + 3]);
        v[i + 3] = DISAGG_UNPACK(hi_epi64, t[i + 1], t[i + 3]);
    }
    // Part l of v[4j + k] now holds word 4l + k of rows 4j to 4j + 3.
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
#if defined(__AVX512F__)
        const vu a = DISAGG_LANES(v[k], v[4 + k], 0x44), b = DISAGG_LANES(v[k], v[4 + k], 0xee);
        const vu c = DISAGG_LANES(v[8 + k], v[12 + k], 0x44), d = DISAGG_LANES(v[8 + k], v[12 + k], 0xee);
        t[k] = DISAGG_LANES(a, c, 0x88);
        t[4 + k] = DISAGG_LANES(a, c, 0xdd);
        t[8 + k] = DISAGG_LANES(b, d, 0x88);
        t[12 + k] = DISAGG_LANES(b, d, 0xdd);
#else
        t[k] = DISAGG_LANES(v[k], v[4 + k], 0x20);
        t[4 + k] = DISAGG_LANES(v[k], v[4 + k], 0x31);
#endif
    }
#undef DISAGG_UNPACK
#undef DISAGG_LANES
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) v[i] = t[i];
}

// Write word w of each row into turned[w], lane by row, and return the number of vectors that a
// word takes. A word is a float or two bfloat16.
template <class T>
static inline int turn(const Rows<T>& rows, const Rows<T>& next, int head_dim, uint32_t* turned) {
    const int words = head_dim * (int)sizeof(T) / 4, halves = rows.count > LANES ? 2 : 1, stride = halves * LANES;
    for (int half = 0; half < halves; half++, turned += LANES) {
        const T* const* at = rows.at + half * LANES;
        int w = 0;
        for (; w + LANES <= words; w += LANES) {
            vu part[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) part[i] = load<vu>((const uint32_t*)at[i] + w);
            if (w * 4 % 64 == 0)
                for (int i = 0; i < LANES; i++) next.fetch(half * LANES + i, (size_t)w * 4);
            transpose(part);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) store(turned + (size_t)(w + i) * stride, part[i]);
        }
        for (; w < words; w++)
            for (int i = 0; i < LANES; i++)
                std::memcpy(turned + (size_t)w * stride + i, (const uint32_t*)at[i] + w, sizeof(uint32_t));
    }
    return halves;
}

// scores[g][lane] = q[g] . key of the lane, for G queries of `words` words each. Several chains run
// at a time, because each addition waits for the one before it.
template <int G, int HALVES, bool PAIRED, class T>
static inline void scores_for(const uint32_t* q, const uint32_t* turned, int words, int count, float* scores,
                              size_t stride) {
    const int inputs = PAIRED ? words : words * (int)(4 / sizeof(T));  // Words of a query.
    vf sums[G][HALVES] = {};
    for (int w = 0; w < words; w++) {
        vu key[HALVES];
#pragma GCC unroll 2
        for (int h = 0; h < HALVES; h++) key[h] = load<vu>(turned + (size_t)(w * HALVES + h) * LANES);
#pragma GCC unroll 8
        for (int g = 0; g < G; g++) {
            const uint32_t* query = q + (size_t)g * inputs;
#pragma GCC unroll 2
            for (int h = 0; h < HALVES; h++) {
                if constexpr (PAIRED) {
                    sums[g][h] = dot(sums[g][h], key[h], query[w] - vu{});
                } else if constexpr (sizeof(T) == 4) {
                    sums[g][h] += splat(((const float*)query)[w]) * as_float(key[h]);
                } else {
                    sums[g][h] += splat(((const float*)query)[2 * w]) * as_float(key[h] << 16);
                    sums[g][h] += splat(((const float*)query)[2 * w + 1]) * as_float(key[h] & 0xffff0000u);
                }
            }
        }
    }
    for (int g = 0; g < G; g++) std::memcpy(scores + g * stride, &sums[g], count * sizeof(float));
}

// out[g] += sum over the tokens of weights[g][token] * value, for G queries, so that a value is
// widened once for all of them. With PAIRED, a word of `weights` holds those of two tokens. Rows of
// `out` are `room` apart, a multiple of LANES that is at least D.
template <int D, int G, bool PAIRED, class T>
static inline void add_values(const uint32_t* weights, size_t stride, const Rows<T>& rows, const Rows<T>& next,
                              int head_dim, float* out, int room) {
    constexpr int WIDTH = D ? D / LANES : 1;
    for (int from = 0; from < (D ? D : head_dim); from += WIDTH * LANES) {
        const int here = D ? D : std::min(LANES, head_dim - from);
        vf sums[G][WIDTH];
        for (int g = 0; g < G; g++)
#pragma GCC unroll 16
            for (int i = 0; i < WIDTH; i++) sums[g][i] = load<vf>(out + g * room + from + i * LANES);
        for (int t = 0; t < rows.count; t += PAIRED ? 2 : 1) {
            const T *row = rows.at[t] + from, *second = rows.at[std::min(t + 1, rows.count - 1)] + from;
            T padded[LANES] = {}, padded_second[LANES] = {};
            if (D == 0 && here < LANES) {
                std::memcpy(padded, row, here * sizeof(T)), std::memcpy(padded_second, second, here * sizeof(T));
                row = padded, second = padded_second;
            }
#pragma GCC unroll 8
            for (size_t byte = 0; byte < D * sizeof(T); byte += 64) {
                next.fetch(t, byte);
                if (PAIRED) next.fetch(t + 1, byte);
            }
#pragma GCC unroll 16
            for (int i = 0; i < WIDTH; i++) {
                if constexpr (PAIRED) {
                    const vu value = from_words(row + i * LANES) | from_words(second + i * LANES) << 16;
#pragma GCC unroll 4
                    for (int g = 0; g < G; g++)
                        sums[g][i] = dot(sums[g][i], value, weights[g * stride + t / 2] - vu{});
                } else {
                    const vf value = wide(row + i * LANES);
#pragma GCC unroll 4
                    for (int g = 0; g < G; g++)
                        sums[g][i] += splat(((const float*)weights)[g * stride + t]) * value;
                }
            }
        }
        for (int g = 0; g < G; g++)
#pragma GCC unroll 16
            for (int i = 0; i < WIDTH; i++) store(out + g * room + from + i * LANES, sums[g][i]);
    }
}

// Call f(first query, their number) for the queries of a group, at most MOST at a time.
template <int MOST, class F>
static inline void by_queries(int group, const F& f) {
    for (int g = 0; g < group;) {
        const int left = std::min(group - g, MOST);
        if (left >= 8 && MOST >= 8)
            f(g, std::integral_constant<int, std::min(8, MOST)>()), g += 8;
        else if (left >= 4 && MOST >= 4)
            f(g, std::integral_constant<int, std::min(4, MOST)>()), g += 4;
        else if (left == 3 && MOST >= 3)
            f(g, std::integral_constant<int, std::min(3, MOST)>()), g += 3;
        else if (left >= 2 && MOST >= 2)
            f(g, std::integral_constant<int, std::min(2, MOST)>()), g += 2;
        else
            f(g, std::integral_constant<int, 1>()), g += 1;
    }
}

// The attention of one new token of one sequence, for one KV head: q and out are [group][head_dim],
// and keys first..length-1 are seen. `after` is the row, in elements, that is read next.
template <class T, int D, bool PAIRED>
static void attend_token(const Cache& c, int layer, int head, const int64_t* table, int first, int length, int group,
                         int64_t after, const float* q, float* out) {
    const int d = D ? D : c.head_dim, words = d * (int)sizeof(T) / 4, room = (d + LANES - 1) / LANES * LANES;
    // Tokens are paired by their positions, as in a chunk.
    const int begin = PAIRED ? first / 2 * 2 : first, seen = length - begin;
    const size_t stride = PAIRED ? (seen + 1) / 2 * 2 : seen;
    static thread_local std::vector<float> scores, sums;
    static thread_local std::vector<uint32_t> turned, queries, packed;
    scores.resize(group * stride), turned.resize((size_t)words * PANEL);
    sums.assign((size_t)group * room, 0);
    const uint32_t *inputs = (const uint32_t*)q, *weights = (const uint32_t*)scores.data();
    if constexpr (PAIRED) {
        queries.resize((size_t)group * words), packed.resize(group * stride / 2);
        for (int g = 0; g < group; g++) pack_row(q + (size_t)g * d, d, true, queries.data() + (size_t)g * words, 1);
        inputs = queries.data(), weights = packed.data();
    }
    const int query_words = PAIRED ? words : d;
    const T *data = (const T*)c.data, *keys = data + c.at(0, layer, 0, head), *values = data + c.at(0, layer, 1, head);
    Rows<T> rows, next;
    next.find(keys, c, table, begin, length);
    for (int at = begin; at < length; at += PANEL) {
        rows = next;
        for (int i = rows.count; i < PANEL; i++) rows.at[i] = rows.at[0];  // Their lanes are not used.
        const bool more = at + PANEL < length;
        next.find(more ? keys : values, c, table, more ? at + PANEL : begin, length);
        const int halves = turn(rows, next, d, turned.data());
        by_queries<LANES / 2>(group, [&](int g, auto n) {
            const auto run = halves == 1 ? scores_for<n, 1, PAIRED, T> : scores_for<n, 2, PAIRED, T>;
            run(inputs + (size_t)g * query_words, turned.data(), words, rows.count,
                scores.data() + g * stride + at - begin, stride);
        });
    }
    for (int g = 0; g < group; g++) {
        float* row = scores.data() + g * stride;
        if (begin < first) row[0] = 0;
        softmax(row + first - begin, length - first, 1.0f / std::sqrt((float)d));
        if constexpr (PAIRED) pack_row(row, seen, true, packed.data() + g * stride / 2, 1);
    }
    // The number of queries at a time that leaves registers free.
    constexpr int MOST = LANES < 16 ? 1 : D == 0 || D <= 64 ? 4 : 2;
    for (int at = begin; at < length; at += PANEL) {
        rows = next;
        if (at + PANEL < length)
            next.find(values, c, table, at + PANEL, length);
        else
            next.at[0] = data + after, next.count = 1;
        by_queries<MOST>(group, [&](int g, auto n) {
            const size_t from = g * (PAIRED ? stride / 2 : stride) + (at - begin) / (PAIRED ? 2 : 1);
            add_values<D, n, PAIRED>(weights + from, PAIRED ? stride / 2 : stride, rows, next, d,
                                     sums.data() + (size_t)g * room, room);
        });
    }
    for (int g = 0; g < group; g++) std::memcpy(out + (size_t)g * d, sums.data() + (size_t)g * room, d * sizeof(float));
}

template <class T, bool PAIRED>
static auto attend_token_of(int head_dim) {
    return head_dim == 64    ? attend_token<T, 64, PAIRED>
           : head_dim == 128 ? attend_token<T, 128, PAIRED>
                             : attend_token<T, 0, PAIRED>;
}

// The attention of a decode batch: q and out are [sequences][heads * head_dim].
static void attend_decode(Pool& pool, const Cache& c, int layer, const int64_t* tables, int width,
                          const int64_t* lengths, int sequences, int heads, int window, const float* q, float* out) {
    const int group = heads / c.kv_heads, jobs = sequences * c.kv_heads;
    const auto attend = (c.bf16 ? attend_token_of<uint16_t, PAIRS> : attend_token_of<float, false>)(c.head_dim);
    pool.run([&](int part, int parts) {
        for (int job = part; job < jobs; job += parts) {
            const int s = job / c.kv_heads, head = job % c.kv_heads, length = (int)lengths[s];
            const int first = window > 0 ? std::max(0, length - window) : 0, then = std::min(job + parts, jobs - 1);
            const int64_t after = c.at(tables[(size_t)(then / c.kv_heads) * width], layer, 0, then % c.kv_heads);
            const size_t at = ((size_t)s * heads + (size_t)head * group) * c.head_dim;
            attend(c, layer, head, tables + (size_t)s * width, first, length, group, after, q + at, out + at);
        }
    });
}

// The products are of pairs if the CPU has such an instruction and the cache is bfloat16; queries
// and probabilities are then rounded, too. A single token is computed as in a decode step, which is
// faster.
static void attend_chunk(Pool& pool, const Cache& c, int layer, const int64_t* table, int tokens, int length, int heads,
                         int window, const float* q, float* out) {
    const int64_t all = length;
    if (tokens == 1) return attend_decode(pool, c, layer, table, 0, &all, 1, heads, window, q, out);
    const auto attend = PAIRS && c.bf16 ? attend_chunk_as<FromBf16> : attend_chunk_as<FromF32>;
    attend(pool, c, layer, table, tokens, length, heads, window, q, out);
}
