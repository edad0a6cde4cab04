// What csrc/cuda/launch.cu does on a GPU, on the emulator: one function for each dtype, in a file of its own. They are
// weak because a module need not have all of them: tests that compile a kernel many times do with one.
#pragma once

#include "cuda/work.h"
#include "simt.h"

namespace fastsample::cuda {

__attribute__((weak)) void run_float32(const simt::Launch& launch, const Work& work, const Shape& shape,
                                       const Workspace& workspace);
__attribute__((weak)) void run_float16(const simt::Launch& launch, const Work& work, const Shape& shape,
                                       const Workspace& workspace);
__attribute__((weak)) void run_bfloat16(const simt::Launch& launch, const Work& work, const Shape& shape,
                                        const Workspace& workspace);

}  // namespace fastsample::cuda
