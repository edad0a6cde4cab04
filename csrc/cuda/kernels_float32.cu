#include "kernel.cuh"
#include "kernels.h"

namespace fastsample::cuda {

const void* float32_kernel(bool resident) {
  return resident ? reinterpret_cast<const void*>(row_kernel<float, true>)
                  : reinterpret_cast<const void*>(row_kernel<float, false>);
}

}  // namespace fastsample::cuda
