// GroupNormalization of ONNX (version 21), and SiLU after it where the attribute `silu` is 1: float32 [batch, channels, ..].
#include "operators.h"

typedef struct {
  OrtApi api;
  int64_t groups;
  float epsilon;
  int silu;
} GroupNorm;

typedef struct {
  const GroupNorm *op;
  const float *input, *scale, *bias;
  float *output;
  size_t channels, plane;  // of one group
} Normalization;

static OrtStatus *create_group_norm(const OrtOperator *op, OrtApi api, const OrtKernelInfo *info, void **kernel) {
  (void)op;
  const int64_t groups = int_attribute(api, info, "num_groups", 0);
  if (groups < 1 || groups > 1 << 20) return refuse(api, "edgegen's GroupNorm: num_groups must be at least 1");
  GroupNorm *made = malloc(sizeof *made);
  if (!made) return no_memory(api);
  *made = (GroupNorm){api, groups, float_attribute(api, info, "epsilon", 1e-5f), int_attribute(api, info, "silu", 0) == 1};
  *kernel = made;
  return NULL;
}

static void normalize_piece(void *work, size_t piece) {
  const Normalization *n = work;
  const size_t at = piece * n->channels * n->plane, channel = piece % (size_t)n->op->groups * n->channels;
  const Group group = {n->input + at, n->scale + channel, n->bias + channel, n->output + at,
                       n->channels,   n->plane,           n->op->epsilon,    n->op->silu};
  chosen->normalize(&group);
}

static OrtStatus *compute_group_norm(void *kernel, OrtKernelContext *context) {
  const GroupNorm *op = kernel;
  OrtApi api = op->api;
  Array input, scale, bias, output;
  TRY(read_input(api, context, 0, &input));
  TRY(read_input(api, context, 1, &scale));
  TRY(read_input(api, context, 2, &bias));
  if (input.rank < 3 || input.sizes[1] % op->groups || elements_of(&scale) != input.sizes[1] ||
      elements_of(&bias) != input.sizes[1])
    return refuse(api, "edgegen's GroupNorm: the groups, the scale or the bias do not fit the channels of the input");
  OrtValue *value = NULL;
  TRY(ort_output(api)(context, 0, input.sizes, input.rank, &value));
  TRY(read_array(api, value, &output));
  const int64_t pieces = input.sizes[0] * op->groups, all = elements_of(&input);
  if (!all) return NULL;
  if (pieces > 1 << 24) return refuse(api, "edgegen's GroupNorm: the batch is too large");
  const size_t channels = (size_t)(input.sizes[1] / op->groups);
  Normalization work = {op, input.data, scale.data, bias.data, output.data, channels, (size_t)(all / pieces) / channels};
  return run_pieces(api, context, normalize_piece, (int)pieces, &work);
}

static const char *group_norm_name(const OrtOperator *op) { return (void)op, "GroupNorm"; }
static size_t group_norm_inputs(const OrtOperator *op) { return (void)op, 3; }

const OrtOperator group_norm_op = {
    COMMON_MEMBERS,
    .name = group_norm_name,
    .input_type = is_float,
    .input_count = group_norm_inputs,
    .input_kind = is_required,
    .output_count = one_output,
    .create_kernel_v2 = create_group_norm,
    .compute_v2 = compute_group_norm,
    .destroy = free,
};
