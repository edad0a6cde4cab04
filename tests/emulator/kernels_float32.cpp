#include "run_row_kernel.h"

namespace fastsample::cuda {

void run_float32(const simt::Launch& launch, const Work& work, const Shape& shape, const Workspace& workspace) {
  run_row_kernel<float>(launch, work, shape, workspace);
}

}  // namespace fastsample::cuda
