// The kernels by address. Each dtype is compiled in a file of its own, so that ninja builds them at the same time.
#pragma once

namespace fastsample::cuda {

// The kernel that keeps its row on the chip, or the one that reads it again.
const void* float32_kernel(bool resident);
const void* float16_kernel(bool resident);
const void* bfloat16_kernel(bool resident);
const void* sample_full_kernel_for(bool resident);  // of every dtype

enum class RequestKernel { kFindEdits, kKeptTokens, kFixedProbsAt, kRandomWords, kSampleResidual };
const void* request_kernel(RequestKernel which);

}  // namespace fastsample::cuda
