#include "kernel.cuh"
#include "kernels.h"

namespace fastsample::cuda {

const void* float16_kernel(bool resident) {
  return resident ? reinterpret_cast<const void*>(row_kernel<Float16, true>)
                  : reinterpret_cast<const void*>(row_kernel<Float16, false>);
}

}  // namespace fastsample::cuda
