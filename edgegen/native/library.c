// What edgegen and onnxruntime call: the choice of an instruction set, and the registration of the operators.
#include "operators.h"

#define DOMAIN_NAME "ai.edgegen.v1"

static const OrtOperator *const operators[] = {&matmul_op,         &attention_op, &group_norm_op,
                                              &conv_transpose_op, &winograd_op,  &doubling_op,  &look_op};

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
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++) TRY(ort_add_operator(api)(made, operators[i]));
    domain = made;
  }
  return ort_add_domain(api)(options, domain);
}
