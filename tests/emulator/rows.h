// What csrc/cuda/launch.cu does on a GPU, on the emulator: a function for each file of kernels. They are weak because a
// module need not have all of them: tests that compile a kernel many times do with a few.
#pragma once

#include "cuda/work.h"
#include "requests.h"
#include "simt.h"

namespace fastsample::cuda {

__attribute__((weak)) void run_float32(const simt::Launch& launch, const Work& work, const Shape& shape,
                                       const Workspace& workspace);
__attribute__((weak)) void run_float16(const simt::Launch& launch, const Work& work, const Shape& shape,
                                       const Workspace& workspace);
__attribute__((weak)) void run_bfloat16(const simt::Launch& launch, const Work& work, const Shape& shape,
                                        const Workspace& workspace);
__attribute__((weak)) void run_sample_full(const simt::Launch& launch, const SampleFull& call, const Shape& shape,
                                           const Workspace& workspace);
__attribute__((weak)) void run_request(const simt::Launch& launch, const FindEdits& call, uint32_t* last_bias);
__attribute__((weak)) void run_request(const simt::Launch& launch, const KeptTokens& call);
__attribute__((weak)) void run_request(const simt::Launch& launch, const RandomWords& call);
__attribute__((weak)) void run_request(const simt::Launch& launch, const FixedProbsAt& call, const int64_t* numbers);
__attribute__((weak)) void run_request(const simt::Launch& launch, const SampleResidual& call,
                                       const int64_t* target_numbers, const int64_t* draft_numbers);

}  // namespace fastsample::cuda
