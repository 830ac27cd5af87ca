// Attention over a cache of keys and values.
#include <math.h>

#include "kernels.h"
#include "lanes.h"

INLINE f32x16 pair_sums(f32x16 a, f32x16 b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

// The sum of each of sixteen vectors.
INLINE f32x16 sums_of(f32x16 *v) {
  for (int count = 8; count; count /= 2)
    for (int j = 0; j < count; j++) v[j] = pair_sums(v[2 * j], v[2 * j + 1]);
  return v[0];
}

INLINE void transpose(const float *keys, int size, f32x16 *turned) {
  for (int d = 0; d < size; d += 16) {
    f32x16 v[16], w[16];
    for (int j = 0; j < 16; j++) v[j] = load16(keys + j * size + d);
    for (int round = 0; round < 4; round++) {
      for (int j = 0; j < 8; j++) {
        w[2 * j] = __builtin_shufflevector(v[j], v[j + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        w[2 * j + 1] = __builtin_shufflevector(v[j], v[j + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
      }
      for (int j = 0; j < 16; j++) v[j] = w[j];
    }
    for (int j = 0; j < 16; j++) turned[d + j] = v[j];
  }
}

// Scores of 16 keys for up to four rows. The keys are read in the order in which they lie, once.
INLINE void score_rows(const float *const *rows, int count, const float *keys, int size, f32x16 *scores) {
  f32x16 v[4][16];
  for (int j = 0; j < 16; j++, keys += size) {
    f32x16 sum[4] = {{0}};
    for (int d = 0; d < size; d += 16) {
      const f32x16 key = load16(keys + d);
      for (int r = 0; r < count; r++) sum[r] += load16(rows[r] + d) * key;
    }
    for (int r = 0; r < count; r++) v[r][j] = sum[r];
  }
  for (int r = 0; r < count; r++) scores[r] = sums_of(v[r]);
}

static void score_few(const float *const *rows, int count, const float *keys, int size, f32x16 *scores) {
  for (; count >= 4; count -= 4, rows += 4, scores += 4) score_rows(rows, 4, keys, size, scores);
  if (count == 3) score_rows(rows, 3, keys, size, scores);
  if (count == 2) score_rows(rows, 2, keys, size, scores);
  if (count == 1) score_rows(rows, 1, keys, size, scores);
}

// Scores of 16 keys for many rows: the keys are turned once, then each lane is a key.
static void score_many(const float *const *rows, int count, const float *keys, int size, f32x16 *scores) {
  f32x16 turned[MAX_HEAD];
  transpose(keys, size, turned);
  int r = 0;
  for (; r + 8 <= count; r += 8) {
    f32x16 v[8];
    for (int i = 0; i < 8; i++) v[i] = (f32x16){0};
    for (int d = 0; d < size; d++)
      for (int i = 0; i < 8; i++) v[i] += turned[d] * rows[r + i][d];
    for (int i = 0; i < 8; i++) scores[r + i] = v[i];
  }
  for (; r < count; r++) {
    f32x16 v = {0}, w = {0};
    for (int d = 0; d < size; d += 2) {
      v += turned[d] * rows[r][d];
      w += turned[d + 1] * rows[r][d + 1];
    }
    scores[r] = v + w;
  }
}

// mean[row] += sum over 16 keys of weight[row][key] * value[key], for up to four rows and `width` numbers of a head.
INLINE void add_rows(const f32x16 *weights, int count, const float *values, int size, int width, float *mean) {
  f32x16 sum[4][4];
  for (int r = 0; r < count; r++)
    for (int d = 0; d < width; d++) sum[r][d] = load16(mean + r * size + 16 * d);
  for (int j = 0; j < 16; j++)
    for (int d = 0; d < width; d++) {
      const f32x16 value = load16(values + j * size + 16 * d);
      for (int r = 0; r < count; r++) sum[r][d] += value * weights[r][j];
    }
  for (int r = 0; r < count; r++)
    for (int d = 0; d < width; d++) store16(mean + r * size + 16 * d, sum[r][d]);
}

INLINE void add_columns(const f32x16 *weights, int count, const float *values, int size, int width, float *mean) {
  for (; count >= 4; count -= 4, weights += 4, mean += 4 * size) add_rows(weights, 4, values, size, width, mean);
  if (count == 3) add_rows(weights, 3, values, size, width, mean);
  if (count == 2) add_rows(weights, 2, values, size, width, mean);
  if (count == 1) add_rows(weights, 1, values, size, width, mean);
}

static void add_values(const f32x16 *weights, int count, const float *values, int size, float *mean) {
  int d = 0;
  for (; d + 64 <= size; d += 64) add_columns(weights, count, values + d, size, 4, mean + d);
  for (; d < size; d += 16) add_columns(weights, count, values + d, size, 1, mean + d);
}

INLINE f32x16 soft_cap(f32x16 scores, float cap) {  // cap * tanh(scores / cap), by exp of what is not positive
  const f32x16 size = larger(scores, -scores) * (-2.0f / cap);
  const f32x16 e = exp16(size), bounded = cap * (1.0f - e) / (1.0f + e);
  return (f32x16)((i32x16)bounded | ((i32x16)scores & INT32_MIN));
}

// Only the keys from..to-1 of the sixteen count.
INLINE f32x16 keep(f32x16 scores, int from, int to) {
  if (from <= 0 && to >= 16) return scores;
  for (int j = 0; j < 16; j++)
    if (j < from || j >= to) scores[j] = -INFINITY;
  return scores;
}

// Softmax as it goes (Milakov and Gimelshein, 2018): what was summed is scaled down whenever a larger score comes.
INLINE void take_in(f32x16 *scores, int row, int size, Partial *p) {
  const float top = largest_of(*scores);
  if (top > p->largest[row]) {
    const float shrink = expf(p->largest[row] - top);
    for (int d = 0; d < size; d += 16) store16(p->mean + row * size + d, load16(p->mean + row * size + d) * shrink);
    p->sum[row] *= shrink;
    p->largest[row] = top;
  }
  if (p->largest[row] == -INFINITY) {  // no key yet: the weights are zero, not exp(0)
    *scores = (f32x16){0};
    return;
  }
  const f32x16 gap = *scores - p->largest[row];
  *scores = (f32x16)((i32x16)exp16(gap) & (gap > -87.0f));
  p->sum[row] += sum_of(*scores);
}

void OWN(attend)(const Attention *a, int kv_head, int first_query, int last_query, int first_key, int last_key, Partial *p) {
  const int group = a->heads / a->kv_heads, count = group * (last_query - first_query), size = a->size;
  const float *rows[MAX_ROWS];
  f32x16 scores[MAX_ROWS];
  for (int r = 0; r < count; r++) {
    rows[r] = a->query + ((size_t)(kv_head * group + r % group) * a->tokens + first_query + r / group) * size;
    p->largest[r] = -INFINITY;
    p->sum[r] = 0;
  }
  memset(p->mean, 0, sizeof(float) * count * size);
  const float *head_keys = a->keys + (size_t)kv_head * a->capacity * size;
  const float *head_values = a->values + (size_t)kv_head * a->capacity * size;
  float spare_keys[16 * MAX_HEAD], spare_values[16 * MAX_HEAD];
  for (int key = first_key; key < last_key; key += 16) {
    const float *keys = head_keys + (size_t)key * size, *values = head_values + (size_t)key * size;
    const int left = a->past + a->tokens - key;
    if (left < 16) {  // what lies behind may be anything, also not a number
      memset(spare_keys, 0, sizeof(float) * 16 * size);
      memset(spare_values, 0, sizeof(float) * 16 * size);
      memcpy(spare_keys, keys, sizeof(float) * left * size);
      memcpy(spare_values, values, sizeof(float) * left * size);
      keys = spare_keys;
      values = spare_values;
    }
    (count < 8 ? score_few : score_many)(rows, count, keys, size, scores);
    for (int r = 0; r < count; r++) {
      const int end = a->past + first_query + r / group + 1, begin = a->window && end > a->window ? end - a->window : 0;
      if (a->softcap > 0) scores[r] = soft_cap(scores[r], a->softcap);
      scores[r] = keep(scores[r], begin - key, (end < last_key ? end : last_key) - key);
      take_in(&scores[r], r, size, p);
    }
    add_values(scores, count, values, size, p->mean);
  }
}

void OWN(join)(const Attention *a, int kv_head, int first_query, int last_query, int pieces, const Partial *p) {
  const int group = a->heads / a->kv_heads, count = group * (last_query - first_query), size = a->size;
  for (int r = 0; r < count; r++) {
    float largest = -INFINITY, sum = 0;
    for (int i = 0; i < pieces; i++) largest = p[i].largest[r] > largest ? p[i].largest[r] : largest;
    float *output = a->output + ((size_t)(first_query + r / group) * a->heads + kv_head * group + r % group) * size;
    memset(output, 0, sizeof(float) * size);
    for (int i = 0; i < pieces; i++) {
      const float share = p[i].sum[r] > 0 ? expf(p[i].largest[r] - largest) : 0;
      sum += share * p[i].sum[r];
      for (int d = 0; d < size; d += 16)
        store16(output + d, load16(output + d) + share * load16(p[i].mean + (size_t)r * size + d));
    }
    for (int d = 0; d < size; d += 16) store16(output + d, load16(output + d) / sum);
  }
}
