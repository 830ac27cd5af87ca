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

int main(void) {
  double product = 0, attention = 0, norm = 0, convolution = 0;
  const int tokens[] = {1, 2, 3, 7, 16, 37};
  for (int i = 0; i < 12; i++)
    product = fmax(product, check_matmul(i < 6 ? 4 : 8, i % 2 ? 48 : 37, 1 + i % 6, tokens[i % 6]));
  attention = fmax(attention, check_attention(9, 3, 64, 100, 1, 0, 0));
  attention = fmax(attention, check_attention(12, 1, 32, 5, 9, 0, 0));
  attention = fmax(attention, check_attention(4, 4, 80, 40, 3, 16, 0));
  attention = fmax(attention, check_attention(32, 1, 256, 33, 2, 0, 5));
  const size_t planes[] = {1, 7, 16, 100, 1023, 4096, 9000};
  for (int i = 0; i < 28; i++) norm = fmax(norm, check_normalize(1 + i % 5, planes[i % 7], i < 14 ? 0 : 50, i % 2, i % 3 == 0));
  const int outputs[] = {1, 3, 8, 16, 17, 40, 70}, sides[] = {1, 2, 4, 7, 16, 33, 50};
  for (int i = 0; i < 98; i++) {
    const int k = outputs[i % 7], few = k <= 4 || (k == 8 && i % 2);
    convolution = fmax(convolution, check_convolve(1 + i % 4 * 5, k, few, 1 + i % 5, 1 + i % 6, sides[i / 7 % 7], i % 4));
  }
  printf("products %.1e attention %.1e normalization %.1e convolution %.1e\n", product, attention, norm, convolution);
  return !(product < 1e-5 && attention < 1e-5 && norm < 1e-5 &&
           convolution < 1e-5);  // float32 sums of up to 256 terms; scales of up to 8
}
