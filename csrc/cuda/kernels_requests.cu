#include "find_edits.cuh"
#include "kept_tokens.cuh"
#include "kernels.h"
#include "speculative.cuh"

namespace fastsample::cuda {

const void* request_kernel(RequestKernel which) {
  switch (which) {
    case RequestKernel::kFindEdits:
      return reinterpret_cast<const void*>(find_edits_kernel);
    case RequestKernel::kKeptTokens:
      return reinterpret_cast<const void*>(kept_tokens_kernel);
    case RequestKernel::kFixedProbsAt:
      return reinterpret_cast<const void*>(fixed_probs_at_kernel);
    case RequestKernel::kRandomWords:
      return reinterpret_cast<const void*>(random_words_kernel);
    default:
      return reinterpret_cast<const void*>(sample_residual_kernel);
  }
}

}  // namespace fastsample::cuda
