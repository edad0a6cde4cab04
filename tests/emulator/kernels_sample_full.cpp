#include "cuda/sample_full.cuh"
#include "rows.h"

namespace fastsample::cuda {

void run_sample_full(const simt::Launch& launch, const SampleFull& call, const Shape& shape,
                     const Workspace& workspace) {
  simt::launch(launch, [&] {
    if (shape.resident)
      sample_full_kernel<true>(call, shape, workspace);
    else
      sample_full_kernel<false>(call, shape, workspace);
  });
}

}  // namespace fastsample::cuda
