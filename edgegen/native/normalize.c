// Group normalization (Wu and He, 2018), with the sigmoid linear unit (Elfwing et al., 2017) that often follows.
#include <math.h>

#include "kernels.h"
#include "lanes.h"

enum { CHUNK = 4096 };  // values that are read twice while the first-level cache has them

INLINE f32x16 load_some(const float *p, size_t count) {
  f32x16 v = {0};
  memcpy(&v, p, sizeof(float) * count);
  return v;
}

static double total(const float *x, size_t count) {
  f32x16 sums[4] = {{0}};
  size_t i = 0;
  for (; i + 64 <= count; i += 64)
    for (int j = 0; j < 4; j++) sums[j] += load16(x + i + 16 * j);
  for (; i + 16 <= count; i += 16) sums[0] += load16(x + i);
  if (i < count) sums[0] += load_some(x + i, count - i);
  return sum_of(sums[0] + sums[1] + sums[2] + sums[3]);
}

static double spread(const float *x, size_t count, float mean) {  // the sum of the squares of the distances to the mean
  f32x16 sums[4] = {{0}};
  size_t i = 0;
  for (; i + 64 <= count; i += 64)
    for (int j = 0; j < 4; j++) {
      const f32x16 gap = load16(x + i + 16 * j) - mean;
      sums[j] += gap * gap;
    }
  for (; i + 16 <= count; i += 16) {
    const f32x16 gap = load16(x + i) - mean;
    sums[0] += gap * gap;
  }
  double sum = sum_of(sums[0] + sums[1] + sums[2] + sums[3]);
  for (; i < count; i++) sum += (double)(x[i] - mean) * (x[i] - mean);
  return sum;
}

// Chunk by chunk, each around its own mean, then joined (Chan, Golub and LeVeque, 1979): what a sum of squares loses, stays.
static void moments(const float *x, size_t count, double *mean, double *variance) {
  double middle = 0, squares = 0;
  for (size_t seen = 0; seen < count;) {
    const size_t some = count - seen < CHUNK ? count - seen : CHUNK;
    const double own = total(x + seen, some) / (double)some, gap = own - middle;
    const float rounded = (float)own;
    const double off = own - rounded;
    squares += spread(x + seen, some, rounded) - (double)some * off * off;
    squares += gap * gap * ((double)seen * (double)some / (double)(seen + some));
    middle += gap * (double)some / (double)(seen + some);
    seen += some;
  }
  *mean = middle;
  *variance = squares > 0 ? squares / (double)count : 0;
}

INLINE f32x16 times_sigmoid(f32x16 x) {
  const f32x16 e = exp16(-larger(x, -x));
  const i32x16 is_negative = x < 0.0f;
  const f32x16 share = (f32x16)(((i32x16)e & is_negative) | ((i32x16)all16(1) & ~is_negative));
  return x * share / (e + 1.0f);
}

INLINE void apply(const float *x, size_t count, float factor, float offset, int silu, float *y) {
  size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const f32x16 v = load16(x + i) * factor + offset;
    store16(y + i, silu ? times_sigmoid(v) : v);
  }
  if (i < count) {
    f32x16 v = load_some(x + i, count - i) * factor + offset;
    if (silu) v = times_sigmoid(v);
    memcpy(y + i, &v, sizeof(float) * (count - i));
  }
}

void OWN(normalize)(const Group *g) {
  double mean, variance;
  moments(g->values, g->channels * g->plane, &mean, &variance);
  const double inverse = 1 / sqrt(variance + g->epsilon);
  for (size_t c = 0; c < g->channels; c++) {
    const float *x = g->values + c * g->plane;
    const float factor = (float)(g->scale[c] * inverse), offset = (float)(g->bias[c] - mean * g->scale[c] * inverse);
    if (g->silu)
      apply(x, g->plane, factor, offset, 1, g->output + c * g->plane);
    else
      apply(x, g->plane, factor, offset, 0, g->output + c * g->plane);
  }
}
