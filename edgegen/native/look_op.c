// Attention of ONNX (version 23) where every query sees every key: float32 query [batch, heads, queries, size], key [batch,
// kv_heads, keys, size], value [batch, kv_heads, keys, value_size] -> [batch, heads, queries, value_size].
#include <math.h>

#include "operators.h"

enum { MAX_SIZE = 1 << 12, MAX_ENTRIES = 1 << 24, MAX_HEADS = 1 << 20 };
enum { PACKED_EACH = 512 };  // keys that are packed in one piece

typedef struct {
  OrtApi api;
  float scale;  // 0: one over the root of the size
} LookOp;

static OrtStatus *create_look(const OrtOperator *op, OrtApi api, const OrtKernelInfo *info, void **kernel) {
  (void)op;
  LookOp *made = malloc(sizeof *made);
  if (!made) return no_memory(api);
  *made = (LookOp){api, float_attribute(api, info, "scale", 0)};
  *kernel = made;
  return NULL;
}

typedef struct {
  Look one;
  int heads, kv_heads, queries, pieces, blocks;  // heads of all sequences; pieces to pack and blocks of queries, of a head
  const float *query, *key, *value;
  float *packed_keys, *packed_values, *output;
  size_t keys_step, values_step;  // from one head's packed ones to the next
  int lacks_memory;
} Work;

// Some keys and values of a head, as kernels.h says.
static void pack_piece(void *work, size_t piece) {
  const Work *w = work;
  const int head = (int)piece / w->pieces, first = (int)piece % w->pieces * PACKED_EACH;
  const int keys = w->one.keys, last = first + PACKED_EACH < keys ? first + PACKED_EACH : keys;
  const int size = w->one.size, value_size = w->one.value_size;
  const float *key = w->key + (size_t)head * keys * size, *value = w->value + (size_t)head * keys * value_size;
  float *to = w->packed_keys + head * w->keys_step + (size_t)first * size;
  for (int tile = first; tile < last; tile += 8, to += 8 * size)
    for (int r = 0; r < 8; r++)
      for (int d = 0; d < size; d++) to[8 * d + r] = tile + r < keys ? key[(size_t)(tile + r) * size + d] : 0;
  to = w->packed_values + head * w->values_step;
  for (int tile = 0; tile < value_size; tile += 8, to += (size_t)8 * keys) {
    const int there = value_size - tile < 8 ? value_size - tile : 8;
    for (int k = first; k < last; k++)
      for (int r = 0; r < 8; r++) to[8 * (size_t)k + r] = r < there ? value[(size_t)k * value_size + tile + r] : 0;
  }
}

static void look_piece(void *work, size_t piece) {
  Work *w = work;
  const int head = (int)piece / w->blocks, first = (int)piece % w->blocks * LOOK_QUERIES;
  const int queries = w->queries - first < LOOK_QUERIES ? w->queries - first : LOOK_QUERIES;
  const int kv_head = head / (w->heads / w->kv_heads);
  const size_t row = (size_t)head * w->queries + first;
  Look one = w->one;
  one.packed_keys = w->packed_keys + kv_head * w->keys_step;
  one.packed_values = w->packed_values + kv_head * w->values_step;
  float *room = borrow(look_room(one.size, one.value_size) * sizeof(float));
  if (!room) {
    w->lacks_memory = 1;
    return;
  }
  chosen->look(&one, w->query + row * one.size, queries, w->output + row * one.value_size, room);
  give_back(room);
}

static int fit(const Array *q, const Array *k, const Array *v) {
  if (q->rank != 4 || k->rank != 4 || v->rank != 4) return 0;
  for (int i = 0; i < 4; i++)
    if (q->sizes[i] < 1 || k->sizes[i] < 1 || v->sizes[i] < 1) return 0;
  return q->sizes[0] == k->sizes[0] && q->sizes[0] == v->sizes[0] && k->sizes[1] == v->sizes[1] &&
         q->sizes[1] % k->sizes[1] == 0 && k->sizes[2] == v->sizes[2] && q->sizes[3] == k->sizes[3] &&
         q->sizes[3] <= MAX_SIZE && v->sizes[3] <= MAX_SIZE && q->sizes[2] <= MAX_ENTRIES && k->sizes[2] <= MAX_ENTRIES &&
         q->sizes[0] <= MAX_HEADS && q->sizes[0] * q->sizes[1] <= MAX_HEADS;
}

static OrtStatus *compute_look(void *kernel, OrtKernelContext *context) {
  const LookOp *op = kernel;
  OrtApi api = op->api;
  Array query, key, value, output;
  TRY(read_input(api, context, 0, &query));
  TRY(read_input(api, context, 1, &key));
  TRY(read_input(api, context, 2, &value));
  if (!fit(&query, &key, &value)) return refuse(api, "edgegen's Attention: queries, keys and values do not fit one another");
  const int64_t *q = query.sizes, sizes[4] = {q[0], q[1], q[2], value.sizes[3]};
  OrtValue *made = NULL;
  TRY(ort_output(api)(context, 0, sizes, 4, &made));
  TRY(read_array(api, made, &output));
  const int keys = (int)key.sizes[2], size = (int)q[3], value_size = (int)value.sizes[3];
  Work work = {
      .one = {keys, size, value_size, op->scale != 0 ? op->scale : 1 / sqrtf((float)size), NULL, NULL},
      .heads = (int)(q[0] * q[1]), .kv_heads = (int)(q[0] * key.sizes[1]), .queries = (int)q[2],
      .pieces = (keys + PACKED_EACH - 1) / PACKED_EACH, .blocks = (int)((q[2] + LOOK_QUERIES - 1) / LOOK_QUERIES),
      .query = query.data, .key = key.data, .value = value.data, .output = output.data,
      .keys_step = (size_t)(keys + 7) / 8 * 8 * size, .values_step = (size_t)(value_size + 7) / 8 * 8 * keys,
  };
  if ((int64_t)work.heads * work.blocks > INT32_MAX || (int64_t)work.kv_heads * work.pieces > INT32_MAX)
    return refuse(api, "edgegen's Attention: the input is too large");
  work.packed_keys = borrow((size_t)work.kv_heads * (work.keys_step + work.values_step) * sizeof(float));
  if (!work.packed_keys) return no_memory(api);
  work.packed_values = work.packed_keys + work.kv_heads * work.keys_step;
  OrtStatus *status = run_pieces(api, context, pack_piece, work.kv_heads * work.pieces, &work);
  if (!status) status = run_pieces(api, context, look_piece, work.heads * work.blocks, &work);
  give_back(work.packed_keys);
  return !status && work.lacks_memory ? no_memory(api) : status;
}

static const char *look_name(const OrtOperator *op) { return (void)op, "Attention"; }
static size_t look_inputs(const OrtOperator *op) { return (void)op, 3; }

const OrtOperator look_op = {
    COMMON_MEMBERS,
    .name = look_name,
    .input_type = is_float,
    .input_count = look_inputs,
    .input_kind = is_required,
    .output_count = one_output,
    .create_kernel_v2 = create_look,
    .compute_v2 = compute_look,
    .destroy = free,
};
