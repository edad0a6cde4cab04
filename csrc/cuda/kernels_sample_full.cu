#include "kernels.h"
#include "sample_full.cuh"

namespace fastsample::cuda {

const void* sample_full_kernel_for(bool resident) {
  return resident ? reinterpret_cast<const void*>(sample_full_kernel<true>)
                  : reinterpret_cast<const void*>(sample_full_kernel<false>);
}

}  // namespace fastsample::cuda
