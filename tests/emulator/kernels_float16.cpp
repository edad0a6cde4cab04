#include "run_row_kernel.h"

namespace fastsample::cuda {

void run_float16(const simt::Launch& launch, const Work& work, const Shape& shape, const Workspace& workspace) {
  run_row_kernel<Float16>(launch, work, shape, workspace);
}

}  // namespace fastsample::cuda
