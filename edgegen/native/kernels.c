// Matrix products with weights of 4 and 8 bits, and attention over a cache: compiled once for each instruction set.
#include "kernels.h"

#include <math.h>

#include "lanes.h"

static void quantize(const float *input, int blocks, int8_t *codes, float *scales, int32_t *sums) {
  for (int b = 0; b < blocks; b++, input += BLOCK, codes += BLOCK) {
    f32x16 x = load16(input), y = load16(input + 16);
    const float top = largest_of(larger(larger(x, -x), larger(y, -y)));
    const float inverse = top > 0 ? 127.0f / top : 0;
    const i32x16 p = nearest(x * inverse), q = nearest(y * inverse);
    store_int8(codes, p);
    store_int8(codes + 16, q);
    scales[b] = top / 127.0f;
    sums[b] = total_of(p + q);
  }
}

// The codes of a record, four inputs of each row at a time; the offset of these codes, which is to be taken back.
INLINE int unpack(const uint8_t *record, int bits, u8x64 *weights) {
  for (int j = 0; j < 4; j++) {
    if (bits == 4) {
      const u8x64 pair = load_bytes(record + 64 * j);
      weights[j] = pair & 15;
      weights[4 + j] = pair >> 4;
    } else {
      weights[j] = load_bytes(record + 64 * j) ^ SIGN;
      weights[4 + j] = load_bytes(record + 64 * (4 + j)) ^ SIGN;
    }
  }
  return bits == 4 ? 8 : SIGN;
}

// One tile of 16 rows for `tokens` tokens; `bits` and `tokens` are constants wherever this is called.
INLINE void tile(const uint8_t *record, int bits, int blocks, int tokens, const int8_t *codes, const float *scales,
                 const int32_t *block_sums, f32x16 *result) {
  const int inputs = blocks * BLOCK;
  f32x16 sums[16];  // not `result`, which the compiler must think of as memory that the weights may lie in
  for (int m = 0; m < tokens; m++) sums[m] = (f32x16){0};
  for (int b = 0; b < blocks; b++, record += record_bytes(bits)) {
    u8x64 weights[8];
    const int offset = unpack(record, bits, weights);
    const f32x16 scale = from_half16((const uint16_t *)(record + codes_bytes(bits)));
    for (int m = 0; m < tokens; m++) {
      const int8_t *four = codes + (size_t)m * inputs + b * BLOCK;
      i32x16 sum = same16(-offset * block_sums[m * blocks + b]);
      for (int j = 0; j < 8; j++)
        sum = bits == 4 ? dot4(sum, weights[j], four + 4 * j) : dot4_wide(sum, weights[j], four + 4 * j);
      sums[m] += __builtin_convertvector(sum, f32x16) * (scale * scales[m * blocks + b]);
    }
  }
  for (int m = 0; m < tokens; m++) result[m] = sums[m];
}

static void write_rows(const f32x16 *sums, int tokens, const float *bias, int rows, int row, float *output) {
  const int count = rows - row < TILE ? rows - row : TILE;
  for (int m = 0; m < tokens; m++, output += rows) {
    if (count == TILE) {
      store16(output + row, bias ? sums[m] + load16(bias + row) : sums[m]);
    } else {
      for (int r = 0; r < count; r++) output[row + r] = sums[m][r] + (bias ? bias[row + r] : 0);
    }
  }
}

INLINE void tiles(const uint8_t *weights, int bits, int blocks, int rows, int first_tile, int last_tile, int tokens,
                  Activations a, const float *bias, float *output) {
  const size_t tile_bytes = blocks * record_bytes(bits);
  f32x16 sums[16];
  for (int m = 0; m < tokens;) {
    const int left = tokens - m, step = left >= 16 ? 16 : left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    const int8_t *codes = a.codes + (size_t)m * blocks * BLOCK;
    const float *scales = a.scales + (size_t)m * blocks;
    const int32_t *block_sums = a.sums + (size_t)m * blocks;
    for (int t = first_tile; t < last_tile; t++) {
      const uint8_t *record = weights + t * tile_bytes;
      switch (step) {  // a constant lets the sums stay in registers
        case 16: tile(record, bits, blocks, 16, codes, scales, block_sums, sums); break;
        case 8: tile(record, bits, blocks, 8, codes, scales, block_sums, sums); break;
        case 4: tile(record, bits, blocks, 4, codes, scales, block_sums, sums); break;
        case 2: tile(record, bits, blocks, 2, codes, scales, block_sums, sums); break;
        default: tile(record, bits, blocks, 1, codes, scales, block_sums, sums);
      }
      write_rows(sums, step, bias, rows, t * TILE, output + (size_t)m * rows);
    }
    m += step;
  }
}

static void matmul(const uint8_t *weights, int bits, int blocks, int rows, int first_tile, int last_tile, int tokens,
                   Activations a, const float *bias, float *output) {
  if (bits == 4)
    tiles(weights, 4, blocks, rows, first_tile, last_tile, tokens, a, bias, output);
  else
    tiles(weights, 8, blocks, rows, first_tile, last_tile, tokens, a, bias, output);
}

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

static void attend(const Attention *a, int kv_head, int first_query, int last_query, int first_key, int last_key, Partial *p) {
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

static void join(const Attention *a, int kv_head, int first_query, int last_query, int pieces, const Partial *p) {
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

#define TEXT(x) TEXT_OF(x)
#define TEXT_OF(x) #x
const Kernels KERNELS = {TEXT(ISA), quantize, matmul, attend, join};
