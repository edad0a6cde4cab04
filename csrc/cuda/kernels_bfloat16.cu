#include "kernel.cuh"
#include "kernels.h"

namespace fastsample::cuda {

const void* bfloat16_kernel(bool resident) {
  return resident ? reinterpret_cast<const void*>(row_kernel<BFloat16, true>)
                  : reinterpret_cast<const void*>(row_kernel<BFloat16, false>);
}

}  // namespace fastsample::cuda
