#include "run_row_kernel.h"

namespace fastsample::cuda {

void run_bfloat16(const simt::Launch& launch, const Work& work, const Shape& shape, const Workspace& workspace) {
  run_row_kernel<BFloat16>(launch, work, shape, workspace);
}

}  // namespace fastsample::cuda
