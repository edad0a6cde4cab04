// The kernels for avx2: the build compiles this file, and only this one, with that instruction set's flags.
#if defined(__x86_64__)
#define FASTSAMPLE_INSTRUCTION_SET avx2

#include "simd_avx2.h"

#include "kernel.h"

namespace fastsample::cpu {

const Kernels kAvx2Kernels = avx2::kKernels;

}  // namespace fastsample::cpu
#endif
