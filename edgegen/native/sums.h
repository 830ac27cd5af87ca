// What the convolutions with fewer products have in common: sums over the channels, and what is done to what comes out.
#pragma once
#include "kernels.h"
#include "lanes.h"

// Sums are held in parts as wide as a register: gcc keeps wider ones in memory.
#if defined(__AVX512F__)
enum { PART = 16 };
#elif defined(__AVX2__)
enum { PART = 8 };
#else
enum { PART = 4 };
#endif
enum { PARTS = 16 / PART };
typedef float part __attribute__((vector_size(4 * PART)));

INLINE part load_part(const float *p) {
  part v;
  memcpy(&v, p, sizeof v);
  return v;
}
INLINE part all_part(float x) { return x - (part){0}; }

// Output channels whose sums are kept in registers.
#if defined(__AVX512F__)
enum { ROWS = 8 };
#else
enum { ROWS = 2 };
#endif

// sums [8, vectors * 16] = weights [inputs, 8] transposed times values [inputs, vectors * 16]. `vectors`: a constant, 1 or 2.
INLINE void multiply(const float *weights, const float *values, int inputs, int vectors, float *sums) {
  const int parts = vectors * PARTS;
  for (int r = 0; r < WINOGRAD_ROWS; r += ROWS) {
    part s[ROWS][2 * PARTS] = {{{0}}};
    const float *w = weights + r, *v = values;
    for (int c = 0; c < inputs; c++, w += WINOGRAD_ROWS, v += 16 * vectors)
      for (int j = 0; j < parts; j++) {
        const part value = load_part(v + PART * j);
        for (int i = 0; i < ROWS; i++) s[i][j] += w[i] * value;
      }
    for (int i = 0; i < ROWS; i++)
      for (int j = 0; j < parts; j++) memcpy(sums + (r + i) * 16 * vectors + PART * j, &s[i][j], sizeof s[i][j]);
  }
}

// multiply() for each of `points`: weights [points, inputs, 8], values [points, panel], sums [points, 8, vectors * 16].
INLINE void multiply_points(const float *weights, const float *values, int points, int inputs, int vectors, float *sums) {
  const size_t panel = winograd_panel(inputs, vectors), step = (size_t)WINOGRAD_ROWS * 16 * vectors;
  for (int i = 0; i < points; i++, weights += (size_t)WINOGRAD_ROWS * inputs, values += panel, sums += step) {
    if (vectors == 2)
      multiply(weights, values, inputs, 2, sums);
    else
      multiply(weights, values, inputs, 1, sums);
  }
}

INLINE f32x16 activate(f32x16 v, int activation, float slope) {
  if (activation == RELU) return larger(v, (f32x16){0});
  if (activation == LEAKY_RELU) {
    const i32x16 negative = v < 0.0f;
    return (f32x16)(((i32x16)(v * slope) & negative) | ((i32x16)v & ~negative));
  }
  return activation == TANH ? tanh16(v) : v;
}
