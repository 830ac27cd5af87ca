// The table of one instruction set's kernels.
#include "kernels.h"

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

const Kernels OWN(kernels) = {TEXT(ISA), OWN(quantize), OWN(matmul), OWN(attend), OWN(join), OWN(normalize),
                             OWN(convolve), OWN(winograd_input), OWN(winograd_output), OWN(doubling_input),
                             OWN(doubling_output), OWN(look)};
