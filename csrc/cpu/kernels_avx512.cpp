// The kernels for avx512: the build compiles this file, and only this one, with that instruction set's flags.
#if defined(__x86_64__)
#define FASTSAMPLE_INSTRUCTION_SET avx512

#include "simd_avx512.h"

#include "kernel.h"

namespace fastsample::cpu {

const Kernels kAvx512Kernels = avx512::kKernels;

}  // namespace fastsample::cpu
#endif
