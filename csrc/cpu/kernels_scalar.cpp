// The kernels for any processor, with no flags of their own.
#define FASTSAMPLE_INSTRUCTION_SET scalar

#include "simd_scalar.h"

#include "kernel.h"

namespace fastsample::cpu {

const Kernels kScalarKernels = scalar::kKernels;

}  // namespace fastsample::cpu
