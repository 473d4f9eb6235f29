// The packed formats of weights, and their conversion to the operands of a product: [out /
// PANEL][steps][PANEL], so that a tile of the result reads one stream. A step is one input of
// float32 weights and two inputs of all others.
#pragma once
#include "vector.hpp"

enum Kind : int32_t { F32 = 0, BF16 = 1, INT8 = 2, INT4 = 3 };

// On a CPU that multiplies pairs of bfloat16 (AVX512_BF16), inputs are rounded to bfloat16 for all
// weights but float32 ones, which is twice as fast.
#if defined(__AVX512BF16__)
constexpr bool PAIRS = true;
static inline vf dot(vf sum, vu weights, vu inputs) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weights, (__m512bh)inputs);
}
// Floats 0..15, in `low`, and 16..31, in `high`, as bfloat16, two per word.
static inline vu rounded(vf low, vf high) { return (vu)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low); }
#else
constexpr bool PAIRS = false;
static inline vf dot(vf sum, vu, vu) { return sum; }
static inline vu rounded(vf, vf) { return vu{}; }
#endif

// `bytes` is the size of a step of a panel, whose second LANES features begin at bytes / 2. `first`
// and `second` return one half's weights of the step's first and second input as floats; `pair`
// returns both as bfloat16 in the halves of a word. Integers up to 255 are exact in bfloat16.
struct FromF32 {
    static constexpr int inputs = 1, bytes = PANEL * 4;
    static constexpr bool grouped = false, paired = false;
    static vf first(const uint8_t* at) { return load<vf>(at); }
    static vf second(const uint8_t*) { return vf{}; }
    static vu pair(const uint8_t*) { return vu{}; }
};
// A word holds one feature's weights of both inputs, the first in the low half.
struct FromBf16 {
    static constexpr int inputs = 2, bytes = PANEL * 4;
    static constexpr bool grouped = false, paired = PAIRS;
    static vf first(const uint8_t* at) { return as_float(load<vu>(at) << 16); }
    static vf second(const uint8_t* at) { return as_float(load<vu>(at) & 0xffff0000u); }
    static vu pair(const uint8_t* at) { return load<vu>(at); }
};
// A 16-bit word holds one feature's weights of both inputs, the first in the low byte.
struct FromInt8 {
    static constexpr int inputs = 2, bytes = PANEL * 2;
    static constexpr bool grouped = true, paired = PAIRS;
    static vf first(const uint8_t* at) {
        return __builtin_convertvector((vi)(from_words((const uint16_t*)at) & 255), vf);
    }
    static vf second(const uint8_t* at) {
        return __builtin_convertvector((vi)(from_words((const uint16_t*)at) >> 8), vf);
    }
    static vu pair(const uint8_t* at) {
        return rounded(__builtin_convertvector(from_bytes(at), vf),
                       __builtin_convertvector(from_bytes(at + LANES), vf));
    }
};
// A byte holds one feature's weights of both inputs, the first in the low half.
struct FromInt4 {
    static constexpr int inputs = 2, bytes = PANEL;
    static constexpr bool grouped = true, paired = PAIRS;
    static vf first(const uint8_t* at) { return __builtin_convertvector(from_bytes(at) & 15, vf); }
    static vf second(const uint8_t* at) { return __builtin_convertvector(from_bytes(at) >> 4, vf); }
    static vu pair(const uint8_t* at) {
#if defined(__AVX512BF16__)
        // The values 0..15 as bfloat16, twice: the instruction looks up five bits of each 16, and
        // the fifth is to make no difference.
        alignas(64) static constexpr uint16_t table[32] = {
            0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120,
            0x4130, 0x4140, 0x4150, 0x4160, 0x4170, 0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0,
            0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170};
        vu bytes = (vu)from_bytes(at);
        return (vu)_mm512_permutexvar_epi16((__m512i)(bytes | bytes << 12), _mm512_load_si512(table));
#else
        return vu{};
#endif
    }
};

struct Matrix {
    int32_t kind, in, out, group;
    const uint8_t* data;  // [panels][steps][PANEL], packed.
    const float* scale;   // [panels][in / group][PANEL].
    const float* zero;    // The same shape.
    const float* bias;    // [panels * PANEL], or null.
};

static inline int inputs_per_step(int kind) { return kind == F32 ? 1 : 2; }
static inline int step_bytes(int kind) {
    return kind == F32 || kind == BF16 ? PANEL * 4 : kind == INT8 ? PANEL * 2 : PANEL;
}

// Pack rows `from`..`from + rows` of a weight [out][in] (floats, bfloat16, or one value per byte)
// into their panels; `from` is a multiple of PANEL.
static void pack(int kind, int in, int from, int rows, const void* source, uint8_t* data) {
    const int inputs = inputs_per_step(kind), steps = (in + inputs - 1) / inputs, bytes = step_bytes(kind);
    for (int n0 = 0; n0 < rows; n0 += PANEL) {
        uint8_t* panel = data + (size_t)(from + n0) / PANEL * steps * bytes;
        std::memset(panel, 0, (size_t)steps * bytes);
        const int here = std::min(PANEL, rows - n0);
        for (int i = 0; i < here; i++)
            for (int k = 0; k < in; k++) {
                const size_t at = (size_t)(n0 + i) * in + k;
                uint8_t* to = panel + (size_t)(k / inputs) * bytes;
                const int place = 2 * i + k % 2;
                if (kind == F32)
                    ((float*)to)[i] = ((const float*)source)[at];
                else if (kind == BF16)
                    ((uint16_t*)to)[place] = ((const uint16_t*)source)[at];
                else if (kind == INT8)
                    to[place] = ((const uint8_t*)source)[at];
                else
                    to[i] |= ((const uint8_t*)source)[at] << (4 * (k % 2));
            }
    }
}
