// Winograds of 3 x 3 with a quarter of the products: Winograd's minimal filtering F(4 x 4, 3 x 3) (Lavin and Gray, 2016),
// at the points 0, 3/4, -3/4, 3/2, -3/2 and infinity, whose rounding errors are a quarter of those of 0, 1, -1, 2, -2.
//
// An image is cut into tiles that give 4 x 4 pixels each. Sixteen tiles are the lanes of a vector all the way through: their
// 6 x 6 pixels are turned into 36 numbers, which are multiplied with those of the weights and summed over the channels.
#include "sums.h"

enum { POINTS = 36 };
enum { GROUPS = 4 };  // of four tiles in a vector: each has its sixteen pixels side by side

#define A 0.75f
#define B 1.5f

// One dimension of what is done to a tile's pixels.
INLINE void to_points(const f32x16 *d, int step, f32x16 *t, int t_step) {
  const f32x16 d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step];
  const f32x16 u = d4 - B * B * d2, v = A * (d3 - B * B * d1), p = d4 - A * A * d2, q = B * (d3 - A * A * d1);
  t[0] = A * A * B * B * d[0] - (A * A + B * B) * d2 + d4;
  t[t_step] = u + v;
  t[2 * t_step] = u - v;
  t[3 * t_step] = p + q;
  t[4 * t_step] = p - q;
  t[5 * t_step] = A * A * B * B * d1 - (A * A + B * B) * d3 + d[5 * step];
}

// And of how four pixels come out of six sums.
INLINE void from_points(const f32x16 *m, int step, f32x16 *y, int y_step) {
  const f32x16 s = m[step] + m[2 * step], d = m[step] - m[2 * step];
  const f32x16 t = m[3 * step] + m[4 * step], e = m[3 * step] - m[4 * step];
  y[0] = m[0] + s + t;
  y[y_step] = A * d + B * e;
  y[2 * y_step] = A * A * s + B * B * t;
  y[3 * y_step] = A * A * A * d + B * B * B * e + m[5 * step];
}

// Where the four tiles of a group stand in the block of tiles.
INLINE int group_row(const Tiles *b, int vector, int group) { return (vector * 16 + group * 4) / b->columns; }
INLINE int group_column(const Tiles *b, int vector, int group) { return (vector * 16 + group * 4) % b->columns; }

// The pixels that a block of tiles needs of one channel, zeros where the image has none: [rows * 4 + 2, stride].
static void copy_pixels(const Winograd *c, const Tiles *b, const float *plane, int stride, float *pixels) {
  const int left = 4 * b->column - c->pad_left, top = 4 * b->row - c->pad_top;
  const int before = left < 0 ? -left : 0, end = c->width - left < stride ? c->width - left : stride;
  for (int y = 0; y < 4 * b->rows + 2; y++, pixels += stride) {
    if (top + y < 0 || top + y >= c->height || end <= before) {
      memset(pixels, 0, sizeof(float) * (size_t)stride);
      continue;
    }
    for (int x = 0; x < before; x++) pixels[x] = 0;
    memcpy(pixels + before, plane + (size_t)(top + y) * c->width + left + before, sizeof(float) * (size_t)(end - before));
    for (int x = end; x < stride; x++) pixels[x] = 0;
  }
}

#define EVEN_ODD(v, w, a, b)                                                                                              \
  __builtin_shufflevector(v, w, a, a + 4, a + 8, a + 12, a + 16, a + 20, a + 24, a + 28, b, b + 4, b + 8, b + 12, b + 16, \
                          b + 20, b + 24, b + 28)
#define FIRST_HALVES(v, w) __builtin_shufflevector(v, w, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
#define LAST_HALVES(v, w) __builtin_shufflevector(v, w, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)

// Pixels 0 to 5 of sixteen tiles, of one row of each.
INLINE void gather(const float *const *groups, size_t at, f32x16 *d) {
  f32x16 z[GROUPS], w[GROUPS];
  for (int k = 0; k < GROUPS; k++) z[k] = load16(groups[k] + at), w[k] = load16(groups[k] + at + 4);
  const f32x16 a = EVEN_ODD(z[0], z[1], 0, 1), b = EVEN_ODD(z[2], z[3], 0, 1);
  const f32x16 c = EVEN_ODD(z[0], z[1], 2, 3), e = EVEN_ODD(z[2], z[3], 2, 3);
  const f32x16 f = EVEN_ODD(w[0], w[1], 0, 1), g = EVEN_ODD(w[2], w[3], 0, 1);
  d[0] = FIRST_HALVES(a, b), d[1] = LAST_HALVES(a, b);
  d[2] = FIRST_HALVES(c, e), d[3] = LAST_HALVES(c, e);
  d[4] = FIRST_HALVES(f, g), d[5] = LAST_HALVES(f, g);
}

void OWN(winograd_input)(const Winograd *c, const Tiles *b, int first, int last, float *pixels, float *values) {
  const int stride = 4 * b->columns + 16;
  const size_t lanes = (size_t)16 * b->vectors, panel = winograd_panel(c->inputs, b->vectors);
  for (int channel = first; channel < last; channel++) {
    copy_pixels(c, b, c->input + (size_t)channel * c->height * c->width, stride, pixels);
    for (int v = 0; v < b->vectors; v++) {
      const float *groups[GROUPS];
      for (int k = 0; k < GROUPS; k++) groups[k] = pixels + 4 * group_row(b, v, k) * stride + 4 * group_column(b, v, k);
      f32x16 d[6], t[36], out[6];
      for (int i = 0; i < 6; i++) {
        gather(groups, (size_t)i * stride, d);
        to_points(d, 1, t + 6 * i, 1);
      }
      float *to = values + channel * lanes + 16 * v;
      for (int j = 0; j < 6; j++) {
        to_points(t + j, 6, out, 1);
        for (int i = 0; i < 6; i++) store16(to + (size_t)(6 * i + j) * panel, out[i]);
      }
    }
  }
}

// Sixteen pixels of a row, of which `count` are there.
INLINE void finish(const Winograd *c, f32x16 y, float bias, size_t at, int count) {
  y += bias;
  if (count >= 16) {
    if (c->added) y += load16(c->added + at);
    store16(c->output + at, activate(y, c->activation, c->alpha));
    return;
  }
  f32x16 more = {0};
  if (c->added) memcpy(&more, c->added + at, sizeof(float) * (size_t)count);
  y = activate(y + more, c->activation, c->alpha);
  memcpy(c->output + at, &y, sizeof(float) * (size_t)count);
}

#define PAIRS(v, w, at)                                                                                                \
  __builtin_shufflevector(v, w, at, at + 16, at + 1, at + 17, at + 2, at + 18, at + 3, at + 19, at + 4, at + 20, at + 5, \
                          at + 21, at + 6, at + 22, at + 7, at + 23)
#define FOURS(v, w, at)                                                                                                \
  __builtin_shufflevector(v, w, at, at + 1, at + 16, at + 17, at + 2, at + 3, at + 18, at + 19, at + 4, at + 5, at + 20, \
                          at + 21, at + 6, at + 7, at + 22, at + 23)

// Row `a` of sixteen tiles' pixels, as they lie in the image.
INLINE void write_row(const Winograd *c, const Tiles *b, int vector, int a, const f32x16 *y, float bias, size_t plane) {
  const f32x16 low = PAIRS(y[0], y[1], 0), high = PAIRS(y[0], y[1], 8);
  const f32x16 low2 = PAIRS(y[2], y[3], 0), high2 = PAIRS(y[2], y[3], 8);
  const f32x16 z[GROUPS] = {FOURS(low, low2, 0), FOURS(low, low2, 8), FOURS(high, high2, 0), FOURS(high, high2, 8)};
  for (int k = 0; k < GROUPS; k++) {
    const int row = 4 * (b->row + group_row(b, vector, k)) + a, column = 4 * (b->column + group_column(b, vector, k));
    if (row < c->out_height && column < c->out_width)
      finish(c, z[k], bias, plane + (size_t)row * c->out_width + column, c->out_width - column);
  }
}

static void write_channel(const Winograd *c, const Tiles *b, int channel, const float *sums) {
  const float bias = c->bias ? c->bias[channel] : 0;
  const size_t plane = (size_t)channel * c->out_height * c->out_width;
  const size_t step = (size_t)WINOGRAD_ROWS * 16 * b->vectors;
  for (int v = 0; v < b->vectors; v++) {
    f32x16 m[6], t[24], y[4];
    for (int j = 0; j < 6; j++) {
      for (int i = 0; i < 6; i++) m[i] = load16(sums + (6 * i + j) * step + 16 * v);
      from_points(m, 1, t + j, 6);
    }
    for (int a = 0; a < 4; a++) {
      from_points(t + 6 * a, 1, y, 1);
      write_row(c, b, v, a, y, bias, plane);
    }
  }
}

void OWN(winograd_output)(const Winograd *c, const Tiles *b, const float *values, int first, int last, float *sums) {
  for (int channel = first; channel < last; channel += WINOGRAD_ROWS) {
    multiply_points(c->weights + (size_t)channel * POINTS * c->inputs, values, POINTS, c->inputs, b->vectors, sums);
    for (int r = 0; r < WINOGRAD_ROWS && channel + r < c->outputs; r++)
      write_channel(c, b, channel + r, sums + r * 16 * b->vectors);
  }
}
