// The part of ONNX Runtime's C interface that a custom operator needs.
//
// The interface is a table of function pointers that only ever grows at its end, so a place in it never changes
// (https://onnxruntime.ai/docs/api/c/struct_ort_api.html, in declaration order). Spelled out here because onnxruntime's wheels
// come without their header.
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef struct OrtStatus OrtStatus;
typedef struct OrtValue OrtValue;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtKernelContext OrtKernelContext;
typedef struct OrtShapeInfo OrtShapeInfo;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtDomain OrtDomain;
typedef void (*OrtFunction)(void);
typedef const OrtFunction *OrtApi;

typedef struct {
  OrtApi (*get_api)(uint32_t version);
  const char *(*get_version)(void);
} OrtApiBase;

enum { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };                // OrtErrorCode
enum { ORT_FLOAT = 1, ORT_UINT8 = 2, ORT_INT32 = 6 };           // ONNXTensorElementDataType
enum { ORT_REQUIRED = 0, ORT_OPTIONAL = 1 };                    // OrtCustomOpInputOutputCharacteristic
enum { ORT_API_VERSION = 18 };                                  // 1.18: the first that has all of the below

#define ORT_CALL(api, place, result, ...) ((result(*)(__VA_ARGS__))(api)[place])

#define ort_create_status(api) ORT_CALL(api, 0, OrtStatus *, int, const char *)
#define ort_create_domain(api) ORT_CALL(api, 26, OrtStatus *, const char *, OrtDomain **)
#define ort_add_operator(api) ORT_CALL(api, 27, OrtStatus *, OrtDomain *, const void *)
#define ort_add_domain(api) ORT_CALL(api, 28, OrtStatus *, OrtSessionOptions *, OrtDomain *)
#define ort_data(api) ORT_CALL(api, 51, OrtStatus *, const OrtValue *, void **)
#define ort_rank(api) ORT_CALL(api, 61, OrtStatus *, const OrtShapeInfo *, size_t *)
#define ort_sizes(api) ORT_CALL(api, 62, OrtStatus *, const OrtShapeInfo *, int64_t *, size_t)
#define ort_shape(api) ORT_CALL(api, 65, OrtStatus *, const OrtValue *, OrtShapeInfo **)
#define ort_float_attribute(api) ORT_CALL(api, 85, OrtStatus *, const OrtKernelInfo *, const char *, float *)
#define ort_int_attribute(api) ORT_CALL(api, 86, OrtStatus *, const OrtKernelInfo *, const char *, int64_t *)
#define ort_input_count(api) ORT_CALL(api, 88, OrtStatus *, const OrtKernelContext *, size_t *)
#define ort_input(api) ORT_CALL(api, 90, OrtStatus *, const OrtKernelContext *, size_t, const OrtValue **)
#define ort_output(api) \
  ORT_CALL(api, 91, OrtStatus *, OrtKernelContext *, size_t, const int64_t *, size_t, OrtValue **)
#define ort_release_status(api) ORT_CALL(api, 93, void, OrtStatus *)
#define ort_release_shape(api) ORT_CALL(api, 99, void, OrtShapeInfo *)
#define ort_constant_input(api) ORT_CALL(api, 249, OrtStatus *, const OrtKernelInfo *, size_t, int *, const OrtValue **)
#define ort_parallel_for(api) \
  ORT_CALL(api, 274, OrtStatus *, const OrtKernelContext *, void (*)(void *, size_t), size_t, size_t, void *)

// OrtCustomOp: `version` tells onnxruntime how many of these members there are.
typedef struct OrtOperator {
  uint32_t version;
  void *(*create_kernel)(const struct OrtOperator *, OrtApi, const OrtKernelInfo *);
  const char *(*name)(const struct OrtOperator *);
  const char *(*provider)(const struct OrtOperator *);
  int (*input_type)(const struct OrtOperator *, size_t);
  size_t (*input_count)(const struct OrtOperator *);
  int (*output_type)(const struct OrtOperator *, size_t);
  size_t (*output_count)(const struct OrtOperator *);
  void (*compute)(void *, OrtKernelContext *);
  void (*destroy)(void *);
  int (*input_kind)(const struct OrtOperator *, size_t);
  int (*output_kind)(const struct OrtOperator *, size_t);
  int (*input_memory)(const struct OrtOperator *, size_t);
  int (*variadic_input_min)(const struct OrtOperator *);
  int (*variadic_input_same)(const struct OrtOperator *);
  int (*variadic_output_min)(const struct OrtOperator *);
  int (*variadic_output_same)(const struct OrtOperator *);
  OrtStatus *(*create_kernel_v2)(const struct OrtOperator *, OrtApi, const OrtKernelInfo *, void **);
  OrtStatus *(*compute_v2)(void *, OrtKernelContext *);
  OrtStatus *(*infer_shape)(const struct OrtOperator *, void *);
  int (*start_version)(const struct OrtOperator *);
  int (*end_version)(const struct OrtOperator *);
  size_t (*may_inplace)(int **, int **);
  void (*release_may_inplace)(int *, int *);
  size_t (*alias_map)(int **, int **);
  void (*release_alias_map)(int *, int *);
} OrtOperator;
