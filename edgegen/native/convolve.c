// Convolutions in steps of one pixel of input: what each phase of a transposed convolution is (Dumoulin and Visin, 2016).
//
// With many outputs a lane is an output channel, and a few pixels of a row (of a few rows) are computed at once: their sums
// stay in registers while the weights are read as one stream. With few outputs a lane is a pixel.
#include "sums.h"

// As many sums as the registers have room for: tiles at once; pixels, with one tile and with two; and with few outputs, spans
// of 16 pixels and outputs.
#if defined(__AVX512F__)
enum { WIDE = 2, PIXELS_OF_ONE = 16, PIXELS_OF_TWO = 12, SPANS = 4, FEW_AT_ONCE = 4 };
#elif defined(__AVX2__)
enum { WIDE = 1, PIXELS_OF_ONE = 6, PIXELS_OF_TWO = 0, SPANS = 2, FEW_AT_ONCE = 3 };
#else
enum { WIDE = 1, PIXELS_OF_ONE = 5, PIXELS_OF_TWO = 0, SPANS = 2, FEW_AT_ONCE = 3 };
#endif
enum { MAX_ROWS_AT_ONCE = 4, MAX_ALONG = 12, MAX_AT_ONCE = 24, MAX_BLOCKS = 16, SUMS = 1024 };
enum { CACHED_FLOATS = 48 << 10, AHEAD = 1 << 10 };  // weights that a second-level cache keeps; that are asked for early

INLINE const float *input_row(const Convolution *c, int row) {
  return c->input + (size_t)(row / c->rows) * c->input_image + (size_t)(row % c->rows) * c->input_row;
}
INLINE float *output_row(const Convolution *c, int row) {
  return c->output + (size_t)(row / c->rows) * c->output_image + (size_t)(row % c->rows) * c->output_row;
}

INLINE void store_some(float *p, f32x16 v, int count) {
  if (count >= 16) {
    store16(p, v);
  } else {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), (__m512)v);
#else
    memcpy(p, &v, sizeof(float) * count);
#endif
  }
}

// Some pixels of some rows: those that are computed at once. `sums` has room for [tiles, across, along * phases] vectors.
typedef struct {
  int row, across, pixel, along;
  f32x16 *sums;
} Block;

// Adds the taps first .. last of one phase to the sums of a block: vectors of 16 channels, a pixel every `phases` of them.
// The three numbers are constants wherever this is called.
INLINE void add_up(const Convolution *c, const Phase *p, int first, int last, const Block *b, int tile, f32x16 *sums, int tiles,
                   int across, int along) {
  part sum[MAX_AT_ONCE][PARTS];
  const int count = across * along, step = c->phases, room = along * step;
  for (int i = 0; i < tiles * count; i++) {
    const float *from = first ? (const float *)&sums[i / along * room + i % along * step] : c->bias + (tile + i / count) * TILE;
    for (int q = 0; q < PARTS; q++) sum[i][q] = load_part(from + q * PART);
  }
  const size_t width = c->width, tile_step = c->tile_step;
  const float *weights = p->weights + (size_t)tile * tile_step + (size_t)first * c->inputs * TILE;
  for (int t = first; t < last; t++) {
    const float *x[MAX_ROWS_AT_ONCE];
    for (int r = 0; r < across; r++) x[r] = input_row(c, b->row + r) + b->pixel + p->offsets[t];
    for (int i = c->inputs; i; i--, weights += TILE) {
      part w[2][PARTS];
      for (int v = 0; v < tiles; v++)
        for (int q = 0; q < PARTS; q++) w[v][q] = load_part(weights + v * tile_step + q * PART);
      __builtin_prefetch(weights + AHEAD);  // further than the processor's own looks, which ends with a page
      if (tiles > 1) __builtin_prefetch(weights + tile_step + AHEAD);
      for (int j = 0; j < count; j++) {
        const part value = all_part(x[j / along][j % along]);
        for (int v = 0; v < tiles; v++)
          for (int q = 0; q < PARTS; q++) sum[v * count + j][q] += w[v][q] * value;
      }
      for (int r = 0; r < across; r++) x[r] += width;
    }
  }
  for (int i = 0; i < tiles * count; i++) memcpy(&sums[i / along * room + i % along * step], sum[i], sizeof sum[i]);
}

typedef void AddUp(const Convolution *c, const Phase *p, int first, int last, const Block *b, int tile, f32x16 *sums);

#define ADD_UP(tiles, across, along)                                                                                         \
  static void add_up_##tiles##_##across##_##along(const Convolution *c, const Phase *p, int first, int last, const Block *b, \
                                                  int tile, f32x16 *sums) {                                                  \
    add_up(c, p, first, last, b, tile, sums, tiles, across, along);                                                          \
  }
#define EACH_1_1(f) f(1, 1, 1) f(1, 1, 2) f(1, 1, 3) f(1, 1, 4) f(1, 1, 5) f(1, 1, 6)
#define EACH_1_2(f) f(1, 2, 1) f(1, 2, 2) f(1, 2, 3)
#define EACH_1_4(f) f(1, 4, 1)
#if defined(__AVX512F__)
#define MORE(f)                                                                                                       \
  f(1, 1, 7) f(1, 1, 8) f(1, 1, 9) f(1, 1, 10) f(1, 1, 11) f(1, 1, 12) f(1, 2, 4) f(1, 2, 5) f(1, 2, 6) f(1, 2, 7)    \
  f(1, 2, 8) f(1, 4, 2) f(1, 4, 3) f(1, 4, 4)                                                                         \
  f(2, 1, 1) f(2, 1, 2) f(2, 1, 3) f(2, 1, 4) f(2, 1, 5) f(2, 1, 6) f(2, 1, 7) f(2, 1, 8) f(2, 1, 9) f(2, 1, 10)      \
  f(2, 1, 11) f(2, 1, 12) f(2, 2, 1) f(2, 2, 2) f(2, 2, 3) f(2, 2, 4) f(2, 2, 5) f(2, 2, 6) f(2, 4, 1) f(2, 4, 2) f(2, 4, 3)
#else
#define MORE(f)
#endif
#define EACH(f) EACH_1_1(f) EACH_1_2(f) EACH_1_4(f) MORE(f)
EACH(ADD_UP)
#define PLACE_OF(tiles, across, along) [tiles - 1][across - 1][along] = add_up_##tiles##_##across##_##along,
static AddUp *const add_ups[2][MAX_ROWS_AT_ONCE][MAX_ALONG + 1] = {EACH(PLACE_OF)};

INLINE void turn(f32x16 *v) {  // 16 x 16
  f32x16 w[16];
  for (int round = 0; round < 4; round++) {
    for (int j = 0; j < 8; j++) {
      w[2 * j] = __builtin_shufflevector(v[j], v[j + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      w[2 * j + 1] = __builtin_shufflevector(v[j], v[j + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
    for (int j = 0; j < 16; j++) v[j] = w[j];
  }
}

// `count` pixels of 16 channels each, to the rows of the channels.
static void write_turned(const Convolution *c, const f32x16 *sums, int count, int channels, float *output) {
  for (int j = 0; j < count; j += 16, output += 16) {
    f32x16 v[16];
    for (int i = 0; i < 16; i++) v[i] = j + i < count ? sums[j + i] : (f32x16){0};
    for (int i = 0; i < 16; i++) v[i] = activate(v[i], c->activation, c->slope);
    turn(v);
    for (int i = 0; i < channels; i++) store_some(output + i * c->plane, v[i], count - j);
  }
}

static void write_block(const Convolution *c, const Block *b, int tile, int tiles) {
  const int at = b->pixel * c->phases, room = b->along * c->phases, count = c->columns - at < room ? c->columns - at : room;
  const f32x16 *sums = b->sums;
  for (int i = 0; i < tiles; i++) {
    const int first = (tile + i) * TILE, channels = c->outputs - first < TILE ? c->outputs - first : TILE;
    for (int r = 0; r < b->across; r++, sums += room)
      write_turned(c, sums, count, channels, output_row(c, b->row + r) + first * c->plane + at);
  }
}

// All phases of some blocks: as many taps for each, before the next ones, as the second-level cache holds the weights of.
static void add_blocks(const Convolution *c, const Block *blocks, int count, int tile, int tiles) {
  const size_t tap_floats = (size_t)tiles * TILE * c->inputs;
  const int taps_each = count == 1 ? INT32_MAX : tap_floats < CACHED_FLOATS ? (int)(CACHED_FLOATS / tap_floats) : 1;
  for (int i = 0; i < c->phases; i++) {
    const Phase *p = &c->phase[i];
    int first = 0;
    do {
      const int last = p->taps - first < taps_each ? p->taps : first + taps_each;
      for (int j = 0; j < count; j++)
        add_ups[tiles - 1][blocks[j].across - 1][blocks[j].along](c, p, first, last, &blocks[j], tile, blocks[j].sums + i);
      first = last;
    } while (first < p->taps);
  }
  for (int j = 0; j < count; j++) write_block(c, &blocks[j], tile, tiles);
}

// Some rows of one or two tiles.
static void convolve_tiles(const Convolution *c, int tile, int tiles, int first_row, int last_row) {
  const int pixels = c->phase[0].pixels, most = tiles > 1 ? PIXELS_OF_TWO : PIXELS_OF_ONE;
  const int widest = most < MAX_ALONG ? most : MAX_ALONG, in_row = (pixels + widest - 1) / widest;
  const int along = (pixels + in_row - 1) / in_row;
  f32x16 sums[SUMS];
  Block blocks[MAX_BLOCKS];
  int count = 0, used = 0;
  for (int row = first_row, across; row < last_row; row += across) {
    for (across = MAX_ROWS_AT_ONCE; across > 1 && (across * along > most || across > last_row - row);) across /= 2;
    for (int pixel = 0; pixel < pixels; pixel += along) {
      const int some = pixels - pixel < along ? pixels - pixel : along, room = tiles * across * some * c->phases;
      if (count == MAX_BLOCKS || used + room > SUMS) {
        add_blocks(c, blocks, count, tile, tiles);
        count = used = 0;
      }
      blocks[count++] = (Block){row, across, pixel, some, sums + used};
      used += room;
    }
  }
  if (count) add_blocks(c, blocks, count, tile, tiles);
}

// Sums of `spans` x 16 pixels of one phase for `channels` outputs, into sums[output][span].
INLINE void add_few(const Convolution *c, const Phase *p, const float *const *from, int first, int channels, f32x16 *sums) {
  part sum[FEW_AT_ONCE][SPANS * PARTS];
  for (int k = 0; k < channels; k++)
    for (int s = 0; s < SPANS * PARTS; s++) sum[k][s] = all_part(c->bias[first + k]);
  const float *weights = p->weights + first;
  for (int t = 0; t < p->taps; t++) {
    const float *x[SPANS];
    for (int s = 0; s < SPANS; s++) x[s] = from[s] + p->offsets[t];
    for (int i = c->inputs; i; i--, weights += c->outputs) {
      part value[SPANS * PARTS];
      for (int s = 0; s < SPANS * PARTS; s++) {
        value[s] = load_part(x[s / PARTS] + s % PARTS * PART);
#if defined(__AVX512F__)
        __asm__("" : "+v"(value[s]));  // or gcc loads it again for each channel
#endif
      }
      for (int k = 0; k < channels; k++)
        for (int s = 0; s < SPANS * PARTS; s++) sum[k][s] += value[s] * weights[k];
      for (int s = 0; s < SPANS; s++) x[s] += c->width;
    }
  }
  for (int k = 0; k < channels; k++)
    memcpy(&sums[k * SPANS], sum[k], sizeof sum[k]);
}

// Sums of one span, [phases], each as far behind the other as SPANS x FEW_AT_ONCE, to where they belong in a row.
static void write_span(const Convolution *c, const f32x16 *sums, int pixel, float *output) {
  const int phases = c->phases, step = SPANS * FEW_AT_ONCE, left = c->columns - pixel * phases;
  f32x16 v[MAX_PHASES];
  for (int i = 0; i < phases; i++) v[i] = activate(sums[i * step], c->activation, c->slope);
  output += pixel * phases;
  if (phases == 1) {
    store_some(output, v[0], left);
  } else if (phases == 2) {
    store_some(output, __builtin_shufflevector(v[0], v[1], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), left);
    if (left > 16)
      store_some(output + 16, __builtin_shufflevector(v[0], v[1], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31),
                 left - 16);
  } else {
    for (int j = 0; j < TILE * phases && j < left; j++) output[j] = v[j % phases][j / phases];
  }
}

static void convolve_few(const Convolution *c, int first_row, int last_row) {
  const int along = (c->phase[0].pixels + TILE - 1) / TILE, last = last_row * along;
  f32x16 sums[MAX_PHASES * SPANS * FEW_AT_ONCE];
  for (int span = first_row * along; span < last; span += SPANS) {
    const int spans = last - span < SPANS ? last - span : SPANS;
    const float *from[SPANS];
    for (int s = 0; s < SPANS; s++) {
      const int at = s < spans ? span + s : span;
      from[s] = input_row(c, at / along) + at % along * TILE;
    }
    for (int k = 0; k < c->outputs; k += FEW_AT_ONCE) {
      const int channels = c->outputs - k < FEW_AT_ONCE ? c->outputs - k : FEW_AT_ONCE;
      for (int i = 0; i < c->phases; i++) {
        f32x16 *own = sums + i * SPANS * FEW_AT_ONCE;
        switch (channels) {  // a constant lets the sums stay in registers
#if defined(__AVX512F__)
          case 4: add_few(c, &c->phase[i], from, k, 4, own); break;
#endif
          case 3: add_few(c, &c->phase[i], from, k, 3, own); break;
          case 2: add_few(c, &c->phase[i], from, k, 2, own); break;
          default: add_few(c, &c->phase[i], from, k, 1, own);
        }
      }
      for (int j = 0; j < channels * spans; j++) {
        const int at = span + j % spans, channel = k + j / spans;
        write_span(c, sums + j / spans * SPANS + j % spans, at % along * TILE,
                   output_row(c, at / along) + (size_t)channel * c->plane);
      }
    }
  }
}

void OWN(convolve)(const Convolution *c, int first_tile, int last_tile, int first_row, int last_row) {
  if (c->few) {
    convolve_few(c, first_row, last_row);
    return;
  }
  for (int tile = first_tile, tiles; tile < last_tile; tile += tiles) {
    tiles = last_tile - tile < WIDE ? last_tile - tile : WIDE;
    convolve_tiles(c, tile, tiles, first_row, last_row);
  }
}
