// Transposed convolutions of 4 x 4 in steps of 2, with less than half of the products: each of the four phases is a convolution
// of 2 x 2, and takes Winograd's minimal filtering F(3 x 3, 2 x 2) (Lavin and Gray, 2016) at the points 0, 1, -1 and infinity.
//
// The phases read the same pixels. A tile is what 4 x 4 of them give: 6 x 6 pixels, of which 3 x 3 belong to each phase.
// Sixteen tiles, of any images, are the lanes of a vector.
#include "sums.h"

enum { POINTS = 16, PHASES = 4, SIDE = 6, QUARTERS = 4 };

typedef float f32x4 __attribute__((vector_size(16)));

// Four floats, of which those are read or written that have their bit in `mask`.
INLINE f32x4 load_masked(const float *p, unsigned mask) {
#if defined(__AVX512VL__)
  return (f32x4)_mm_maskz_loadu_ps((__mmask8)mask, p);
#else
  f32x4 v = {0};
  if (mask == 15) {
    memcpy(&v, p, sizeof v);
  } else {
    for (int i = 0; i < 4; i++)
      if (mask >> i & 1) v[i] = p[i];
  }
  return v;
#endif
}
INLINE void store_masked(float *p, f32x4 v, unsigned mask) {
#if defined(__AVX512VL__)
  _mm_mask_storeu_ps(p, (__mmask8)mask, (__m128)v);
#else
  if (mask == 15) {
    memcpy(p, &v, sizeof v);
  } else {
    for (int i = 0; i < 4; i++)
      if (mask >> i & 1) p[i] = v[i];
  }
#endif
}

// The bits of those of `first`, `first` + 1, .. that are at least 0 and below `size`.
INLINE unsigned inside(int first, int size) {
  unsigned mask = 0;
  for (int i = 0; i < 4; i++) mask |= (unsigned)(first + i >= 0 && first + i < size) << i;
  return mask;
}

typedef struct {
  ptrdiff_t at;  // of the first pixel, from the first channel of the first image; it may lie outside
  unsigned rows, columns;
} Corner;

static Corner corner_of(const Doubling *c, int tile) {
  const int each = c->tiles_down * c->tiles_across, image = tile / each, place = tile % each;
  if (tile >= c->images * each) return (Corner){0, 0, 0};
  const int row = place / c->tiles_across * DOUBLING_STEP - 1, column = place % c->tiles_across * DOUBLING_STEP - 1;
  return (Corner){((ptrdiff_t)image * c->inputs * c->height + row) * c->width + column, inside(row, c->height),
                  inside(column, c->width)};
}

INLINE f32x16 joined(f32x4 a, f32x4 b, f32x4 c, f32x4 d) {
  const f32x4 parts[4] = {a, b, c, d};
  return load16((const float *)parts);
}

// Four vectors of four tiles with four pixels each to four vectors of a pixel of sixteen tiles, and back.
INLINE void turn_fours(f32x16 *v) {
#define LOW(a, b) __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define HIGH(a, b) __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define FIRST_PAIRS(a, b) __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define LAST_PAIRS(a, b) __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
  const f32x16 a = LOW(v[0], v[1]), b = LOW(v[2], v[3]), c = HIGH(v[0], v[1]), d = HIGH(v[2], v[3]);
  v[0] = FIRST_PAIRS(a, b), v[1] = LAST_PAIRS(a, b), v[2] = FIRST_PAIRS(c, d), v[3] = LAST_PAIRS(c, d);
}

INLINE void to_points(const f32x16 *d, int step, f32x16 *t, int t_step) {
  t[0] = d[0] - d[2 * step];
  t[t_step] = d[step] + d[2 * step];
  t[2 * t_step] = d[2 * step] - d[step];
  t[3 * t_step] = d[3 * step] - d[step];
}

INLINE void from_points(const f32x16 *m, int step, f32x16 *y, int y_step) {
  const f32x16 s = m[step] + m[2 * step];
  y[0] = m[0] + s;
  y[y_step] = m[step] - m[2 * step];
  y[2 * y_step] = s + m[3 * step];
}

// Tile 4c + q of a vector is the c-th part of the q-th vector of four: turning them then leaves the tiles in their order.
void OWN(doubling_input)(const Doubling *c, int first_tile, int vectors, int first, int last, float *values) {
  const size_t lanes = (size_t)16 * vectors, panel = winograd_panel(c->inputs, vectors), plane = (size_t)c->height * c->width;
  Corner corners[32];
  for (int i = 0; i < 16 * vectors; i++) corners[i] = corner_of(c, first_tile + i);
  for (int channel = first; channel < last; channel++)
    for (int v = 0; v < vectors; v++) {
      f32x16 d[4 * 4], t[4 * 4], out[4];
      const float *image = c->input + channel * plane;
      const Corner *tiles = corners + 16 * v;
      for (int y = 0; y < 4; y++) {
        f32x4 from[16];
        for (int i = 0; i < 16; i++) {
          const unsigned mask = tiles[i].rows >> y & 1 ? tiles[i].columns : 0;
          from[i] = load_masked(image + tiles[i].at + (ptrdiff_t)y * c->width, mask);
        }
        for (int q = 0; q < QUARTERS; q++) d[4 * y + q] = joined(from[q], from[4 + q], from[8 + q], from[12 + q]);
        turn_fours(d + 4 * y);
        to_points(d + 4 * y, 1, t + 4 * y, 1);
      }
      float *to = values + channel * lanes + 16 * v;
      for (int j = 0; j < 4; j++) {
        to_points(t + j, 4, out, 1);
        for (int i = 0; i < 4; i++) store16(to + (size_t)(4 * i + j) * panel, out[i]);
      }
    }
}

// Where a tile's pixels go, in a channel of the output.
typedef struct {
  ptrdiff_t at;
  unsigned rows, left, right;  // the columns 0 to 3, and 2 to 5
} Place;

static Place place_of(const Doubling *c, int tile) {
  const int each = c->tiles_down * c->tiles_across, image = tile / each, place = tile % each;
  if (tile >= c->images * each) return (Place){0, 0, 0, 0};
  const int row = place / c->tiles_across * SIDE - c->pad_top, column = place % c->tiles_across * SIDE - c->pad_left;
  return (Place){((ptrdiff_t)image * c->outputs * c->out_height + row) * c->out_width + column,
                 inside(row, c->out_height) | inside(row + 4, c->out_height) << 4, inside(column, c->out_width),
                 inside(column + 2, c->out_width)};
}

// One row of sixteen tiles: six pixels of each, written as the first four and the last four.
INLINE void write_row(const Doubling *c, const Place *tiles, int row, const f32x16 *pixels, float *output) {
  f32x16 left[4], right[4];
  for (int i = 0; i < 4; i++) left[i] = pixels[i], right[i] = pixels[2 + i];
  turn_fours(left), turn_fours(right);
  for (int q = 0; q < QUARTERS; q++) {
    f32x4 first[4], last[4];
    memcpy(first, &left[q], sizeof first), memcpy(last, &right[q], sizeof last);
    for (int i = 0; i < 4; i++) {
      const Place *tile = tiles + 4 * i + q;
      if (!(tile->rows >> row & 1)) continue;
      float *to = output + tile->at + (ptrdiff_t)row * c->out_width;
      store_masked(to, first[i], tile->left);
      store_masked(to + 2, last[i], tile->right);
    }
  }
}

// Pixels [8 channels, vectors, 6 rows, 6 columns] of sixteen tiles from sums [16 points, 8 channels, vectors] of one phase.
static void place_phase(const Doubling *c, int phase, int channels, int channel, int vectors, const float *sums,
                        float *pixels) {
  const size_t step = (size_t)WINOGRAD_ROWS * 16 * vectors;
  for (int r = 0; r < channels; r++) {
    const float bias = c->bias ? c->bias[channel + r] : 0;
    for (int v = 0; v < vectors; v++) {
      const float *from = sums + (r * vectors + v) * 16;
      float *to = pixels + (size_t)((r * vectors + v) * SIDE * SIDE + phase / 2 * SIDE + phase % 2) * 16;
      f32x16 m[4], t[3 * 4], y[3];
      for (int j = 0; j < 4; j++) {
        for (int i = 0; i < 4; i++) m[i] = load16(from + (4 * i + j) * step);
        from_points(m, 1, t + j, 4);
      }
      for (int a = 0; a < 3; a++) {
        from_points(t + 4 * a, 1, y, 1);
        for (int b = 0; b < 3; b++) store16(to + (2 * a * SIDE + 2 * b) * 16, activate(y[b] + bias, c->activation, c->slope));
      }
    }
  }
}

void OWN(doubling_output)(const Doubling *c, int first_tile, int vectors, const float *values, int first, int last,
                          float *room) {
  const size_t plane = (size_t)c->out_height * c->out_width, of_phase = (size_t)POINTS * c->inputs * WINOGRAD_ROWS;
  float *sums = room, *pixels = room + (size_t)POINTS * WINOGRAD_ROWS * 16 * vectors;
  Place places[32];
  for (int i = 0; i < 16 * vectors; i++) places[i] = place_of(c, first_tile + i);
  for (int channel = first; channel < last; channel += WINOGRAD_ROWS) {
    const int channels = c->outputs - channel < WINOGRAD_ROWS ? c->outputs - channel : WINOGRAD_ROWS;
    const float *weights = c->weights + (size_t)channel / WINOGRAD_ROWS * PHASES * of_phase;
    for (int phase = 0; phase < PHASES; phase++, weights += of_phase) {
      multiply_points(weights, values, POINTS, c->inputs, vectors, sums);
      place_phase(c, phase, channels, channel, vectors, sums, pixels);
    }
    for (int r = 0; r < channels; r++)
      for (int v = 0; v < vectors; v++)
        for (int row = 0; row < SIDE; row++) {
          f32x16 line[SIDE];
          memcpy(line, pixels + (size_t)((r * vectors + v) * SIDE + row) * SIDE * 16, sizeof line);
          write_row(c, places + 16 * v, row, line, c->output + (channel + r) * plane);
        }
  }
}
