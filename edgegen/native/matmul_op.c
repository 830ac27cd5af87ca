// MatMulNBits of com.microsoft: float32 [.., inputs] x [rows, inputs] of 4 or 8 bits -> float32 [.., rows]. Which nodes come
// here, edgegen/backends/ort/kernel_nodes.py decides.
#include "operators.h"

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

static const char *matmul_name(const OrtOperator *op) { return (void)op, "MatMulNBits"; }
static size_t matmul_inputs(const OrtOperator *op) { return (void)op, 6; }
static int matmul_type(const OrtOperator *op, size_t i) {
  return (void)op, i == 1 || i == 3 ? ORT_UINT8 : i == 4 ? ORT_INT32 : ORT_FLOAT;
}
static int matmul_kind(const OrtOperator *op, size_t i) { return (void)op, i < 3 ? ORT_REQUIRED : ORT_OPTIONAL; }

const OrtOperator matmul_op = {
    COMMON_MEMBERS,
    .name = matmul_name,
    .input_type = matmul_type,
    .input_count = matmul_inputs,
    .input_kind = matmul_kind,
    .output_count = one_output,
    .create_kernel_v2 = create_matmul,
    .compute_v2 = compute_matmul,
    .destroy = destroy_matmul,
};
