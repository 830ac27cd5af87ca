// Holds one build of the kernels (-DISA=...) to plain loops in double precision: for machines that onnxruntime is not on.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../edgegen/native/kernels.h"

static uint32_t seed = 1;
static float noise(void) {
  seed = seed * 1664525u + 1013904223u;
  return (float)(seed >> 8) / (1 << 23) - 1;
}

static uint16_t half_power(int exponent) { return (uint16_t)((exponent + 15) << 10); }

static int code_of(const uint8_t *record, int bits, int r, int i) {
  if (bits == 8) return (int8_t)record[64 * (i / 4) + 4 * r + i % 4];
  const uint8_t pair = record[64 * (i % 16 / 4) + 4 * r + i % 4];
  return (i < 16 ? pair & 15 : pair >> 4) - 8;
}

static double check_matmul(int bits, int rows, int blocks, int tokens) {
  const int tiles = (rows + TILE - 1) / TILE, inputs = blocks * BLOCK;
  const size_t record = record_bytes(bits), scales_at = codes_bytes(bits);
  uint8_t *weights = calloc((size_t)tiles * blocks, record);
  float *input = malloc(sizeof(float) * tokens * inputs), *output = calloc((size_t)tokens * rows, sizeof(float));
  float *bias = malloc(sizeof(float) * rows), *scales = malloc(sizeof(float) * tokens * blocks);
  int8_t *codes = malloc((size_t)tokens * inputs);
  int32_t *sums = malloc(sizeof(int32_t) * tokens * blocks);
  for (size_t i = 0; i < (size_t)tiles * blocks; i++) {
    for (size_t j = 0; j < scales_at; j++) weights[i * record + j] = (uint8_t)(128 * (noise() + 1));
    weights[i * record] = 128;  // -128: what a signed byte cannot take the absolute value of
    for (int r = 0; r < TILE; r++) {
      const uint16_t scale = half_power(-(int)(3 * (noise() + 1)) - bits);
      memcpy(weights + i * record + scales_at + 2 * r, &scale, 2);
    }
  }
  for (int i = 0; i < tokens * inputs; i++) input[i] = i % 7 ? noise() : i % 2 ? 1 : -1;  // also the largest that there are
  for (int r = 0; r < rows; r++) bias[r] = noise();
  for (int m = 0; m < tokens; m++)
    OWN(kernels).quantize(input + m * inputs, blocks, codes + m * inputs, scales + m * blocks, sums + m * blocks);
  OWN(kernels).matmul(weights, bits, blocks, rows, 0, tiles, tokens, (Activations){codes, scales, sums}, bias, output);
  double worst = 0;
  for (int m = 0; m < tokens; m++)
    for (int r = 0; r < rows; r++) {
      double sum = bias[r];
      for (int b = 0; b < blocks; b++) {
        const uint8_t *at = weights + ((size_t)(r / TILE) * blocks + b) * record;
        uint16_t half;
        memcpy(&half, at + scales_at + 2 * (r % TILE), 2);
        for (int i = 0; i < BLOCK; i++) {
          const double a = codes[m * inputs + b * BLOCK + i] * (double)scales[m * blocks + b];
          worst = fmax(worst, fabs(a - input[m * inputs + b * BLOCK + i]) > 0.51 * scales[m * blocks + b] ? 1 : 0);
          sum += code_of(at, bits, r % TILE, i) * ldexp(1, (half >> 10) - 15) * a;
        }
      }
      worst = fmax(worst, fabs(sum - output[m * rows + r]) / (1 + fabs(sum)));
    }
  free(weights), free(input), free(output), free(bias), free(scales), free(codes), free(sums);
  return worst;
}

static double check_attention(int heads, int kv_heads, int size, int past, int tokens, int window, float softcap) {
  const int end = past + tokens, capacity = end + 3, group = heads / kv_heads;
  float *query = malloc(sizeof(float) * heads * tokens * size), *output = malloc(sizeof(float) * tokens * heads * size);
  float *keys = malloc(sizeof(float) * kv_heads * capacity * size);
  float *values = malloc(sizeof(float) * kv_heads * capacity * size);
  for (int i = 0; i < heads * tokens * size; i++) query[i] = noise();
  for (int i = 0; i < kv_heads * capacity * size; i++) keys[i] = values[i] = NAN;  // what is not filled must not matter
  for (int h = 0; h < kv_heads; h++)
    for (int i = 0; i < end * size; i++) keys[h * capacity * size + i] = noise(), values[h * capacity * size + i] = noise();
  const Attention a = {heads, kv_heads, size, past, tokens, capacity, window, softcap, query, keys, values, output};
  Partial *parts = aligned_alloc(64, sizeof(Partial) * 2);
  for (int h = 0; h < kv_heads; h++)  // in two pieces, which do not end where a vector does
    for (int t = 0; t < tokens; t++) {
      OWN(kernels).attend(&a, h, t, t + 1, 0, end / 3 + 1, parts);
      OWN(kernels).attend(&a, h, t, t + 1, end / 3 + 1, end, parts + 1);
      OWN(kernels).join(&a, h, t, t + 1, 2, parts);
    }
  double worst = 0;
  double *weights = malloc(sizeof(double) * end);
  for (int t = 0; t < tokens; t++)
    for (int h = 0; h < heads; h++) {
      const int last = past + t + 1, first = window && last > window ? last - window : 0;
      const float *head = keys + (size_t)(h / group) * capacity * size, *value = values + (size_t)(h / group) * capacity * size;
      double sum = 0;
      for (int k = first; k < last; k++) {
        double score = 0;
        for (int d = 0; d < size; d++) score += (double)query[((size_t)h * tokens + t) * size + d] * head[k * size + d];
        if (softcap > 0) score = softcap * tanh(score / softcap);
        sum += weights[k] = exp(score);
      }
      for (int d = 0; d < size; d++) {
        double mean = 0;
        for (int k = first; k < last; k++) mean += weights[k] / sum * value[k * size + d];
        const double gap = fabs(mean - output[((size_t)t * heads + h) * size + d]);
        worst = isnan(gap) ? INFINITY : fmax(worst, gap);
      }
    }
  free(query), free(output), free(keys), free(values), free(parts), free(weights);
  return worst;
}

static double check_normalize(size_t channels, size_t plane, float middle, int silu, int in_place) {
  const size_t count = channels * plane;
  float *values = malloc(sizeof(float) * count), *kept = malloc(sizeof(float) * count);
  float *scale = malloc(sizeof(float) * channels), *bias = malloc(sizeof(float) * channels);
  for (size_t i = 0; i < count; i++) kept[i] = values[i] = middle + noise();
  for (size_t c = 0; c < channels; c++) scale[c] = 8 * noise(), bias[c] = 20 * noise();  // far out on the sigmoid, too
  float *output = in_place ? values : malloc(sizeof(float) * count);
  const Group group = {values, scale, bias, output, channels, plane, 1e-5f, silu};
  OWN(kernels).normalize(&group);
  double mean = 0, variance = 0, worst = 0;
  for (size_t i = 0; i < count; i++) mean += kept[i] / (double)count;
  for (size_t i = 0; i < count; i++) variance += (kept[i] - mean) * (kept[i] - mean) / (double)count;
  for (size_t i = 0; i < count; i++) {
    double y = (kept[i] - mean) / sqrt(variance + 1e-5f) * scale[i / plane] + bias[i / plane];
    if (silu) y /= 1 + exp(-y);
    const double gap = fabs(y - output[i]) / (1 + fabs(y) + fabs((double)middle));  // the input's own rounding grows with it
    worst = isnan(gap) ? INFINITY : fmax(worst, gap);
  }
  if (!in_place) free(output);
  free(values), free(kept), free(scale), free(bias);
  return worst;
}

static double after(double x, int activation) {
  return activation == RELU ? fmax(x, 0) : activation == LEAKY_RELU ? (x < 0 ? 0.2f * x : x) : activation == TANH ? tanh(x) : x;
}

// Two images, and phases with 0, 1, .. taps, which reach over the input wherever they like.
static double check_convolve(int inputs, int outputs, int few, int phases, int rows, int columns, int activation) {
  enum { IMAGES = 2, REACH = 3 };
  const int tiles = few ? 1 : (outputs + TILE - 1) / TILE, lanes = few ? outputs : TILE;
  const int all_taps = phases * (phases - 1) / 2 + 1;
  const size_t width = (columns + phases - 1) / phases + REACH, row = inputs * width, image = row * (rows + REACH);
  const size_t plane = (size_t)rows * columns, tile_step = (size_t)all_taps * inputs * lanes;
  float *input = malloc(sizeof(float) * (IMAGES * image + SLACK)), *output = malloc(sizeof(float) * IMAGES * outputs * plane);
  float *weights = malloc(sizeof(float) * tiles * tile_step), *bias = malloc(sizeof(float) * tiles * TILE);
  for (size_t i = 0; i < IMAGES * image + SLACK; i++) input[i] = i < IMAGES * image ? noise() : NAN;
  for (size_t i = 0; i < tiles * tile_step; i++) weights[i] = noise();
  for (int i = 0; i < tiles * TILE; i++) bias[i] = noise();
  for (size_t i = 0; i < IMAGES * outputs * plane; i++) output[i] = NAN;  // each pixel is to be written
  Phase phase[MAX_PHASES];
  ptrdiff_t offsets[MAX_PHASES * MAX_PHASES];
  for (int p = 0, at = 0; p < phases; p++) {
    const int taps = phases == 1 ? 1 : p;
    phase[p] = (Phase){taps, columns > p ? (columns - p + phases - 1) / phases : 0, offsets + at,
                       weights + (size_t)at * inputs * lanes};
    for (int t = 0; t < taps; t++) offsets[at++] = (t + p) % REACH * row + t * 7 % REACH;
  }
  const Convolution c = {inputs, outputs, few, rows,   columns, phases,  phase,           tile_step,  input, bias,
                         width,  row,     image, output, plane, columns, plane * outputs, activation, 0.2f};
  const int half = rows * IMAGES / 2 + 1;
  OWN(kernels).convolve(&c, 0, tiles, 0, half);
  OWN(kernels).convolve(&c, 0, tiles, half, rows * IMAGES);
  double worst = 0;
  for (size_t i = 0; i < IMAGES * outputs * plane; i++) {
    const int x = i % columns, y = i / columns % rows, k = i / plane % outputs, n = i / plane / outputs;
    const Phase *p = &phase[x % phases];
    double sum = bias[k];
    for (int t = 0; t < p->taps; t++)
      for (int j = 0; j < inputs; j++)
        sum += (double)input[n * image + y * row + j * width + x / phases + p->offsets[t]] *
               p->weights[k / lanes * tile_step + ((size_t)t * inputs + j) * lanes + k % lanes];
    const double gap = fabs(after(sum, activation) - output[i]) / (1 + fabs(sum));
    worst = isnan(gap) ? INFINITY : fmax(worst, gap);
  }
  free(input), free(output), free(weights), free(bias);
  return worst;
}

// Weights [size, size] to [points, points]: G g G^T, each row of G for a point.
static void to_points(const float *g, int size, const double (*rows)[3], int points, float *to, size_t step) {
  for (int i = 0; i < points * points; i++) {
    double sum = 0;
    for (int y = 0; y < size; y++)
      for (int x = 0; x < size; x++) sum += rows[i / points][y] * rows[i % points][x] * g[y * size + x];
    to[i * step] = (float)sum;
  }
}

static float *noise_of(size_t count) {
  float *made = aligned_alloc(64, (sizeof(float) * count + 63) / 64 * 64);
  for (size_t i = 0; i < count; i++) made[i] = noise();
  return made;
}

static double check_winograd(int inputs, int outputs, int height, int width, int pad, int vectors, int activation) {
  static const double points[5] = {0, 0.75, -0.75, 1.5, -1.5};
  double rows[6][3] = {{0}};
  for (int i = 0; i < 5; i++) {
    double scale = 1;
    for (int j = 0; j < 5; j++) scale /= i == j ? 1 : points[i] - points[j];
    for (int k = 0; k < 3; k++) rows[i][k] = scale * pow(points[i], k);
  }
  rows[5][2] = 1;
  const int tall = height + 2 * pad - 2, wide = width + 2 * pad - 2, eights = (outputs + 7) / 8 * 8;
  const size_t plane = (size_t)height * width, made = (size_t)tall * wide;
  float *g = noise_of((size_t)outputs * inputs * 9), *bias = noise_of(outputs), *input = noise_of(inputs * plane);
  float *added = noise_of(outputs * made), *output = noise_of(outputs * made), *packed = noise_of((size_t)eights * inputs * 36);
  for (int o = 0; o < outputs; o++)
    for (int c = 0; c < inputs; c++)
      to_points(g + (o * inputs + c) * 9, 3, rows, 6, packed + ((size_t)o / 8 * 36 * inputs + c) * 8 + o % 8, inputs * 8);
  const Winograd w = {inputs, outputs, height, width, tall,  wide,  pad,   pad,
                      activation, 0.2f, packed, bias, input, added, output};
  const int across = vectors == 2 ? 8 : 4, down = 16 * vectors / across;
  float *values = noise_of(36 * winograd_panel(inputs, vectors)), *sums = noise_of((size_t)36 * 8 * 16 * vectors);
  float *pixels = noise_of((size_t)(4 * down + 2) * (4 * across + 16) + 16);
  for (int row = 0; 4 * row < tall; row += down)
    for (int column = 0; 4 * column < wide; column += across) {
      const Tiles b = {row, column, down, across, vectors};
      OWN(kernels).winograd_input(&w, &b, 0, inputs / 2, pixels, values);
      OWN(kernels).winograd_input(&w, &b, inputs / 2, inputs, pixels, values);
      OWN(kernels).winograd_output(&w, &b, values, 0, outputs, sums);
    }
  double worst = 0;
  for (size_t i = 0; i < outputs * made; i++) {
    const int o = (int)(i / made), y = (int)(i % made / wide), x = (int)(i % wide);
    double sum = (double)bias[o] + added[i];
    for (int k = 0; k < 9 * inputs; k++) {
      const int c = k / 9, from_y = y + k % 9 / 3 - pad, from_x = x + k % 3 - pad;
      if (from_y >= 0 && from_y < height && from_x >= 0 && from_x < width)
        sum += (double)g[(o * inputs + c) * 9 + k % 9] * input[c * plane + (size_t)from_y * width + from_x];
    }
    const double gap = fabs(after(sum, activation) - output[i]) / (1 + fabs(sum));
    worst = isnan(gap) ? INFINITY : fmax(worst, gap);
  }
  free(g), free(bias), free(input), free(added), free(output), free(packed), free(values), free(sums), free(pixels);
  return worst;
}

// Two images; tiles of both are in a vector.
static double check_doubling(int inputs, int outputs, int height, int width, int pad, int activation) {
  enum { IMAGES = 2 };
  static const double rows[4][3] = {{1, 0}, {0.5, 0.5}, {0.5, -0.5}, {0, 1}};
  const int tall = 2 * height + 2 - 2 * pad, wide = 2 * width + 2 - 2 * pad, eights = (outputs + 7) / 8 * 8;
  const int down = height / DOUBLING_STEP + 1, across = width / DOUBLING_STEP + 1, all = IMAGES * down * across;
  const size_t plane = (size_t)height * width, made = (size_t)tall * wide;
  float *w = noise_of((size_t)inputs * outputs * 16), *bias = noise_of(outputs), *input = noise_of(IMAGES * inputs * plane);
  float *output = noise_of(IMAGES * outputs * made), *packed = noise_of((size_t)eights * inputs * 64);
  for (int o = 0; o < outputs; o++)
    for (int c = 0; c < inputs; c++)
      for (int phase = 0; phase < 4; phase++) {
        const float *from = w + (c * outputs + o) * 16 + phase / 2 * 4 + phase % 2;
        const float g[4] = {from[10], from[8], from[2], from[0]};
        to_points(g, 2, rows, 4, packed + ((size_t)(o / 8 * 4 + phase) * 16 * inputs + c) * 8 + o % 8, (size_t)inputs * 8);
      }
  const Doubling d = {inputs, outputs, IMAGES, height, width, tall, wide, pad, pad, down, across, activation, 0.2f,
                      packed, bias, input, output};
  for (int first = 0, vectors; first < all; first += 16 * vectors) {
    vectors = all - first > 16 ? 2 : 1;
    float *values = noise_of(16 * winograd_panel(inputs, vectors)), *room = noise_of((size_t)52 * 8 * 16 * vectors);
    OWN(kernels).doubling_input(&d, first, vectors, 0, inputs / 2, values);
    OWN(kernels).doubling_input(&d, first, vectors, inputs / 2, inputs, values);
    OWN(kernels).doubling_output(&d, first, vectors, values, 0, outputs, room);
    free(values), free(room);
  }
  double worst = 0;
  for (size_t i = 0; i < IMAGES * outputs * made; i++) {
    const int o = (int)(i / made % outputs), n = (int)(i / made / outputs), y = (int)(i % made / wide), x = (int)(i % wide);
    double sum = bias[o];
    for (int k = 0; k < 16 * inputs; k++) {
      const int c = k / 16, up = y + pad - k % 16 / 4, left = x + pad - k % 4;
      if (up >= 0 && left >= 0 && up % 2 == 0 && left % 2 == 0 && up / 2 < height && left / 2 < width)
        sum += (double)w[(c * outputs + o) * 16 + k % 16] *
               input[(n * inputs + c) * plane + (size_t)(up / 2) * width + left / 2];
    }
    const double gap = fabs(after(sum, activation) - output[i]) / (1 + fabs(sum));
    worst = isnan(gap) ? INFINITY : fmax(worst, gap);
  }
  free(w), free(bias), free(input), free(output), free(packed);
  return worst;
}

static double check_look(int queries, int keys, int size, int value_size) {
  const int eights = (keys + 7) / 8 * 8, tiles = (value_size + 7) / 8;
  float *query = noise_of((size_t)queries * size), *key = noise_of((size_t)keys * size);
  float *value = noise_of((size_t)keys * value_size), *packed_keys = calloc((size_t)eights * size, sizeof(float));
  float *packed_values = calloc((size_t)tiles * 8 * keys, sizeof(float));
  float *output = noise_of((size_t)queries * value_size), *room = noise_of(look_room(size, value_size));
  for (int k = 0; k < keys; k++) {
    for (int d = 0; d < size; d++) packed_keys[(k / 8 * size + d) * 8 + k % 8] = key[k * size + d] *= 4;
    for (int d = 0; d < value_size; d++) packed_values[((size_t)(d / 8) * keys + k) * 8 + d % 8] = value[k * value_size + d];
  }
  const Look l = {keys, size, value_size, 0.7f, packed_keys, packed_values};
  OWN(kernels).look(&l, query, queries, output, room);
  double worst = 0, *weights = malloc(sizeof(double) * keys);
  for (int q = 0; q < queries; q++) {
    double sum = 0;
    for (int k = 0; k < keys; k++) {
      double score = 0;
      for (int d = 0; d < size; d++) score += (double)query[q * size + d] * key[k * size + d];
      sum += weights[k] = exp(0.7f * score);
    }
    for (int d = 0; d < value_size; d++) {
      double mean = 0;
      for (int k = 0; k < keys; k++) mean += weights[k] / sum * value[k * value_size + d];
      const double gap = fabs(mean - output[q * value_size + d]);
      worst = isnan(gap) ? INFINITY : fmax(worst, gap);
    }
  }
  free(query), free(key), free(value), free(packed_keys), free(packed_values), free(output), free(room), free(weights);
  return worst;
}

int main(void) {
  double product = 0, attention = 0, norm = 0, convolution = 0, fewer = 0;
  const int tokens[] = {1, 2, 3, 7, 16, 37};
  for (int i = 0; i < 12; i++)
    product = fmax(product, check_matmul(i < 6 ? 4 : 8, i % 2 ? 48 : 37, 1 + i % 6, tokens[i % 6]));
  attention = fmax(attention, check_attention(9, 3, 64, 100, 1, 0, 0));
  attention = fmax(attention, check_attention(12, 1, 32, 5, 9, 0, 0));
  attention = fmax(attention, check_attention(4, 4, 80, 40, 3, 16, 0));
  attention = fmax(attention, check_attention(32, 1, 256, 33, 2, 0, 5));
  for (int i = 0; i < 12; i++)
    attention = fmax(attention, check_look(1 + i * 11 % 32, 1 + i * 53 % 400, 1 + i * 7 % 70, 1 + i * 5 % 40));
  const size_t planes[] = {1, 7, 16, 100, 1023, 4096, 9000};
  for (int i = 0; i < 28; i++) norm = fmax(norm, check_normalize(1 + i % 5, planes[i % 7], i < 14 ? 0 : 50, i % 2, i % 3 == 0));
  const int outputs[] = {1, 3, 8, 16, 17, 40, 70}, sides[] = {1, 2, 4, 7, 16, 33, 50};
  for (int i = 0; i < 98; i++) {
    const int k = outputs[i % 7], few = k <= 4 || (k == 8 && i % 2);
    convolution = fmax(convolution, check_convolve(1 + i % 4 * 5, k, few, 1 + i % 5, 1 + i % 6, sides[i / 7 % 7], i % 4));
  }
  for (int i = 0; i < 24; i++) {
    const int height = 1 + i * 5 % 23, width = 1 + i * 7 % 37, count = outputs[i % 7];
    fewer = fmax(fewer, check_winograd(1 + i % 5 * 3, count, height + 2, width + 2, i % 3, 1 + i % 2, i / 3 % 3));
    fewer = fmax(fewer, check_doubling(1 + i % 5 * 3, count, height, width, i % 4 % (height > 1 && width > 1 ? 4 : 2), i % 4));
  }
  printf("products %.1e attention %.1e normalization %.1e ", product, attention, norm);
  printf("convolution %.1e, with fewer products %.1e\n", convolution, fewer);
  return !(product < 1e-5 && attention < 1e-5 && norm < 1e-5 &&
           convolution < 1e-5 &&
           fewer < 2e-5);  // float32 sums of up to 256 terms; scales of up to 8; what the points cost
}
