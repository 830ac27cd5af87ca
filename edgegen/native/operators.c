// What the operators have in common: their arguments as arrays, attributes, memory, and work in pieces.
#include <stdatomic.h>

#include "operators.h"

const Kernels *chosen;

OrtStatus *refuse(OrtApi api, const char *why) { return ort_create_status(api)(ORT_INVALID_ARGUMENT, why); }
OrtStatus *no_memory(OrtApi api) { return ort_create_status(api)(ORT_FAIL, "edgegen's kernels: out of memory"); }

enum { SPARES = 16, SPARE_BYTES = 8 << 20 };  // what is kept, at most, and of which size
static _Atomic(char *) spares[SPARES];        // each begins with its size

void *borrow(size_t bytes) {
  char *found = NULL;
  size_t size = 0;
  for (int i = 0; i < SPARES && !found; i++) found = atomic_exchange(&spares[i], NULL);
  if (found) memcpy(&size, found, sizeof size);
  if (size < bytes) {
    free(found);
    found = allocate(bytes + ALIGNMENT);
    if (!found) return NULL;
    memcpy(found, &bytes, sizeof bytes);
  }
  return found + ALIGNMENT;
}

void give_back(void *memory) {
  char *mine = (char *)memory - ALIGNMENT;
  size_t size;
  memcpy(&size, mine, sizeof size);
  for (int i = 0; i < SPARES && mine && size <= SPARE_BYTES; i++) mine = atomic_exchange(&spares[i], mine);
  free(mine);
}

void *allocate(size_t bytes) { return aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT); }

// `value` as an array; one of rank above MAX_RANK has rank 0, which fits nothing.
OrtStatus *read_array(OrtApi api, const OrtValue *value, Array *array) {
  OrtShapeInfo *shape = NULL;
  memset(array, 0, sizeof *array);
  TRY(ort_shape(api)(value, &shape));
  OrtStatus *status = ort_rank(api)(shape, &array->rank);
  if (!status && array->rank <= MAX_RANK) status = ort_sizes(api)(shape, array->sizes, array->rank);
  if (array->rank > MAX_RANK) array->rank = 0;
  ort_release_shape(api)(shape);
  return status ? status : ort_data(api)(value, &array->data);
}

// An input; `data` is NULL where an optional one is left out.
OrtStatus *read_input(OrtApi api, const OrtKernelContext *context, size_t index, Array *array) {
  const OrtValue *value = NULL;
  size_t count = 0;
  memset(array, 0, sizeof *array);
  TRY(ort_input_count(api)(context, &count));
  if (index >= count) return NULL;
  TRY(ort_input(api)(context, index, &value));
  return value ? read_array(api, value, array) : NULL;
}

int64_t int_attribute(OrtApi api, const OrtKernelInfo *info, const char *name, int64_t otherwise) {
  int64_t value = otherwise;
  OrtStatus *status = ort_int_attribute(api)(info, name, &value);
  if (status) ort_release_status(api)(status);
  return status ? otherwise : value;
}

float float_attribute(OrtApi api, const OrtKernelInfo *info, const char *name, float otherwise) {
  float value = otherwise;
  OrtStatus *status = ort_float_attribute(api)(info, name, &value);
  if (status) ort_release_status(api)(status);
  return status ? otherwise : value;
}

OrtStatus *constant(OrtApi api, const OrtKernelInfo *info, size_t index, Array *array) {
  int is_constant = 0;
  const OrtValue *value = NULL;
  TRY(ort_constant_input(api)(info, index, &is_constant, &value));
  if (!is_constant || !value) return refuse(api, "edgegen's kernels: weights must be constant");
  return read_array(api, value, array);
}

int64_t elements_of(const Array *a) {
  int64_t n = 1;
  for (size_t i = 0; i < a->rank; i++) n *= a->sizes[i];
  return a->rank ? n : -1;
}

OrtStatus *run_pieces(OrtApi api, OrtKernelContext *context, void (*piece)(void *, size_t), int count, void *work) {
  if (count > 1) return ort_parallel_for(api)(context, piece, (size_t)count, 0, work);
  if (count == 1) piece(work, 0);
  return NULL;
}

const char *any_provider(const OrtOperator *op) { return (void)op, NULL; }
int is_float(const OrtOperator *op, size_t i) { return (void)op, (void)i, ORT_FLOAT; }
int is_required(const OrtOperator *op, size_t i) { return (void)op, (void)i, ORT_REQUIRED; }
int default_memory(const OrtOperator *op, size_t i) { return (void)op, (void)i, 0; }
int one(const OrtOperator *op) { return (void)op, 1; }
int last_version(const OrtOperator *op) { return (void)op, INT32_MAX; }
size_t one_output(const OrtOperator *op) { return (void)op, 1; }
