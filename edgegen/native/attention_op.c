// GroupQueryAttention of com.microsoft: one sequence, its cache updated in place where past and present are the same memory.
// Which nodes come here, edgegen/backends/ort/kernel_nodes.py decides.
#include <math.h>

#include "operators.h"

typedef struct {
  OrtApi api;
  int heads, kv_heads, window;
  int do_rotary;
  float scale, softcap;
} AttentionOp;

static OrtStatus *create_attention(const OrtOperator *op, OrtApi api, const OrtKernelInfo *info, void **kernel) {
  (void)op;
  const int64_t heads = int_attribute(api, info, "num_heads", 0), kv_heads = int_attribute(api, info, "kv_num_heads", 0);
  const int64_t window = int_attribute(api, info, "local_window_size", -1);
  if (heads < 1 || heads > 1 << 16 || kv_heads < 1 || heads % kv_heads || heads / kv_heads > MAX_ROWS || window > 1 << 30)
    return refuse(api, "edgegen's GroupQueryAttention: these numbers of heads are not supported");
  AttentionOp *made = malloc(sizeof *made);
  if (!made) return no_memory(api);
  *made = (AttentionOp){api,
                        (int)heads,
                        (int)kv_heads,
                        window > 0 ? (int)window : 0,
                        int_attribute(api, info, "do_rotary", 0) != 0,
                        float_attribute(api, info, "scale", 0),
                        float_attribute(api, info, "softcap", 0)};
  *kernel = made;
  return NULL;
}

typedef struct {
  Attention a;
  const float *query, *key, *value;               // of the new tokens: [tokens, ..]
  size_t query_stride, key_stride, value_stride;  // floats from one token to the next
  const float *cosine, *sine;                     // [position, turned / 2]
  int turned;                                     // how many numbers of a head are turned
  float scale;
  float *turned_query, *present_key, *present_value;
  Partial *partials;
  int queries_each, pieces;
} Step;

static void turn(const Step *s, const float *from, int position, float factor, float *to) {
  const int half = s->turned / 2;
  const float *cosine = s->cosine + (size_t)position * half, *sine = s->sine + (size_t)position * half;
  for (int i = 0; i < half; i++) {
    const float x = from[i], y = from[half + i];
    to[i] = (x * cosine[i] - y * sine[i]) * factor;
    to[half + i] = (y * cosine[i] + x * sine[i]) * factor;
  }
  for (int i = s->turned; i < s->a.size; i++) to[i] = from[i] * factor;
}

// A token's queries are turned and scaled, its keys turned, and keys and values appended to the cache.
static void place_token(void *work, size_t token) {
  const Step *s = work;
  const Attention *a = &s->a;
  const int position = a->past + (int)token, size = a->size;
  for (int h = 0; h < a->heads; h++)
    turn(s, s->query + token * s->query_stride + (size_t)h * size, position, s->scale,
         s->turned_query + ((size_t)h * a->tokens + token) * size);
  for (int h = 0; h < a->kv_heads; h++) {
    const size_t at = ((size_t)h * a->capacity + position) * size;
    turn(s, s->key + token * s->key_stride + (size_t)h * size, position, 1, s->present_key + at);
    memcpy(s->present_value + at, s->value + token * s->value_stride + (size_t)h * size, sizeof(float) * size);
  }
}

static void attend_queries(void *work, size_t piece) {
  const Step *s = work;
  const Attention *a = &s->a;
  const int kv_head = (int)piece % a->kv_heads, first = (int)piece / a->kv_heads * s->queries_each;
  const int last = first + s->queries_each < a->tokens ? first + s->queries_each : a->tokens, end = a->past + last;
  const int seen = a->past + first + 1, begin = a->window && seen > a->window ? seen - a->window : 0;
  Partial partial;
  chosen->attend(a, kv_head, first, last, begin, end, &partial);
  chosen->join(a, kv_head, first, last, 1, &partial);
}

static void attend_keys(void *work, size_t piece) {  // few queries, many keys: the keys are split
  const Step *s = work;
  const Attention *a = &s->a;
  const int first = (int)piece / a->kv_heads * SPLIT, end = a->past + a->tokens;
  const int last = first + SPLIT < end ? first + SPLIT : end, kv_head = (int)piece % a->kv_heads;
  chosen->attend(a, kv_head, 0, a->tokens, first, last, s->partials + (size_t)kv_head * s->pieces + first / SPLIT);
}

static OrtStatus *attend_step(OrtApi api, OrtKernelContext *context, Step *s) {
  const Attention *a = &s->a;
  const int group = a->heads / a->kv_heads, end = a->past + a->tokens;
  if (a->tokens < 4)
    for (int t = 0; t < a->tokens; t++) place_token(s, (size_t)t);
  else
    TRY(ort_parallel_for(api)(context, place_token, (size_t)a->tokens, 0, s));
  s->queries_each = MAX_ROWS / group;
  if (a->tokens > s->queries_each || a->window) {
    const int blocks = (a->tokens + s->queries_each - 1) / s->queries_each;
    return run_pieces(api, context, attend_queries, blocks * a->kv_heads, s);
  }
  s->pieces = (end + SPLIT - 1) / SPLIT;
  s->partials = allocate(sizeof(Partial) * (size_t)s->pieces * a->kv_heads);
  if (!s->partials) return no_memory(api);
  OrtStatus *status = NULL;
  const int count = s->pieces * a->kv_heads;
  if (end <= SPLIT / 4)  // waking other threads would cost more
    for (int i = 0; i < count; i++) attend_keys(s, (size_t)i);
  else
    status = run_pieces(api, context, attend_keys, count, s);
  for (int h = 0; !status && h < a->kv_heads; h++)
    chosen->join(a, h, 0, a->tokens, s->pieces, s->partials + (size_t)h * s->pieces);
  free(s->partials);
  return status;
}

// Where the queries, keys and values of the new tokens are: packed side by side, or apart.
static OrtStatus *read_tokens(OrtApi api, OrtKernelContext *context, Step *s) {
  Array query, key, value;
  Attention *a = &s->a;
  TRY(read_input(api, context, 0, &query));
  TRY(read_input(api, context, 1, &key));
  TRY(read_input(api, context, 2, &value));
  const int64_t width = (int64_t)a->heads * a->size, kv_width = (int64_t)a->kv_heads * a->size;
  const int is_packed = !key.data;
  if (query.rank != 3 || query.sizes[0] != 1 || query.sizes[1] < 1 || query.sizes[1] > 1 << 24 ||
      query.sizes[2] != width + (is_packed ? 2 * kv_width : 0))
    return refuse(api, "edgegen's GroupQueryAttention: query must be [1, tokens, heads * head size]");
  a->tokens = (int)query.sizes[1];
  s->query = query.data;
  s->query_stride = (size_t)query.sizes[2];
  if (is_packed) {
    s->key = s->query + width;
    s->value = s->key + kv_width;
    s->key_stride = s->value_stride = s->query_stride;
    return NULL;
  }
  if (key.rank != 3 || value.rank != 3 || key.sizes[0] != 1 || value.sizes[0] != 1 || key.sizes[1] != a->tokens ||
      value.sizes[1] != a->tokens || key.sizes[2] != kv_width || value.sizes[2] != kv_width)
    return refuse(api, "edgegen's GroupQueryAttention: key and value must be [1, tokens, key/value heads * head size]");
  s->key = key.data;
  s->value = value.data;
  s->key_stride = s->value_stride = (size_t)kv_width;
  return NULL;
}

static OrtStatus *read_rotary(const AttentionOp *op, OrtKernelContext *context, Step *s) {
  Array cosine, sine;
  if (!op->do_rotary) return NULL;
  TRY(read_input(op->api, context, 7, &cosine));
  TRY(read_input(op->api, context, 8, &sine));
  if (!cosine.data || !sine.data || cosine.rank != 2 || sine.rank != 2 || cosine.sizes[0] != sine.sizes[0] ||
      cosine.sizes[1] != sine.sizes[1] || cosine.sizes[1] < 1 || 2 * cosine.sizes[1] > s->a.size)
    return refuse(op->api, "edgegen's GroupQueryAttention: the rotary tables have a wrong shape");
  if (s->a.past + s->a.tokens > cosine.sizes[0])
    return refuse(op->api, "edgegen's GroupQueryAttention: a position lies behind the end of the rotary tables");
  s->cosine = cosine.data;
  s->sine = sine.data;
  s->turned = (int)(2 * cosine.sizes[1]);
  return NULL;
}

// The present cache: the past one where it is the same memory, else a copy of it.
static OrtStatus *bind_cache(OrtApi api, OrtKernelContext *context, size_t index, const Array *past, int64_t filled,
                             float **present) {
  OrtValue *value = NULL;
  Array array;
  TRY(ort_output(api)(context, index, past->sizes, 4, &value));
  TRY(read_array(api, value, &array));
  *present = array.data;
  const int64_t head = past->sizes[2] * past->sizes[3];
  if (array.data != past->data)
    for (int64_t h = 0; h < past->sizes[1]; h++)
      memcpy(*present + h * head, (float *)past->data + h * head, sizeof(float) * (size_t)(filled * past->sizes[3]));
  return NULL;
}

static OrtStatus *read_cache(const AttentionOp *op, OrtKernelContext *context, Step *s, Array *past_key, Array *past_value) {
  TRY(read_input(op->api, context, 3, past_key));
  TRY(read_input(op->api, context, 4, past_value));
  if (past_key->rank != 4 || past_value->rank != 4 || memcmp(past_key->sizes, past_value->sizes, sizeof past_key->sizes) ||
      past_key->sizes[0] != 1 || past_key->sizes[1] != op->kv_heads || past_key->sizes[2] < 1 ||
      past_key->sizes[2] > 1 << 24 || past_key->sizes[3] < 16 || past_key->sizes[3] % 16 || past_key->sizes[3] > MAX_HEAD)
    return refuse(op->api, "edgegen's GroupQueryAttention: the cache must be [1, key/value heads, entries, head size]");
  s->a.capacity = (int)past_key->sizes[2];
  s->a.size = (int)past_key->sizes[3];
  return NULL;
}

static OrtStatus *bind_step(const AttentionOp *op, OrtKernelContext *context, Step *s) {
  OrtApi api = op->api;
  Attention *a = &s->a;
  Array past_key, past_value, lengths, output;
  TRY(read_cache(op, context, s, &past_key, &past_value));
  TRY(read_tokens(api, context, s));
  TRY(read_input(api, context, 5, &lengths));
  if (elements_of(&lengths) != 1) return refuse(api, "edgegen's GroupQueryAttention: seqlens_k must have one number");
  const int64_t end = (int64_t) * (const int32_t *)lengths.data + 1;
  if (end < a->tokens || end > a->capacity)
    return refuse(api, "edgegen's GroupQueryAttention: the tokens do not fit into the cache");
  a->past = (int)end - a->tokens;
  TRY(read_rotary(op, context, s));
  s->scale = op->scale != 0 ? op->scale : 1 / sqrtf((float)a->size);
  const int64_t shape[3] = {1, a->tokens, (int64_t)a->heads * a->size};
  OrtValue *value = NULL;
  TRY(ort_output(api)(context, 0, shape, 3, &value));
  TRY(read_array(api, value, &output));
  a->output = output.data;
  TRY(bind_cache(api, context, 1, &past_key, a->past, &s->present_key));
  TRY(bind_cache(api, context, 2, &past_value, a->past, &s->present_value));
  a->keys = s->present_key;
  a->values = s->present_value;
  return NULL;
}

static OrtStatus *compute_attention(void *kernel, OrtKernelContext *context) {
  const AttentionOp *op = kernel;
  Step step = {.a = {.heads = op->heads, .kv_heads = op->kv_heads, .window = op->window, .softcap = op->softcap}};
  TRY(bind_step(op, context, &step));
  step.turned_query = allocate(sizeof(float) * (size_t)step.a.heads * step.a.tokens * step.a.size);
  if (!step.turned_query) return no_memory(op->api);
  step.a.query = step.turned_query;
  OrtStatus *status = attend_step(op->api, context, &step);
  free(step.turned_query);
  return status;
}

static const char *attention_name(const OrtOperator *op) { return (void)op, "GroupQueryAttention"; }
static size_t attention_inputs(const OrtOperator *op) { return (void)op, 9; }
static size_t three_outputs(const OrtOperator *op) { return (void)op, 3; }
static int attention_type(const OrtOperator *op, size_t i) { return (void)op, i == 5 || i == 6 ? ORT_INT32 : ORT_FLOAT; }
static int attention_kind(const OrtOperator *op, size_t i) {
  return (void)op, i == 1 || i == 2 || i > 6 ? ORT_OPTIONAL : ORT_REQUIRED;
}

const OrtOperator attention_op = {
    COMMON_MEMBERS,
    .name = attention_name,
    .input_type = attention_type,
    .input_count = attention_inputs,
    .input_kind = attention_kind,
    .output_count = three_outputs,
    .create_kernel_v2 = create_attention,
    .compute_v2 = compute_attention,
    .destroy = free,
};
