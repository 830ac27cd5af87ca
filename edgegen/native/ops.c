// Custom operators for ONNX Runtime with the meaning of com.microsoft's MatMulNBits and GroupQueryAttention, for the forms of
// them that edgegen's graphs have (edgegen/backends/ort_kernels.py decides which nodes come here).
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "ort_abi.h"

#define DOMAIN_NAME "ai.edgegen.v1"
#define ALIGNMENT 64

static const Kernels *chosen;

#define TRY(call)                \
  do {                           \
    OrtStatus *status_ = (call); \
    if (status_) return status_; \
  } while (0)

static OrtStatus *refuse(OrtApi api, const char *why) { return ort_create_status(api)(ORT_INVALID_ARGUMENT, why); }
static OrtStatus *no_memory(OrtApi api) { return ort_create_status(api)(ORT_FAIL, "edgegen's kernels: out of memory"); }

static void *allocate(size_t bytes) { return aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT); }

typedef struct {
  int64_t sizes[4];
  size_t rank;
  void *data;
} Array;

// `value` as an array; one of rank above 4 has rank 0, which fits nothing.
static OrtStatus *read_array(OrtApi api, const OrtValue *value, Array *array) {
  OrtShapeInfo *shape = NULL;
  memset(array, 0, sizeof *array);
  TRY(ort_shape(api)(value, &shape));
  OrtStatus *status = ort_rank(api)(shape, &array->rank);
  if (!status && array->rank <= 4) status = ort_sizes(api)(shape, array->sizes, array->rank);
  if (array->rank > 4) array->rank = 0;
  ort_release_shape(api)(shape);
  return status ? status : ort_data(api)(value, &array->data);
}

// An input; `data` is NULL where an optional one is left out.
static OrtStatus *read_input(OrtApi api, const OrtKernelContext *context, size_t index, Array *array) {
  const OrtValue *value = NULL;
  size_t count = 0;
  memset(array, 0, sizeof *array);
  TRY(ort_input_count(api)(context, &count));
  if (index >= count) return NULL;
  TRY(ort_input(api)(context, index, &value));
  return value ? read_array(api, value, array) : NULL;
}

static int64_t int_attribute(OrtApi api, const OrtKernelInfo *info, const char *name, int64_t otherwise) {
  int64_t value = otherwise;
  OrtStatus *status = ort_int_attribute(api)(info, name, &value);
  if (status) ort_release_status(api)(status);
  return status ? otherwise : value;
}

static float float_attribute(OrtApi api, const OrtKernelInfo *info, const char *name, float otherwise) {
  float value = otherwise;
  OrtStatus *status = ort_float_attribute(api)(info, name, &value);
  if (status) ort_release_status(api)(status);
  return status ? otherwise : value;
}

// ---- MatMulNBits: float32 [.., inputs] x [rows, inputs] of 4 or 8 bits -> float32 [.., rows]

typedef struct {
  OrtApi api;
  int bits, rows, blocks;
  uint8_t *weights;
} MatMul;

static int tiles_of(int rows) { return (rows + TILE - 1) / TILE; }

static uint16_t half_of(float x) {  // of a float32 that came from a float16, or the nearest one below
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const int exponent = (int)(bits >> 23 & 255) - 112;
  const uint32_t fraction = bits & 0x7fffff, sign = bits >> 16 & 0x8000;
  if (exponent >= 31) return (uint16_t)(sign | 0x7c00 | (exponent == 143 && fraction ? 0x200 : 0));
  if (exponent > 0) return (uint16_t)(sign | exponent << 10 | fraction >> 13);
  return exponent < -10 ? (uint16_t)sign : (uint16_t)(sign | (fraction | 0x800000) >> (14 - exponent));
}

typedef uint8_t u8x16 __attribute__((vector_size(16)));

// The codes of one row and block, from input 2i low and 2i+1 high in byte i, to input i low and 16+i high.
static u8x16 regroup(const uint8_t *codes) {
  u8x16 pairs;
  memcpy(&pairs, codes, sizeof pairs);
  const u8x16 even = pairs & 15, odd = pairs >> 4;
  const u8x16 first = __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const u8x16 second = __builtin_shufflevector(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  return first | second << 4;
}

// One row of a block, at its place in a record: 4 bits are regrouped, 8 bits become signed.
static void pack_row(const uint8_t *codes, int bits, uint8_t *record) {
  u8x16 parts[2];
  if (bits == 4) {
    parts[0] = regroup(codes);
  } else {
    memcpy(parts, codes, sizeof parts);
    parts[0] ^= 128, parts[1] ^= 128;
  }
  for (int j = 0; j < bits; j++) memcpy(record + 64 * j, (const char *)parts + 4 * j, 4);
}

// codes uint8 [rows, blocks, 16 or 32], of 4 bits the even input low; scales float32 [rows, blocks].
static void pack(const uint8_t *codes, const float *scales, int bits, int rows, int blocks, uint8_t *packed) {
  const size_t block_bytes = (size_t)BLOCK * bits / 8;
  for (int t = 0; t < tiles_of(rows); t++)
    for (int b = 0; b < blocks; b++, packed += record_bytes(bits)) {
      memset(packed, 0, record_bytes(bits));  // rows that are not there have the scale 0
      for (int r = 0; r < TILE && t * TILE + r < rows; r++) {
        const size_t place = (size_t)(t * TILE + r) * blocks + b;
        const uint16_t scale = half_of(scales[place]);
        pack_row(codes + place * block_bytes, bits, packed + 4 * r);
        memcpy(packed + codes_bytes(bits) + 2 * r, &scale, sizeof scale);
      }
    }
}

static OrtStatus *constant(OrtApi api, const OrtKernelInfo *info, size_t index, Array *array) {
  int is_constant = 0;
  const OrtValue *value = NULL;
  TRY(ort_constant_input(api)(info, index, &is_constant, &value));
  if (!is_constant || !value) return refuse(api, "edgegen's MatMulNBits: weights must be constant");
  return read_array(api, value, array);
}

static int64_t elements_of(const Array *a) {
  int64_t n = 1;
  for (size_t i = 0; i < a->rank; i++) n *= a->sizes[i];
  return a->rank ? n : -1;
}

static OrtStatus *create_matmul(const OrtOperator *op, OrtApi api, const OrtKernelInfo *info, void **kernel) {
  (void)op;
  const int64_t inputs = int_attribute(api, info, "K", 0), rows = int_attribute(api, info, "N", 0);
  const int64_t bits = int_attribute(api, info, "bits", 4);
  if (inputs < BLOCK || inputs % BLOCK || inputs > 1 << 24 || rows < 1 || rows > 1 << 24 || (bits != 4 && bits != 8) ||
      int_attribute(api, info, "block_size", 0) != BLOCK)
    return refuse(api, "edgegen's MatMulNBits: only 4 or 8 bits in blocks of 32");
  Array codes, scales;
  TRY(constant(api, info, 1, &codes));
  TRY(constant(api, info, 2, &scales));
  const int blocks = (int)(inputs / BLOCK);
  if (elements_of(&codes) != rows * blocks * (BLOCK * bits / 8) || elements_of(&scales) != rows * blocks)
    return refuse(api, "edgegen's MatMulNBits: weights have another size than N and K say");
  MatMul *made = malloc(sizeof *made);
  if (!made) return no_memory(api);
  *made = (MatMul){api, (int)bits, (int)rows, blocks, allocate((size_t)tiles_of((int)rows) * blocks * record_bytes((int)bits))};
  if (!made->weights) {
    free(made);
    return no_memory(api);
  }
  pack(codes.data, scales.data, made->bits, made->rows, blocks, made->weights);
  *kernel = made;
  return NULL;
}

static void destroy_matmul(void *kernel) {
  free(((MatMul *)kernel)->weights);
  free(kernel);
}

typedef struct {
  const MatMul *op;
  const float *input, *bias;
  float *output;
  int tokens, tiles, tiles_each;
  int8_t *codes;
  float *scales;
  int32_t *sums;
} Product;

enum { TOKENS_EACH = 16, BYTES_EACH = 32 << 10 };  // of one piece of work: a microsecond or two

static void quantize_piece(void *work, size_t piece) {
  const Product *p = work;
  const int blocks = p->op->blocks, first = (int)piece * TOKENS_EACH;
  for (int m = first; m < first + TOKENS_EACH && m < p->tokens; m++) {
    const size_t at = (size_t)m * blocks;
    chosen->quantize(p->input + at * BLOCK, blocks, p->codes + at * BLOCK, p->scales + at, p->sums + at);
  }
}

static void multiply_piece(void *work, size_t piece) {
  const Product *p = work;
  const int first = (int)piece * p->tiles_each, last = first + p->tiles_each < p->tiles ? first + p->tiles_each : p->tiles;
  const Activations a = {p->codes, p->scales, p->sums};
  chosen->matmul(p->op->weights, p->op->bits, p->op->blocks, p->op->rows, first, last, p->tokens, a, p->bias, p->output);
}

static OrtStatus *run_pieces(OrtApi api, OrtKernelContext *context, void (*piece)(void *, size_t), int count, void *work) {
  if (count > 1) return ort_parallel_for(api)(context, piece, (size_t)count, 0, work);
  if (count == 1) piece(work, 0);
  return NULL;
}

static OrtStatus *multiply(OrtApi api, OrtKernelContext *context, Product *p) {
  const size_t blocks = (size_t)p->tokens * p->op->blocks;
  char *scratch = allocate(blocks * (BLOCK + sizeof(float) + sizeof(int32_t)));
  if (!scratch) return no_memory(api);
  p->codes = (int8_t *)scratch;
  p->scales = (float *)(scratch + blocks * BLOCK);
  p->sums = (int32_t *)(p->scales + blocks);
  p->tiles = tiles_of(p->op->rows);
  p->tiles_each = (int)(BYTES_EACH / (p->op->blocks * record_bytes(p->op->bits)));
  if (p->tiles_each < 1) p->tiles_each = 1;
  OrtStatus *status = run_pieces(api, context, quantize_piece, (p->tokens + TOKENS_EACH - 1) / TOKENS_EACH, p);
  if (!status) status = run_pieces(api, context, multiply_piece, (p->tiles + p->tiles_each - 1) / p->tiles_each, p);
  free(scratch);
  return status;
}

static OrtStatus *compute_matmul(void *kernel, OrtKernelContext *context) {
  const MatMul *op = kernel;
  OrtApi api = op->api;
  Array input, bias, output;
  TRY(read_input(api, context, 0, &input));
  TRY(read_input(api, context, 5, &bias));
  const int64_t inputs = (int64_t)op->blocks * BLOCK;
  if (!input.rank || input.sizes[input.rank - 1] != inputs || elements_of(&input) / inputs > 1 << 24)
    return refuse(api, "edgegen's MatMulNBits: the input has another size than K says");
  if (bias.data && elements_of(&bias) != op->rows)
    return refuse(api, "edgegen's MatMulNBits: the bias has another size than N says");
  Product product = {op, input.data, bias.data, NULL, (int)(elements_of(&input) / inputs), 0, 0, NULL, NULL, NULL};
  input.sizes[input.rank - 1] = op->rows;
  OrtValue *value = NULL;
  TRY(ort_output(api)(context, 0, input.sizes, input.rank, &value));
  TRY(read_array(api, value, &output));
  product.output = output.data;
  return product.tokens ? multiply(api, context, &product) : NULL;
}

// ---- GroupQueryAttention: one sequence, its cache updated in place where past and present are the same memory

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

// ---- What onnxruntime asks of an operator

static const char *matmul_name(const OrtOperator *op) { return (void)op, "MatMulNBits"; }
static const char *attention_name(const OrtOperator *op) { return (void)op, "GroupQueryAttention"; }
static const char *any_provider(const OrtOperator *op) { return (void)op, NULL; }
static int is_float(const OrtOperator *op, size_t i) { return (void)op, (void)i, ORT_FLOAT; }
static int is_required(const OrtOperator *op, size_t i) { return (void)op, (void)i, ORT_REQUIRED; }
static int default_memory(const OrtOperator *op, size_t i) { return (void)op, (void)i, 0; }
static int one(const OrtOperator *op) { return (void)op, 1; }
static int last_version(const OrtOperator *op) { return (void)op, INT32_MAX; }
static size_t one_output(const OrtOperator *op) { return (void)op, 1; }
static size_t three_outputs(const OrtOperator *op) { return (void)op, 3; }
static size_t matmul_inputs(const OrtOperator *op) { return (void)op, 6; }
static size_t attention_inputs(const OrtOperator *op) { return (void)op, 9; }
static int matmul_type(const OrtOperator *op, size_t i) {
  return (void)op, i == 1 || i == 3 ? ORT_UINT8 : i == 4 ? ORT_INT32 : ORT_FLOAT;
}
static int matmul_kind(const OrtOperator *op, size_t i) { return (void)op, i < 3 ? ORT_REQUIRED : ORT_OPTIONAL; }
static int attention_type(const OrtOperator *op, size_t i) { return (void)op, i == 5 || i == 6 ? ORT_INT32 : ORT_FLOAT; }
static int attention_kind(const OrtOperator *op, size_t i) {
  return (void)op, i == 1 || i == 2 || i > 6 ? ORT_OPTIONAL : ORT_REQUIRED;
}

static const OrtOperator matmul_op = {
    .version = ORT_API_VERSION,
    .name = matmul_name,
    .provider = any_provider,
    .input_type = matmul_type,
    .input_count = matmul_inputs,
    .output_type = is_float,
    .output_count = one_output,
    .destroy = destroy_matmul,
    .input_kind = matmul_kind,
    .output_kind = is_required,
    .input_memory = default_memory,
    .variadic_input_min = one,
    .variadic_input_same = one,
    .variadic_output_min = one,
    .variadic_output_same = one,
    .create_kernel_v2 = create_matmul,
    .compute_v2 = compute_matmul,
    .start_version = one,
    .end_version = last_version,
};

static const OrtOperator attention_op = {
    .version = ORT_API_VERSION,
    .name = attention_name,
    .provider = any_provider,
    .input_type = attention_type,
    .input_count = attention_inputs,
    .output_type = is_float,
    .output_count = three_outputs,
    .destroy = free,
    .input_kind = attention_kind,
    .output_kind = is_required,
    .input_memory = default_memory,
    .variadic_input_min = one,
    .variadic_input_same = one,
    .variadic_output_min = one,
    .variadic_output_same = one,
    .create_kernel_v2 = create_attention,
    .compute_v2 = compute_attention,
    .start_version = one,
    .end_version = last_version,
};

// ---- What edgegen and onnxruntime call

#if defined(__aarch64__)
#include <sys/auxv.h>
static const Kernels *const known[] = {&kernels_neon};
static int runs(const Kernels *k) { return (void)k, (getauxval(AT_HWCAP) >> 20 & 1) != 0; }  // HWCAP_ASIMDDP
#else
#include <cpuid.h>
static const Kernels *const known[] = {&kernels_avx512vnni, &kernels_avx2};

// Which registers the system saves: bit 1 and 2 for AVX, 5 to 7 as well for AVX-512. (Intel SDM volume 1, chapters 14 and 15)
static uint32_t saved_registers(void) {
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return 0;
  __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
  return a;
}

static int runs(const Kernels *k) {
  uint32_t a, b, c, d, base;
  const uint32_t saved = saved_registers();
  if (!__get_cpuid(1, &a, &b, &base, &d) || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
  const int avx2 = (saved & 6) == 6 && base >> 12 & 1 && base >> 29 & 1 && b >> 5 & 1;  // FMA, F16C, AVX2
  if (k == &kernels_avx2) return avx2;
  return avx2 && (saved & 0xe6) == 0xe6 && b >> 16 & 1 && b >> 17 & 1 && b >> 30 & 1 && b >> 31 & 1 && c >> 11 & 1;
}
#endif

// Choose the instruction set: `wanted`, or the best there is if it is empty. Its name; NULL where this processor has none.
__attribute__((visibility("default"))) const char *edgegen_kernels_choose(const char *wanted) {
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (runs(known[i]) && (!*wanted || !strcmp(wanted, known[i]->name))) {
      chosen = known[i];
      return chosen->name;
    }
  return NULL;
}

__attribute__((visibility("default"))) OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
  OrtApi api = base->get_api(ORT_API_VERSION);
  if (!api) return NULL;  // too old to say so; edgegen asks for a newer onnxruntime before
  if (!chosen) return refuse(api, "edgegen's kernels: this processor has none of the instruction sets");
  static OrtDomain *domain;  // one for all sessions: it must outlive each of them
  if (!domain) {
    OrtDomain *made = NULL;
    TRY(ort_create_domain(api)(DOMAIN_NAME, &made));
    TRY(ort_add_operator(api)(made, &matmul_op));
    TRY(ort_add_operator(api)(made, &attention_op));
    domain = made;
  }
  return ort_add_domain(api)(options, domain);
}
