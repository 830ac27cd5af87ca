// Sixteen lanes at a time, whatever the width of the machine's registers: the compiler splits what does not fit.
#pragma once
#include <stdint.h>
#include <string.h>

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint8_t u8x64 __attribute__((vector_size(64)));

#define INLINE static inline __attribute__((always_inline))

INLINE f32x16 load16(const float *p) {
  f32x16 v;
  memcpy(&v, p, sizeof v);
  return v;
}
INLINE void store16(float *p, f32x16 v) { memcpy(p, &v, sizeof v); }
INLINE f32x16 all16(float x) { return x - (f32x16){0}; }
INLINE i32x16 same16(int32_t x) { return x - (i32x16){0}; }
INLINE u8x64 load_bytes(const uint8_t *p) {
  u8x64 v;
  memcpy(&v, p, sizeof v);
  return v;
}

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
INLINE f32x16 from_half16(const uint16_t *p) { return (f32x16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE f32x16 larger(f32x16 a, f32x16 b) { return (f32x16)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE i32x16 nearest(f32x16 v) { return (i32x16)_mm512_cvtps_epi32((__m512)v); }
INLINE void store_int8(int8_t *p, i32x16 v) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8((__m512i)v)); }
#elif defined(__AVX2__)
typedef union {
  f32x16 f;
  i32x16 i;
  __m256 m[2];
  __m256i n[2];
} halves;
INLINE f32x16 from_half16(const uint16_t *p) {
  halves v;
  v.m[0] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
  v.m[1] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)));
  return v.f;
}
INLINE f32x16 larger(f32x16 a, f32x16 b) {
  halves x = {a}, y = {b};
  x.m[0] = _mm256_max_ps(x.m[0], y.m[0]);
  x.m[1] = _mm256_max_ps(x.m[1], y.m[1]);
  return x.f;
}
INLINE i32x16 nearest(f32x16 v) {
  halves x = {v};
  x.n[0] = _mm256_cvtps_epi32(x.m[0]);
  x.n[1] = _mm256_cvtps_epi32(x.m[1]);
  return x.i;
}
#elif defined(__aarch64__)
#include <arm_neon.h>
typedef union {
  f32x16 f;
  i32x16 i;
  float32x4_t m[4];
  int32x4_t n[4];
} quarters;
INLINE f32x16 from_half16(const uint16_t *p) {
  quarters v;
  for (int j = 0; j < 4; j++) v.m[j] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * j)));
  return v.f;
}
INLINE f32x16 larger(f32x16 a, f32x16 b) {
  quarters x = {a}, y = {b};
  for (int j = 0; j < 4; j++) x.m[j] = vmaxq_f32(x.m[j], y.m[j]);
  return x.f;
}
INLINE i32x16 nearest(f32x16 v) {
  quarters x = {v};
  for (int j = 0; j < 4; j++) x.n[j] = vcvtnq_s32_f32(x.m[j]);
  return x.i;
}
#endif

#if !defined(__AVX512F__)
INLINE void store_int8(int8_t *p, i32x16 v) {
  for (int j = 0; j < 16; j++) p[j] = (int8_t)v[j];
}
#endif

// sum[lane] += four weights of the lane (0 to 15 each) times the same four activations (-127 to 127).
INLINE i32x16 dot4(i32x16 sum, u8x64 weights, const int8_t *activations) {
  int32_t four;
  memcpy(&four, activations, sizeof four);
#if defined(__AVX512VNNI__)
  return (i32x16)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights, _mm512_set1_epi32(four));
#elif defined(__AVX2__)
  union {
    u8x64 bytes;
    __m256i n[2];
  } w = {weights};
  halves s;
  s.i = sum;
  const __m256i a = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1);
  for (int j = 0; j < 2; j++)  // pairs reach 2 * 15 * 127: far from the limit of 16 bits
    s.n[j] = _mm256_add_epi32(s.n[j], _mm256_madd_epi16(_mm256_maddubs_epi16(w.n[j], a), ones));
  return s.i;
#elif defined(__aarch64__)
  union {
    u8x64 bytes;
    int8x16_t n[4];
  } w = {weights};
  quarters s;
  s.i = sum;
  const int8x16_t a = vreinterpretq_s8_s32(vdupq_n_s32(four));
  for (int j = 0; j < 4; j++) s.n[j] = vdotq_s32(s.n[j], w.n[j], a);
  return s.i;
#endif
}

// As dot4, for weights of 8 bits: signed ones, turned by ^ SIGN into what the instruction wants.
INLINE i32x16 dot4_wide(i32x16 sum, u8x64 weights, const int8_t *activations) {
#if defined(__AVX512VNNI__)
#define SIGN 128  // it wants them unsigned: 128 too large
  return dot4(sum, weights, activations);
#elif defined(__AVX2__)
#define SIGN 0
  int32_t four;
  memcpy(&four, activations, sizeof four);
  union {
    u8x64 bytes;
    __m256i n[2];
  } w = {weights};
  halves s;
  s.i = sum;
  const __m256i a = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1);
  for (int j = 0; j < 2; j++) {  // |w| * (a with w's sign): pairs reach 2 * 128 * 127, which 16 bits hold
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w.n[j]), _mm256_sign_epi8(a, w.n[j]));
    s.n[j] = _mm256_add_epi32(s.n[j], _mm256_madd_epi16(pairs, ones));
  }
  return s.i;
#elif defined(__aarch64__)
#define SIGN 0
  return dot4(sum, weights, activations);
#endif
}

#define EIGHT(v) __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
#define FOUR(v) __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
#define TWO(v) __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
#define ONE(v) __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)
INLINE float largest_of(f32x16 v) {
  v = larger(v, EIGHT(v));
  v = larger(v, FOUR(v));
  v = larger(v, TWO(v));
  return larger(v, ONE(v))[0];
}
INLINE float sum_of(f32x16 v) {
  v += EIGHT(v);
  v += FOUR(v);
  v += TWO(v);
  return v[0] + v[1];
}
INLINE int32_t total_of(i32x16 v) {
  v += EIGHT(v);
  v += FOUR(v);
  v += TWO(v);
  return v[0] + v[1];
}

// exp(x) for x <= 0, relative error below 2e-7; 0 far below. Range reduction and coefficients: Cephes, expf.c.
INLINE f32x16 exp16(f32x16 x) {
  const f32x16 magic = all16(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  x = larger(x, all16(-87.0f));
  f32x16 n = (x * 1.44269504088896341f + magic) - magic;
  f32x16 r = x - n * 0.693359375f - n * -2.12194440e-4f;
  f32x16 p = all16(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  i32x16 power = (__builtin_convertvector(n, i32x16) + 127) << 23;
  return p * (f32x16)power;
}

INLINE f32x16 tanh16(f32x16 x) {  // by exp of what is not positive; absolute error below 3e-7
  const f32x16 e = exp16(larger(x, -x) * -2.0f), bounded = (1.0f - e) / (1.0f + e);
  return (f32x16)((i32x16)bounded | ((i32x16)x & INT32_MIN));
}
