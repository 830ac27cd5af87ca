// ConvTranspose of ONNX for 4 x 4 weights and steps of 2: float32 [batch, inputs, height, width] to [batch, outputs, ..], of
// twice the size and two more, less the pads; and the activation after it; with the products of minimal filtering, whose weights
// take four times their room. Fewer than `direct_below` tiles do not repay the reading of them: those have all products.
#include "operators.h"

enum { POINTS = 16, PHASES = 4, SIDE = 6, MAX_IMAGE_SIDE = 1 << 20, MAX_CHANNELS = 1 << 16, MAX_TILES = 1 << 28 };
enum { FEW_BLOCKS = 16, SHARES = 4 };
enum { WIDE_INPUTS = 384 };  // of more inputs a cache holds the values of one vector of tiles alone

typedef struct {
  OrtApi api;
  int inputs, outputs, pads[4], activation;
  int64_t direct_below;
  void *direct;  // a kernel of conv_transpose_op.c
  float slope;
  float *weights;
} Filter;

// The 2 x 2 weights of a phase to 4 x 4 points: G g G^T of Lavin and Gray.
static void to_points(const double g[2][2], double *points) {
  double half[4][2];
  for (int x = 0; x < 2; x++) {
    half[0][x] = g[0][x], half[3][x] = g[1][x];
    half[1][x] = (g[0][x] + g[1][x]) / 2, half[2][x] = (g[0][x] - g[1][x]) / 2;
  }
  for (int i = 0; i < 4; i++) {
    points[4 * i] = half[i][0], points[4 * i + 3] = half[i][1];
    points[4 * i + 1] = (half[i][0] + half[i][1]) / 2, points[4 * i + 2] = (half[i][0] - half[i][1]) / 2;
  }
}

static void pack(const float *weights, const Filter *f) {  // [inputs, outputs, 4, 4]
  for (int o = 0; o < f->outputs; o++)
    for (int phase = 0; phase < PHASES; phase++)
      for (int c = 0; c < f->inputs; c++) {
        const float *w = weights + ((size_t)c * f->outputs + o) * 16 + phase / 2 * 4 + phase % 2;
        const double g[2][2] = {{w[10], w[8]}, {w[2], w[0]}};  // the pixel before has the later row or column of the weights
        double points[POINTS];
        to_points(g, points);
        const size_t tile = (size_t)(o / WINOGRAD_ROWS * PHASES + phase) * POINTS;
        for (int i = 0; i < POINTS; i++)
          f->weights[((tile + i) * f->inputs + c) * WINOGRAD_ROWS + o % WINOGRAD_ROWS] = (float)points[i];
      }
}

static void destroy_filter(void *kernel) {
  Filter *f = kernel;
  if (f->direct) conv_transpose_op.destroy(f->direct);
  free(f->weights), free(f);
}

static OrtStatus *create_filter(const OrtOperator *op, OrtApi api, const OrtKernelInfo *info, void **kernel) {
  Array weights;
  TRY(constant(api, info, 1, &weights));
  const int64_t inputs = weights.sizes[0], outputs = weights.sizes[1];
  if (weights.rank != 4 || weights.sizes[2] != 4 || weights.sizes[3] != 4 || outputs < 1 || inputs < 1 ||
      outputs > MAX_CHANNELS || inputs > MAX_CHANNELS)
    return refuse(api, "edgegen's DoublingConvTranspose: the weights must be [inputs, outputs, 4, 4]");
  Filter made = {.api = api, .inputs = (int)inputs, .outputs = (int)outputs};
  const char *const names[4] = {"pad_top", "pad_left", "pad_bottom", "pad_right"};
  int fits = 1;
  for (int i = 0; i < 4; i++) {
    const int64_t pad = int_attribute(api, info, names[i], 0);
    fits &= pad >= 0 && pad <= 3;
    made.pads[i] = (int)pad;
  }
  if (!fits) return refuse(api, "edgegen's DoublingConvTranspose: pads must be 0 to 3");
  made.activation = (int)int_attribute(api, info, "activation", NO_ACTIVATION);
  made.slope = float_attribute(api, info, "alpha", 0.01f);
  const size_t rows = ((size_t)outputs + WINOGRAD_ROWS - 1) / WINOGRAD_ROWS * WINOGRAD_ROWS;
  const size_t bytes = rows * (size_t)inputs * POINTS * PHASES * sizeof(float);
  Filter *kept = malloc(sizeof *kept);
  made.weights = allocate(bytes);
  if (!kept || !made.weights) {
    free(kept), free(made.weights);
    return no_memory(api);
  }
  memset(made.weights, 0, bytes);
  pack(weights.data, &made);
  made.direct_below = int_attribute(api, info, "direct_below", 0);
  OrtStatus *status = made.direct_below > 0 ? conv_transpose_op.create_kernel_v2(op, api, info, &made.direct) : NULL;
  memcpy(kept, &made, sizeof made);
  if (status) destroy_filter(kept);
  *kernel = status ? NULL : kept;
  return status;
}

// Vectors of tiles in blocks of one or two, the last of which may be one vector.
typedef struct {
  Doubling one;
  int all, each;  // vectors; of them in a block
  float *values;  // of all blocks, where what goes in and what comes out are pieces of their own
  int lacks_memory;
} Work;

static int blocks_of(const Work *w) { return (w->all + w->each - 1) / w->each; }
static int vectors_of(const Work *w, int block) {
  return w->all - block * w->each < w->each ? w->all - block * w->each : w->each;
}
static size_t values_of(const Work *w) { return POINTS * winograd_panel(w->one.inputs, w->each); }
static size_t room_of(const Work *w) { return (size_t)(POINTS + SIDE * SIDE) * WINOGRAD_ROWS * 16 * w->each; }

static void whole_block(void *work, size_t piece) {
  Work *w = work;
  const int first = (int)piece * w->each * 16, vectors = vectors_of(w, (int)piece);
  float *values = borrow((values_of(w) + room_of(w)) * sizeof(float));
  if (!values) {
    w->lacks_memory = 1;
    return;
  }
  chosen->doubling_input(&w->one, first, vectors, 0, w->one.inputs, values);
  chosen->doubling_output(&w->one, first, vectors, values, 0, w->one.outputs, values + values_of(w));
  give_back(values);
}

static void some_inputs(void *work, size_t piece) {
  const Work *w = work;
  const int block = (int)piece / SHARES, share = (int)piece % SHARES, inputs = w->one.inputs;
  chosen->doubling_input(&w->one, block * w->each * 16, vectors_of(w, block), inputs * share / SHARES,
                         inputs * (share + 1) / SHARES, w->values + block * values_of(w));
}

static void some_outputs(void *work, size_t piece) {
  Work *w = work;
  const int block = (int)piece / SHARES, share = (int)piece % SHARES, outputs = w->one.outputs;
  const int tiles = (outputs + WINOGRAD_ROWS - 1) / WINOGRAD_ROWS, last = tiles * (share + 1) / SHARES * WINOGRAD_ROWS;
  float *room = borrow(room_of(w) * sizeof(float));
  if (!room) {
    w->lacks_memory = 1;
    return;
  }
  chosen->doubling_output(&w->one, block * w->each * 16, vectors_of(w, block), w->values + block * values_of(w),
                          tiles * share / SHARES * WINOGRAD_ROWS, last < outputs ? last : outputs, room);
  give_back(room);
}

static OrtStatus *run_filter(OrtApi api, OrtKernelContext *context, Work *w) {
  const int blocks = blocks_of(w);
  OrtStatus *status = NULL;
  if (blocks >= FEW_BLOCKS) {
    status = run_pieces(api, context, whole_block, blocks, w);
  } else {
    w->values = borrow(blocks * values_of(w) * sizeof(float));
    if (!w->values) return no_memory(api);
    status = run_pieces(api, context, some_inputs, blocks * SHARES, w);
    if (!status) status = run_pieces(api, context, some_outputs, blocks * SHARES, w);
    give_back(w->values);
  }
  return !status && w->lacks_memory ? no_memory(api) : status;
}

static OrtStatus *compute_filter(void *kernel, OrtKernelContext *context) {
  const Filter *f = kernel;
  OrtApi api = f->api;
  Array input, bias, output;
  TRY(read_input(api, context, 0, &input));
  TRY(read_input(api, context, 2, &bias));
  const int64_t *s = input.sizes;
  if (input.rank != 4 || s[1] != f->inputs || (bias.data && elements_of(&bias) != f->outputs))
    return refuse(api, "edgegen's DoublingConvTranspose: the input or the bias has another size than the weights say");
  if (s[0] > MAX_IMAGE_SIDE || s[2] < 1 || s[2] > MAX_IMAGE_SIDE || s[3] < 1 || s[3] > MAX_IMAGE_SIDE)
    return refuse(api, "edgegen's DoublingConvTranspose: the input is empty or too large");
  const int64_t height = 2 * s[2] + 2 - f->pads[0] - f->pads[2], width = 2 * s[3] + 2 - f->pads[1] - f->pads[3];
  const int64_t down = (s[2] + DOUBLING_STEP) / DOUBLING_STEP, across = (s[3] + DOUBLING_STEP) / DOUBLING_STEP;
  if (height < 1 || width < 1 || s[0] * down > MAX_TILES || s[0] * down * across > MAX_TILES)
    return refuse(api, "edgegen's DoublingConvTranspose: the output is empty or too large");
  if (s[0] * down * across < f->direct_below) return conv_transpose_op.compute_v2(f->direct, context);
  const int64_t sizes[4] = {s[0], f->outputs, height, width};
  OrtValue *value = NULL;
  TRY(ort_output(api)(context, 0, sizes, 4, &value));
  TRY(read_array(api, value, &output));
  if (!s[0]) return NULL;
  Work work = {
      .one = {f->inputs, f->outputs, (int)s[0], (int)s[2], (int)s[3], (int)height, (int)width, f->pads[0], f->pads[1],
              (int)down, (int)across, f->activation, f->slope, f->weights, bias.data, input.data, output.data},
      .all = (int)((s[0] * down * across + 15) / 16),
      .each = f->inputs > WIDE_INPUTS ? 1 : 2,
  };
  return run_filter(api, context, &work);
}

static const char *filter_name(const OrtOperator *op) { return (void)op, "DoublingConvTranspose"; }
static size_t filter_inputs(const OrtOperator *op) { return (void)op, 3; }
static int filter_kind(const OrtOperator *op, size_t i) { return (void)op, i < 2 ? ORT_REQUIRED : ORT_OPTIONAL; }

const OrtOperator doubling_op = {
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
