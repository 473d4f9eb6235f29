// The vector type of one instruction set. The same sources are compiled once for AVX2+FMA (W = 8) and once for AVX-512F (W = 16);
// Python loads the library that the CPU can run. Sums over a matrix's input axis are one FMA chain per output, so both give the same bits.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
typedef __m512 vf;
typedef __m512i vi;
constexpr int W = 16;
constexpr int MAX_ROWS = 12;  // 24 of 32 registers hold sums
INLINE vf vload(const float* p) { return _mm512_loadu_ps(p); }
INLINE void vstore(float* p, vf x) { _mm512_storeu_ps(p, x); }
INLINE vf vset(float x) { return _mm512_set1_ps(x); }
INLINE vf vfma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf vfnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }
INLINE vf vmax(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf vmin(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE vf vround(vf a) { return _mm512_roundscale_ps(a, 0); }
INLINE vi viload(const void* p) { return _mm512_loadu_si512(p); }
INLINE vi viset(int x) { return _mm512_set1_epi32(x); }
INLINE vi viand(vi a, vi b) { return _mm512_and_si512(a, b); }
INLINE vi vshl16(vi a) { return _mm512_slli_epi32(a, 16); }
INLINE vi vshr16(vi a) { return _mm512_srli_epi32(a, 16); }
INLINE vf vfloat(vi a) { return _mm512_cvtepi32_ps(a); }
INLINE vf vbits(vi a) { return _mm512_castsi512_ps(a); }
INLINE vf vpow2(vf n) { return vbits(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), viset(127)), 23)); }
INLINE vf vload_bf16(const uint16_t* p) {
  return vbits(vshl16(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p))));
}
INLINE vi vload_u8(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
INLINE float vsum(vf x) { return _mm512_reduce_add_ps(x); }
INLINE float vhighest(vf x) { return _mm512_reduce_max_ps(x); }
#else
typedef __m256 vf;
typedef __m256i vi;
constexpr int W = 8;
constexpr int MAX_ROWS = 6;  // 12 of 16 registers hold sums
INLINE vf vload(const float* p) { return _mm256_loadu_ps(p); }
INLINE void vstore(float* p, vf x) { _mm256_storeu_ps(p, x); }
INLINE vf vset(float x) { return _mm256_set1_ps(x); }
INLINE vf vfma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf vfnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
INLINE vf vmax(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf vmin(vf a, vf b) { return _mm256_min_ps(a, b); }
INLINE vf vround(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vi viload(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
INLINE vi viset(int x) { return _mm256_set1_epi32(x); }
INLINE vi viand(vi a, vi b) { return _mm256_and_si256(a, b); }
INLINE vi vshl16(vi a) { return _mm256_slli_epi32(a, 16); }
INLINE vi vshr16(vi a) { return _mm256_srli_epi32(a, 16); }
INLINE vf vfloat(vi a) { return _mm256_cvtepi32_ps(a); }
INLINE vf vbits(vi a) { return _mm256_castsi256_ps(a); }
INLINE vf vpow2(vf n) { return vbits(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), viset(127)), 23)); }
INLINE vf vload_bf16(const uint16_t* p) { return vbits(vshl16(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)))); }
INLINE vi vload_u8(const uint8_t* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
INLINE float vsum(vf x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
INLINE float vhighest(vf x) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
#endif

constexpr int NR = 2 * W;  // outputs of one weight panel

// e^x by range reduction to [-ln2/2, ln2/2] and a Taylor polynomial of degree 7: relative error below 3e-7; 0 below -87.
INLINE vf vexp(vf x) {
  vf clipped = vmin(vmax(x, vset(-87.0f)), vset(88.0f));
  vf n = vround(clipped * vset(1.44269504088896341f));
  vf r = vfnma(n, vset(0.693359375f), clipped);
  r = vfnma(n, vset(-2.12194440e-4f), r);
  vf p = vset(1.0f / 5040);
  p = vfma(p, r, vset(1.0f / 720));
  p = vfma(p, r, vset(1.0f / 120));
  p = vfma(p, r, vset(1.0f / 24));
  p = vfma(p, r, vset(1.0f / 6));
  p = vfma(p, r, vset(0.5f));
  p = vfma(p, r, vset(1.0f));
  p = vfma(p, r, vset(1.0f));
  return p * vpow2(n);
}

INLINE uint16_t to_bf16(float x) {  // to nearest, ties to even; NaN stays NaN
  uint32_t u;
  memcpy(&u, &x, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40);
  return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}
INLINE float from_bf16(uint16_t h) {
  uint32_t u = (uint32_t)h << 16;
  float x;
  memcpy(&x, &u, 4);
  return x;
}

// An array of float32 (bf16 == 0) or bfloat16.
struct Array {
  void* data;
  int64_t bf16;
  vf load(int64_t i) const { return bf16 ? vload_bf16((const uint16_t*)data + i) : vload((const float*)data + i); }
  float get(int64_t i) const { return bf16 ? from_bf16(((const uint16_t*)data)[i]) : ((const float*)data)[i]; }
  float set(int64_t i, float x) const {  // returns what was stored
    if (!bf16) return ((float*)data)[i] = x;
    uint16_t h = to_bf16(x);
    ((uint16_t*)data)[i] = h;
    return from_bf16(h);
  }
};
