// What the operators have in common, and the operators that there are.
#pragma once
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "ort_abi.h"

enum { ALIGNMENT = 64, MAX_RANK = 6 };

#define TRY(call)                \
  do {                           \
    OrtStatus *status_ = (call); \
    if (status_) return status_; \
  } while (0)

typedef struct {
  int64_t sizes[MAX_RANK];
  size_t rank;
  void *data;
} Array;

extern const Kernels *chosen;  // for this processor
extern const OrtOperator matmul_op, attention_op, group_norm_op, conv_transpose_op, winograd_op, doubling_op, look_op;

OrtStatus *refuse(OrtApi api, const char *why);
OrtStatus *no_memory(OrtApi api);
void *allocate(size_t bytes);  // aligned; to be freed with free()

// As allocate(), for a short while: memory of an earlier run where some is free, which spares the system's pages. Then
// give_back(). Any number of threads may.
void *borrow(size_t bytes);
void give_back(void *memory);

// `value` as an array; one of rank above MAX_RANK has rank 0, which fits nothing.
OrtStatus *read_array(OrtApi api, const OrtValue *value, Array *array);
// An input; `data` is NULL where an optional one is left out.
OrtStatus *read_input(OrtApi api, const OrtKernelContext *context, size_t index, Array *array);
// An input that is the same at every run, when the operator is made.
OrtStatus *constant(OrtApi api, const OrtKernelInfo *info, size_t index, Array *array);
int64_t elements_of(const Array *a);  // -1 where the rank is 0
int64_t int_attribute(OrtApi api, const OrtKernelInfo *info, const char *name, int64_t otherwise);
float float_attribute(OrtApi api, const OrtKernelInfo *info, const char *name, float otherwise);
// `piece(work, 0)` to `piece(work, count - 1)`, on the session's threads.
OrtStatus *run_pieces(OrtApi api, OrtKernelContext *context, void (*piece)(void *, size_t), int count, void *work);

// Answers to what onnxruntime asks of an operator.
const char *any_provider(const OrtOperator *op);
int is_float(const OrtOperator *op, size_t i);
int is_required(const OrtOperator *op, size_t i);
int default_memory(const OrtOperator *op, size_t i);
int one(const OrtOperator *op);
int last_version(const OrtOperator *op);
size_t one_output(const OrtOperator *op);

// The members that are the same for every operator.
#define COMMON_MEMBERS                                                                                           \
  .version = ORT_API_VERSION, .provider = any_provider, .output_type = is_float, .output_kind = is_required,     \
  .input_memory = default_memory, .variadic_input_min = one, .variadic_input_same = one,                         \
  .variadic_output_min = one, .variadic_output_same = one, .start_version = one, .end_version = last_version
