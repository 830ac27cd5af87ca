// ConvTranspose of ONNX for images, float32 [batch, inputs, height, width], and the activation after it.
//
// Output pixels that are a stride apart have their part of the kernel in common: each such phase is a convolution of the input
// in steps of one pixel. No zero is put between the input's pixels, and no sum is read back from memory. Where the attribute
// `convolution` is 1 the weights are those of a Conv in steps of one, which is the same with its weights turned round.
#include "operators.h"

enum { MAX_KERNEL = 64, MAX_SIZE = 1 << 20, MAX_ROWS_OF_OUTPUT = 1 << 28, FEW = 8, GROUP = 2 };
enum { BAND_FLOATS = 128 << 10, BANDS = 16, MIN_BAND = 4 };  // floats and rows of a band; bands that are enough
enum { PRODUCTS_EACH = 1 << 20, FLOATS_EACH = 16 << 10, ENOUGH = 64 };  // of one piece of work; pieces

typedef struct {
  int size, stride, before, after, more;  // of the kernel; padding on both sides; output that is added at the end
} Direction;

typedef struct {
  OrtApi api;
  Direction down, across;
  int inputs, outputs, tiles, few, activation, convolution;
  float slope;
  size_t tile_step;
  float *weights;
} ConvTranspose;

// The kernel's rows or columns first, first + stride, ..: how many they are, and how many are of those before `first`.
static int taps_of(const Direction *d, int first) {
  return first < d->size ? (d->size - first + d->stride - 1) / d->stride : 0;
}
static int taps_before(const Direction *d, int first) {
  int sum = 0;
  for (int i = 0; i < first; i++) sum += taps_of(d, i);
  return sum;
}

// Where the weights of a kernel's row and column are among those of a tile: the taps of a phase lie together.
static size_t place_of(const ConvTranspose *op, int y, int x) {
  const int first_y = y % op->down.stride, first_x = x % op->across.stride;
  const int tall = taps_of(&op->down, first_y), wide = taps_of(&op->across, first_x);
  return (size_t)taps_before(&op->down, first_y) * op->across.size + (size_t)tall * taps_before(&op->across, first_x) +
         (size_t)(y / op->down.stride) * wide + x / op->across.stride;
}

// Of [inputs, outputs, size, size]; of a convolution's [outputs, inputs, size, size], the last first.
static float weight_at(const ConvTranspose *op, const float *weights, int input, int output, int place) {
  const int area = op->down.size * op->across.size;
  return op->convolution ? weights[((size_t)output * op->inputs + input) * area + area - 1 - place]
                         : weights[((size_t)input * op->outputs + output) * area + place];
}

static void pack(const ConvTranspose *op, const float *weights) {
  const int lanes = op->few ? op->outputs : TILE, area = op->down.size * op->across.size;
  for (int k = 0; k < area; k++) {
    const size_t place = place_of(op, k / op->across.size, k % op->across.size);
    for (int tile = 0; tile < op->tiles; tile++)
      for (int i = 0; i < op->inputs; i++) {
        float *packed = op->weights + tile * op->tile_step + (place * op->inputs + i) * lanes;
        for (int j = 0; j < lanes; j++) {
          const int output = tile * lanes + j;
          packed[j] = output < op->outputs ? weight_at(op, weights, i, output, k) : 0;
        }
      }
  }
}

static int in_range(OrtApi api, const OrtKernelInfo *info, const char *name, int lowest, int highest, int *value) {
  const int64_t given = int_attribute(api, info, name, lowest);
  *value = (int)given;
  return given >= lowest && given <= highest;
}

static OrtStatus *read_attributes(OrtApi api, const OrtKernelInfo *info, ConvTranspose *op) {
  Direction *d = &op->down, *a = &op->across;
  const int fit = in_range(api, info, "stride_h", 1, MAX_PHASES, &d->stride) &&
                  in_range(api, info, "stride_w", 1, MAX_PHASES, &a->stride) &&
                  in_range(api, info, "pad_top", 0, MAX_SIZE, &d->before) &&
                  in_range(api, info, "pad_bottom", 0, MAX_SIZE, &d->after) &&
                  in_range(api, info, "pad_left", 0, MAX_SIZE, &a->before) &&
                  in_range(api, info, "pad_right", 0, MAX_SIZE, &a->after) &&
                  in_range(api, info, "out_pad_h", 0, MAX_PHASES, &d->more) &&
                  in_range(api, info, "out_pad_w", 0, MAX_PHASES, &a->more) &&
                  in_range(api, info, "convolution", 0, 1, &op->convolution) &&
                  in_range(api, info, "activation", NO_ACTIVATION, TANH, &op->activation);
  op->slope = float_attribute(api, info, "alpha", 0.01f);
  return fit ? NULL : refuse(api, "edgegen's ConvTranspose: an attribute is out of its range");
}

static OrtStatus *create_conv_transpose(const OrtOperator *self, OrtApi api, const OrtKernelInfo *info, void **kernel) {
  (void)self;
  ConvTranspose op = {.api = api};
  Array weights;
  TRY(read_attributes(api, info, &op));
  TRY(constant(api, info, 1, &weights));
  const int64_t *s = weights.sizes;
  if (weights.rank != 4 || s[0] < 1 || s[0] > MAX_SIZE || s[1] < 1 || s[1] > MAX_SIZE || s[2] < 1 || s[2] > MAX_KERNEL ||
      s[3] < 1 || s[3] > MAX_KERNEL)
    return refuse(api, "edgegen's ConvTranspose: weights must be [inputs, outputs, height, width], and the kernel 64 at most");
  op.inputs = (int)s[op.convolution], op.outputs = (int)s[!op.convolution];
  op.down.size = (int)s[2], op.across.size = (int)s[3];
  op.few = op.outputs <= FEW;
  op.tiles = op.few ? 1 : (op.outputs + TILE - 1) / TILE;
  op.tile_step = (size_t)op.inputs * (op.few ? op.outputs : TILE) * op.down.size * op.across.size;
  ConvTranspose *made = malloc(sizeof *made);
  op.weights = allocate(sizeof(float) * op.tiles * op.tile_step);
  if (!made || !op.weights) {
    free(made), free(op.weights);
    return no_memory(api);
  }
  pack(&op, weights.data);
  memcpy(made, &op, sizeof op);
  *kernel = made;
  return NULL;
}

static void destroy_conv_transpose(void *kernel) {
  ConvTranspose *op = kernel;
  free(op->weights), free(op);
}

typedef struct {
  const ConvTranspose *op;
  const float *input, *bias;
  float *output;
  int images, height, width, rows, columns;  // of input; of output
  int is_point;                              // one pixel of input: each output pixel has one tap, and is a phase of its own
  int phases_down, phases_across;
  int top, left, behind;                     // zeros around the input
  size_t padded_height, padded_width;
  Phase *phases;       // [phases_down, phases_across]
  ptrdiff_t *offsets;  // of all taps
  float *full_bias, *padded;
  int groups, bands, rows_each, copies;
  int low, reach;    // the first padded row that the first row of output reads, and how many more it reads
  int lacks_memory;
} Run;

// How many pixels a phase has, and from which to which pixel of the input (counted from 0) it reaches.
static int pixels_of(int phase, int phases, int size) { return size > phase ? (size - phase + phases - 1) / phases : 0; }
static void find_padding(const Direction *d, int input, int output, int *before, int *after) {
  int lowest = 0, highest = input - 1;
  for (int phase = 0; phase < d->stride; phase++) {
    const int shift = (phase + d->before) / d->stride, taps = taps_of(d, (phase + d->before) % d->stride);
    if (!taps) continue;
    const int low = shift - taps + 1, high = pixels_of(phase, d->stride, output) - 1 + shift;
    lowest = low < lowest ? low : lowest;
    highest = high > highest ? high : highest;
  }
  *before = -lowest;
  *after = highest - (input - 1);
}

// The first of the padded rows that the first row of output reads, in any phase, and how many more it reads.
static void find_reach(const Direction *d, int top, int *low, int *reach) {
  int lowest = MAX_SIZE, highest = -MAX_SIZE;
  for (int phase = 0; phase < d->stride; phase++) {
    const int shift = (phase + d->before) / d->stride, taps = taps_of(d, (phase + d->before) % d->stride);
    if (!taps) continue;
    lowest = shift - taps + 1 < lowest ? shift - taps + 1 : lowest;
    highest = shift > highest ? shift : highest;
  }
  *low = top + lowest, *reach = highest - lowest;
}

static OrtStatus *measure(Run *r, const Array *input) {
  const ConvTranspose *op = r->op;
  const Direction *d = &op->down, *a = &op->across;
  const int64_t *s = input->sizes;
  if (input->rank != 4 || s[1] != op->inputs)
    return refuse(op->api, "edgegen's ConvTranspose: the input does not have the channels that the weights have");
  if (s[0] > MAX_SIZE || s[2] < 1 || s[2] > MAX_SIZE || s[3] < 1 || s[3] > MAX_SIZE)
    return refuse(op->api, "edgegen's ConvTranspose: the input is empty or too large");
  const int64_t rows = (s[2] - 1) * d->stride + d->size + d->more - d->before - d->after;
  const int64_t columns = (s[3] - 1) * a->stride + a->size + a->more - a->before - a->after;
  if (rows < 1 || rows > MAX_SIZE || columns < 1 || columns > MAX_SIZE || s[0] * rows > MAX_ROWS_OF_OUTPUT)
    return refuse(op->api, "edgegen's ConvTranspose: the output is empty or too large");
  r->images = (int)s[0], r->height = (int)s[2], r->width = (int)s[3], r->rows = (int)rows, r->columns = (int)columns;
  r->is_point = !op->few && r->height == 1 && r->width == 1 && rows <= MAX_PHASES && columns <= MAX_PHASES;
  r->phases_down = r->is_point ? r->rows : d->stride;
  r->phases_across = r->is_point ? r->columns : a->stride;
  r->padded_height = r->padded_width = 1;
  if (!r->is_point) {
    int bottom, right;
    find_padding(d, r->height, r->rows, &r->top, &bottom);
    find_padding(a, r->width, r->columns, &r->left, &right);
    r->padded_height = (size_t)r->top + r->height + bottom;
    r->padded_width = (size_t)r->width + (r->left > right ? r->left : right);  // what is behind a row is also before the next
    r->behind = right + SLACK;
    find_reach(d, r->top, &r->low, &r->reach);
  }
  return NULL;
}

// The taps of one phase, in the order in which the weights lie: kernel rows first_y, first_y + step, .. and so the columns.
static ptrdiff_t *plan_phase(const Run *r, int y, int x, ptrdiff_t *offsets, Phase *phase) {
  const ConvTranspose *op = r->op;
  const Direction *d = &op->down, *a = &op->across;
  const int shifted_y = y + d->before, shifted_x = x + a->before;
  const int first_y = r->is_point ? shifted_y : shifted_y % d->stride;
  const int first_x = r->is_point ? shifted_x : shifted_x % a->stride;
  const int is_there = first_y < d->size && first_x < a->size;
  const int tall = !is_there ? 0 : r->is_point ? 1 : taps_of(d, first_y);
  const int wide = !is_there ? 0 : r->is_point ? 1 : taps_of(a, first_x);
  const size_t place = is_there ? place_of(op, first_y, first_x) * op->inputs * (op->few ? op->outputs : TILE) : 0;
  *phase = (Phase){tall * wide, pixels_of(x, r->phases_across, r->columns), offsets, op->weights + place};
  const ptrdiff_t row = (ptrdiff_t)(op->inputs * r->padded_width);
  for (int i = 0; i < tall; i++)
    for (int j = 0; j < wide; j++)
      *offsets++ = r->is_point ? 0 : (r->top + shifted_y / d->stride - i) * row + r->left + shifted_x / a->stride - j;
  return offsets;
}

static void plan(Run *r) {
  ptrdiff_t *offsets = r->offsets;
  for (int i = 0; i < r->phases_down * r->phases_across; i++)
    offsets = plan_phase(r, i / r->phases_across, i % r->phases_across, offsets, &r->phases[i]);
  const size_t outputs = (size_t)r->op->outputs, places = (size_t)r->op->tiles * TILE;
  for (size_t i = 0; i < places; i++) r->full_bias[i] = r->bias && i < outputs ? r->bias[i] : 0;
}

// A row of an image's input, [channel, column] with zeros around; zeros alone where the image has no such row.
static void copy_row(const Run *r, int image, int y, float *to) {
  const size_t inputs = (size_t)r->op->inputs, wide = r->padded_width, width = (size_t)r->width, plane = r->height * width;
  if (y < 0 || y >= r->height) {
    memset(to, 0, sizeof(float) * inputs * wide);
    return;
  }
  const float *from = r->input + (size_t)image * inputs * plane + (size_t)y * width;
  size_t i = 0;
  memset(to, 0, sizeof(float) * r->left);
  to += r->left;
  // Sixteen at a time, also where fewer are left: what that writes too far, the next channel writes again.
  for (; (inputs - 1 - i) * (wide < plane ? wide : plane) >= TILE; i++, to += wide, from += plane) {
    for (size_t j = 0; j < width; j += TILE) memcpy(to + j, from + j, sizeof(float) * TILE);
    for (size_t j = width; j < wide; j += TILE) memset(to + j, 0, sizeof(float) * TILE);
  }
  for (; i < inputs; i++, to += wide, from += plane) {
    memcpy(to, from, sizeof(float) * width);
    memset(to + width, 0, sizeof(float) * (wide - width - (i + 1 < inputs ? 0 : r->left)));
  }
}

// Input [image, channel, row, column] to [image, row, channel, column]: what is read together lies together.
static void copy_piece(void *work, size_t piece) {
  const Run *r = work;
  const size_t floats = (size_t)r->op->inputs * r->padded_width, rows = r->padded_height * (size_t)r->images;
  for (size_t row = rows * piece / r->copies; row < rows * (piece + 1) / r->copies; row++)
    copy_row(r, (int)(row / r->padded_height), (int)(row % r->padded_height) - r->top, r->padded + row * floats);
}

// Of one phase of rows, what does not depend on the piece.
static Convolution convolution_of(const Run *r, int y) {
  const ConvTranspose *op = r->op;
  const size_t plane = (size_t)r->rows * r->columns, row = (size_t)op->inputs * r->padded_width;
  return (Convolution){
      .inputs = op->inputs, .outputs = op->outputs, .few = op->few, .rows = pixels_of(y, r->phases_down, r->rows),
      .columns = r->columns, .phases = r->phases_across, .phase = r->phases + y * r->phases_across, .tile_step = op->tile_step,
      .input = r->padded, .bias = r->full_bias, .width = r->padded_width, .input_row = row,
      .input_image = row * r->padded_height, .output = r->output + (size_t)y * r->columns, .plane = plane,
      .output_row = (size_t)r->phases_down * r->columns, .output_image = plane * op->outputs,
      .activation = op->activation, .slope = op->slope,
  };
}

static void convolve_piece(void *work, size_t piece) {
  const Run *r = work;
  const ConvTranspose *op = r->op;
  const int group = (int)piece % r->groups, y = (int)(piece / r->groups % r->phases_down);
  const int band = (int)(piece / r->groups / r->phases_down), first_tile = group * GROUP;
  const Convolution c = convolution_of(r, y);
  const int all = c.rows * r->images;
  const int first = band * r->rows_each, last = all - first < r->rows_each ? all : first + r->rows_each;
  if (first < last)
    chosen->convolve(&c, first_tile, first_tile + GROUP < op->tiles ? first_tile + GROUP : op->tiles, first, last);
}

// With few outputs: some rows of all phases of an image, from a copy of what they read alone, which a cache holds.
static void convolve_band(void *work, size_t piece) {
  Run *r = work;
  const int image = (int)piece / r->bands, first = (int)piece % r->bands * r->rows_each;
  const int all = pixels_of(0, r->phases_down, r->rows), last = all - first < r->rows_each ? all : first + r->rows_each;
  const size_t row = (size_t)r->op->inputs * r->padded_width, floats = row * (size_t)(last - first + r->reach);
  float *copy = borrow(sizeof(float) * (floats + r->behind));
  if (!copy) {
    r->lacks_memory = 1;
    return;
  }
  for (int y = 0; y < last - first + r->reach; y++) copy_row(r, image, first + y + r->low - r->top, copy + y * row);
  memset(copy + floats, 0, sizeof(float) * r->behind);
  for (int y = 0; y < r->phases_down; y++) {
    Convolution c = convolution_of(r, y);
    const int rows = (c.rows < last ? c.rows : last) - first;
    c.input = copy - (ptrdiff_t)row * r->low, c.rows = rows;
    c.output += (size_t)image * c.output_image + (size_t)first * c.output_row;
    if (rows > 0) chosen->convolve(&c, 0, 1, 0, rows);
  }
  give_back(copy);
}

// Bands of rows that a cache holds, and some for each thread.
static void divide_few(Run *r) {
  const size_t row = (size_t)r->op->inputs * r->padded_width;
  const int all = pixels_of(0, r->phases_down, r->rows), held = (int)(BAND_FLOATS / row) - r->reach;
  const int shared = (int)(((int64_t)all * r->images + BANDS - 1) / BANDS);
  r->rows_each = held < shared ? held : shared;
  if (r->rows_each < MIN_BAND) r->rows_each = MIN_BAND;
  r->bands = (all + r->rows_each - 1) / r->rows_each;
}

static void divide(Run *r) {
  const ConvTranspose *op = r->op;
  const int all = r->images * pixels_of(0, r->phases_down, r->rows);
  const double products = (double)r->images * r->height * r->width * op->down.size * op->across.size * op->inputs * op->outputs;
  r->groups = (op->tiles + GROUP - 1) / GROUP;
  const double wanted = products / PRODUCTS_EACH < ENOUGH ? products / PRODUCTS_EACH : ENOUGH;  // each reads its weights again
  const int bands = 1 + (int)(wanted / ((double)r->groups * r->phases_down));
  r->rows_each = (all + bands - 1) / bands;
  if (r->rows_each > 4) r->rows_each = (r->rows_each + 3) / 4 * 4;
  r->bands = (all + r->rows_each - 1) / r->rows_each;
  const double floats = (double)r->images * r->padded_height * r->padded_width * op->inputs;
  const double copies = floats / FLOATS_EACH;
  r->copies = copies < 1 ? 1 : copies > 64 ? 64 : (int)copies;
}

static OrtStatus *convolve(ConvTranspose *op, OrtKernelContext *context, Run *r) {
  const size_t area = (size_t)op->down.size * op->across.size;
  const double floats = (double)r->images * r->padded_height * r->padded_width * op->inputs;
  if (floats > 1e12) return refuse(op->api, "edgegen's ConvTranspose: the input is empty or too large");
  const size_t phases = (size_t)r->phases_down * r->phases_across;
  const size_t offsets_at = sizeof(Phase) * phases;
  size_t bytes = offsets_at + sizeof(ptrdiff_t) * (area > phases ? area : phases);
  const size_t bias_at = bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  const size_t padded_at = bytes += sizeof(float) * op->tiles * TILE;
  const int is_copied = !r->is_point && !op->few;
  if (is_copied) bytes += sizeof(float) * ((size_t)floats + r->behind);
  char *scratch = borrow(bytes);
  if (!scratch) return no_memory(op->api);
  r->phases = (Phase *)scratch;
  r->offsets = (ptrdiff_t *)(scratch + offsets_at);
  r->full_bias = (float *)(scratch + bias_at);
  r->padded = r->is_point ? (float *)r->input : (float *)(scratch + padded_at);
  if (is_copied) memset(r->padded + (size_t)floats, 0, sizeof(float) * r->behind);
  plan(r);
  OrtStatus *status = NULL;
  if (op->few) {
    divide_few(r);
    status = run_pieces(op->api, context, convolve_band, r->images * r->bands, r);
  } else {
    divide(r);
    if (is_copied) status = run_pieces(op->api, context, copy_piece, r->copies, r);
    if (!status) status = run_pieces(op->api, context, convolve_piece, r->groups * r->phases_down * r->bands, r);
  }
  give_back(scratch);
  return !status && r->lacks_memory ? no_memory(op->api) : status;
}

static OrtStatus *compute_conv_transpose(void *kernel, OrtKernelContext *context) {
  ConvTranspose *op = kernel;
  Array input, bias, output;
  TRY(read_input(op->api, context, 0, &input));
  TRY(read_input(op->api, context, 2, &bias));
  if (bias.data && elements_of(&bias) != op->outputs)
    return refuse(op->api, "edgegen's ConvTranspose: the bias does not fit the outputs of the weights");
  Run run = {.op = op, .input = input.data, .bias = bias.data};
  TRY(measure(&run, &input));
  const int64_t sizes[] = {run.images, op->outputs, run.rows, run.columns};
  OrtValue *value = NULL;
  TRY(ort_output(op->api)(context, 0, sizes, 4, &value));
  TRY(read_array(op->api, value, &output));
  run.output = output.data;
  return run.images ? convolve(op, context, &run) : NULL;
}

static const char *conv_transpose_name(const OrtOperator *op) { return (void)op, "ConvTranspose"; }
static size_t conv_transpose_inputs(const OrtOperator *op) { return (void)op, 3; }
static int conv_transpose_kind(const OrtOperator *op, size_t i) { return (void)op, i < 2 ? ORT_REQUIRED : ORT_OPTIONAL; }

const OrtOperator conv_transpose_op = {
    COMMON_MEMBERS,
    .name = conv_transpose_name,
    .input_type = is_float,
    .input_count = conv_transpose_inputs,
    .input_kind = conv_transpose_kind,
    .output_count = one_output,
    .create_kernel_v2 = create_conv_transpose,
    .compute_v2 = compute_conv_transpose,
    .destroy = destroy_conv_transpose,
};
