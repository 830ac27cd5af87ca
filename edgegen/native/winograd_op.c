// Conv of ONNX for 3 x 3 weights, stride 1, one group: float32 [batch, inputs, height, width] -> [batch, outputs, .., ..]; with
// what is added to it (an optional fourth input of the output's shape), and an activation, where the attributes say so.
#include "operators.h"

enum { POINTS = 36, MAX_SIDE = 1 << 20, MAX_CHANNELS = 1 << 16, FEW_BLOCKS = 16, SHARES = 4 };

typedef struct {
  OrtApi api;
  int inputs, outputs, pads[4], activation;
  float alpha;
  float *weights;
} Filter;

// 3 x 3 weights to 6 x 6 points, in double precision: G g G^T of Lavin and Gray, for the points that winograd.c has.
static void to_points(const float *g, double *points) {
  const double a = 0.5625, b = 2.25, root_a = 0.75, root_b = 1.5;  // the squares of the points, and the points
  const double scale[5] = {1 / (a * b), 0.5 / (a * (a - b)), 0.5 / (a * (a - b)), 0.5 / (b * (b - a)), 0.5 / (b * (b - a))};
  const double at[5] = {0, root_a, -root_a, root_b, -root_b};
  double half[6][3];
  for (int x = 0; x < 3; x++) {
    for (int i = 0; i < 5; i++) half[i][x] = scale[i] * (g[x] + at[i] * (g[3 + x] + at[i] * g[6 + x]));
    half[5][x] = g[6 + x];
  }
  for (int i = 0; i < 6; i++) {
    for (int j = 0; j < 5; j++) points[6 * i + j] = scale[j] * (half[i][0] + at[j] * (half[i][1] + at[j] * half[i][2]));
    points[6 * i + 5] = half[i][2];
  }
}

static void pack(const float *weights, const Filter *f) {
  for (int o = 0; o < f->outputs; o++)
    for (int c = 0; c < f->inputs; c++) {
      double points[POINTS];
      to_points(weights + ((size_t)o * f->inputs + c) * 9, points);
      float *to = f->weights + ((size_t)(o / WINOGRAD_ROWS) * POINTS * f->inputs + c) * WINOGRAD_ROWS + o % WINOGRAD_ROWS;
      for (int i = 0; i < POINTS; i++) to[(size_t)i * f->inputs * WINOGRAD_ROWS] = (float)points[i];
    }
}

static OrtStatus *create_filter(const OrtOperator *op, OrtApi api, const OrtKernelInfo *info, void **kernel) {
  (void)op;
  Array weights;
  TRY(constant(api, info, 1, &weights));
  const int64_t outputs = weights.sizes[0], inputs = weights.sizes[1];
  if (weights.rank != 4 || weights.sizes[2] != 3 || weights.sizes[3] != 3 || outputs < 1 || inputs < 1 ||
      outputs > MAX_CHANNELS || inputs > MAX_CHANNELS)
    return refuse(api, "edgegen's Conv: the weights must be [outputs, inputs, 3, 3]");
  Filter *made = calloc(1, sizeof *made);
  if (!made) return no_memory(api);
  made->api = api, made->inputs = (int)inputs, made->outputs = (int)outputs;
  const char *const names[4] = {"pad_top", "pad_left", "pad_bottom", "pad_right"};
  int fits = 1;
  for (int i = 0; i < 4; i++) {
    const int64_t pad = int_attribute(api, info, names[i], 0);
    fits &= pad >= 0 && pad <= 2;
    made->pads[i] = (int)pad;
  }
  made->activation = (int)int_attribute(api, info, "activation", NO_ACTIVATION);
  made->alpha = float_attribute(api, info, "alpha", 0.01f);
  const size_t rows = ((size_t)outputs + WINOGRAD_ROWS - 1) / WINOGRAD_ROWS * WINOGRAD_ROWS;
  made->weights = fits ? allocate(rows * (size_t)inputs * POINTS * sizeof(float)) : NULL;
  if (!made->weights) {
    free(made);
    return fits ? no_memory(api) : refuse(api, "edgegen's Conv: pads must be 0, 1 or 2");
  }
  memset(made->weights, 0, rows * (size_t)inputs * POINTS * sizeof(float));
  pack(weights.data, made);
  *kernel = made;
  return NULL;
}

static void destroy_filter(void *kernel) {
  free(((Filter *)kernel)->weights);
  free(kernel);
}

typedef struct {
  Winograd one;  // the first image
  int batch, block_rows, block_columns;
  Tiles block;  // the first block of an image
  size_t input_image, output_image;
  float *values;  // of all blocks, where what goes in and what comes out are pieces of their own
  int lacks_memory;
} Work;

static int up(int x, int to) { return (x + to - 1) / to; }

// The block into which the tiles fit with the fewest that are not there; large blocks where there is a choice.
static void choose_block(Work *w) {
  const int rows = up(w->one.out_height, 4), columns = up(w->one.out_width, 4);
  int64_t least = INT64_MAX;
  for (int vectors = 2; vectors >= 1; vectors--)
    for (int across = 32; across >= 4; across /= 2) {
      if (across > 16 * vectors) continue;
      const int down = 16 * vectors / across, tall = up(rows, down), wide = up(columns, across);
      const int64_t blocks = (int64_t)tall * wide * w->batch, all = blocks * vectors;
      if (all > least || (all == least && blocks > FEW_BLOCKS)) continue;
      least = all;
      w->block = (Tiles){0, 0, down, across, vectors};
      w->block_rows = tall, w->block_columns = wide;
    }
}

static Winograd image_of(const Work *w, int image) {
  Winograd one = w->one;
  one.input += image * w->input_image, one.output += image * w->output_image;
  if (one.added) one.added += image * w->output_image;
  return one;
}

static Tiles block_of(const Work *w, int place) {
  Tiles b = w->block;
  b.row = place / w->block_columns * b.rows, b.column = place % w->block_columns * b.columns;
  return b;
}

// Room for the values of a block, for its pixels, and for the sums of eight channels.
static size_t values_of(const Work *w) { return 36 * winograd_panel(w->one.inputs, w->block.vectors); }
static size_t pixels_of(const Work *w) { return (size_t)(4 * w->block.rows + 2) * (4 * w->block.columns + 16) + 16; }
static size_t sums_of(const Work *w) { return (size_t)36 * WINOGRAD_ROWS * 16 * w->block.vectors; }

static int blocks_of(const Work *w) { return w->batch * w->block_rows * w->block_columns; }

// Many blocks: each is one piece.
static void whole_block(void *work, size_t piece) {
  Work *w = work;
  const int each = w->block_rows * w->block_columns;
  const Winograd c = image_of(w, (int)piece / each);
  const Tiles b = block_of(w, (int)piece % each);
  float *values = borrow((values_of(w) + pixels_of(w) + sums_of(w)) * sizeof(float)), *pixels = values + values_of(w);
  if (!values) {
    w->lacks_memory = 1;
    return;
  }
  chosen->winograd_input(&c, &b, 0, c.inputs, pixels, values);
  chosen->winograd_output(&c, &b, values, 0, c.outputs, pixels + pixels_of(w));
  give_back(values);
}

// Few blocks: a share of a block's input channels, and then a share of its output channels, is a piece.
static void some_inputs(void *work, size_t piece) {
  Work *w = work;
  const int block = (int)piece / SHARES, share = (int)piece % SHARES, each = w->block_rows * w->block_columns;
  const Winograd c = image_of(w, block / each);
  const Tiles b = block_of(w, block % each);
  float *pixels = borrow(pixels_of(w) * sizeof(float));
  if (!pixels) {
    w->lacks_memory = 1;
    return;
  }
  chosen->winograd_input(&c, &b, c.inputs * share / SHARES, c.inputs * (share + 1) / SHARES, pixels,
                         w->values + block * values_of(w));
  give_back(pixels);
}

static void some_outputs(void *work, size_t piece) {
  Work *w = work;
  const int block = (int)piece / SHARES, share = (int)piece % SHARES, each = w->block_rows * w->block_columns;
  const Winograd c = image_of(w, block / each);
  const Tiles b = block_of(w, block % each);
  const int tiles = up(c.outputs, WINOGRAD_ROWS), last = tiles * (share + 1) / SHARES * WINOGRAD_ROWS;
  float *sums = borrow(sums_of(w) * sizeof(float));
  if (!sums) {
    w->lacks_memory = 1;
    return;
  }
  chosen->winograd_output(&c, &b, w->values + block * values_of(w), tiles * share / SHARES * WINOGRAD_ROWS, last, sums);
  give_back(sums);
}

static OrtStatus *run_filter(OrtApi api, OrtKernelContext *context, Work *w) {
  OrtStatus *status = NULL;
  const int blocks = blocks_of(w);
  if (blocks >= FEW_BLOCKS) {
    status = run_pieces(api, context, whole_block, blocks, w);
  } else {
    w->values = borrow(blocks * values_of(w) * sizeof(float));
    if (!w->values) return no_memory(api);
    status = run_pieces(api, context, some_inputs, blocks * SHARES, w);
    if (!status && !w->lacks_memory) status = run_pieces(api, context, some_outputs, blocks * SHARES, w);
    give_back(w->values);
  }
  return !status && w->lacks_memory ? no_memory(api) : status;
}

static OrtStatus *compute_filter(void *kernel, OrtKernelContext *context) {
  const Filter *f = kernel;
  OrtApi api = f->api;
  Array input, bias, added, output;
  TRY(read_input(api, context, 0, &input));
  TRY(read_input(api, context, 2, &bias));
  TRY(read_input(api, context, 3, &added));
  if (input.rank != 4 || input.sizes[1] != f->inputs || (bias.data && elements_of(&bias) != f->outputs))
    return refuse(api, "edgegen's Conv: the input or the bias has another size than the weights say");
  const int64_t height = input.sizes[2] + f->pads[0] + f->pads[2] - 2, width = input.sizes[3] + f->pads[1] + f->pads[3] - 2;
  if (height < 1 || width < 1 || input.sizes[2] > MAX_SIDE || input.sizes[3] > MAX_SIDE || input.sizes[0] > MAX_SIDE)
    return refuse(api, "edgegen's Conv: the image is smaller than the weights, or too large");
  const int64_t sizes[4] = {input.sizes[0], f->outputs, height, width};
  if (added.data && (added.rank != 4 || memcmp(added.sizes, sizes, sizeof sizes)))
    return refuse(api, "edgegen's Conv: what is added has another shape than the output");
  OrtValue *value = NULL;
  TRY(ort_output(api)(context, 0, sizes, 4, &value));
  TRY(read_array(api, value, &output));
  if (!sizes[0]) return NULL;
  Work work = {.one = {f->inputs, f->outputs, (int)input.sizes[2], (int)input.sizes[3], (int)height, (int)width, f->pads[0],
                       f->pads[1], f->activation, f->alpha, f->weights, bias.data, input.data, added.data, output.data},
               .batch = (int)sizes[0],
               .input_image = (size_t)f->inputs * (size_t)(input.sizes[2] * input.sizes[3]),
               .output_image = (size_t)f->outputs * (size_t)(height * width)};
  choose_block(&work);
  if ((int64_t)work.batch * work.block_rows * work.block_columns > 1 << 28)
    return refuse(api, "edgegen's Conv: the image is too large");
  return run_filter(api, context, &work);
}

static const char *filter_name(const OrtOperator *op) { return (void)op, "Conv"; }
static size_t filter_inputs(const OrtOperator *op) { return (void)op, 4; }
static int filter_kind(const OrtOperator *op, size_t i) { return (void)op, i < 2 ? ORT_REQUIRED : ORT_OPTIONAL; }

const OrtOperator winograd_op = {
    COMMON_MEMBERS,
    .name = filter_name,
    .input_type = is_float,
    .input_count = filter_inputs,
    .input_kind = filter_kind,
    .output_count = one_output,
    .create_kernel_v2 = create_filter,
    .compute_v2 = compute_filter,
    .destroy = destroy_filter,
};
