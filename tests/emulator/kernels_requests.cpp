#include "cuda/find_edits.cuh"
#include "cuda/kept_tokens.cuh"
#include "cuda/speculative.cuh"
#include "rows.h"

namespace fastsample::cuda {

void run_request(const simt::Launch& launch, const FindEdits& call, uint32_t* last_bias) {
  simt::launch(launch, [&] { find_edits_kernel(call, last_bias); });
}

void run_request(const simt::Launch& launch, const KeptTokens& call) {
  simt::launch(launch, [&] { kept_tokens_kernel(call); });
}

void run_request(const simt::Launch& launch, const RandomWords& call) {
  simt::launch(launch, [&] { random_words_kernel(call); });
}

void run_request(const simt::Launch& launch, const FixedProbsAt& call, const int64_t* numbers) {
  simt::launch(launch, [&] { fixed_probs_at_kernel(call, numbers); });
}

void run_request(const simt::Launch& launch, const SampleResidual& call, const int64_t* target_numbers,
                 const int64_t* draft_numbers) {
  simt::launch(launch, [&] { sample_residual_kernel(call, target_numbers, draft_numbers); });
}

}  // namespace fastsample::cuda
