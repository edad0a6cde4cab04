// The kernels for scalar: the build compiles this file, and only this one, with that instruction set's flags.
#define FASTSAMPLE_INSTRUCTION_SET scalar

#include <type_traits>

#include "simd_scalar.h"
// after the vector type
#include "kernel.h"

namespace fastsample::cpu {

const Kernels kScalarKernels = scalar::kKernels;

}  // namespace fastsample::cpu
