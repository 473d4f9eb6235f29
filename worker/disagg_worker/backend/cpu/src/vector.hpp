// Vectors of the widest kind that this build targets (8 floats with AVX2, 16 with AVX-512), by the
// compiler's vector extension, so that one source serves both builds.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <immintrin.h>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
// A panel of a packed weight holds this many output features side by side.
constexpr int PANEL = 2 * LANES;

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));

template <class V>
static inline V load(const void* at) {
    V v;
    __builtin_memcpy(&v, at, sizeof v);
    return v;
}
template <class V>
static inline void store(void* at, V v) {
    __builtin_memcpy(at, &v, sizeof v);
}
static inline vf splat(float x) { return x - vf{}; }
static inline vf as_float(vu v) { return (vf)v; }

// LANES unsigned bytes or 16-bit words as 32-bit integers. (These are intrinsics because gcc splits
// __builtin_convertvector here.)
static inline vi from_bytes(const uint8_t* at) {
#if defined(__AVX512F__)
    return (vi)_mm512_cvtepu8_epi32(load<__m128i>(at));
#else
    return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)at));
#endif
}
static inline vu from_words(const uint16_t* at) {
#if defined(__AVX512F__)
    return (vu)_mm512_cvtepu16_epi32(load<__m256i>(at));
#else
    return (vu)_mm256_cvtepu16_epi32(load<__m128i>(at));
#endif
}

// A bfloat16 is the upper half of a float.
static inline vf widen(const uint16_t* at) { return as_float(from_words(at) << 16); }
static inline float widen_one(uint16_t v) {
    uint32_t bits = (uint32_t)v << 16;
    float f;
    __builtin_memcpy(&f, &bits, 4);
    return f;
}
// Round to the nearest, ties to even; NaN stays NaN.
static inline uint16_t narrow(float f) {
    uint32_t bits;
    __builtin_memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// The sum of the lanes, added in an order that is the same for every caller.
static inline float sum(vf v) {
    float a[LANES];
    store(a, v);
    for (int step = LANES / 2; step > 0; step /= 2)
        for (int i = 0; i < step; i++) a[i] += a[i + step];
    return a[0];
}

// e^x, to 2 ulp for x in [-87, 88]; it is 0 below and e^88 above. It uses Cody-Waite reduction and
// the polynomial of Cephes' expf.
static inline vf exponential(vf x) {
    vf low = splat(-87.0f);
    vi tiny = x < low;
    x = tiny ? low : x;
    x = x > 88.0f ? splat(88.0f) : x;
    vf n = x * 1.44269504088896341f;
    vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer.
    vf r = (n + magic) - magic;
    vf f = x - r * 0.693359375f - r * -2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    vi exponent = (__builtin_convertvector(r, vi) + 127) << 23;
    vf out = p * (vf)exponent;
    return tiny ? vf{} : out;
}
