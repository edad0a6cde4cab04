// The CPU backend without torch: a batch of rows over threads, by the best instruction set of this processor.
#pragma once

#include "row.h"

namespace fastsample::cpu {

enum class InstructionSet : int64_t { kScalar = 0, kAvx2 = 1, kAvx512 = 2 };

// Caps the instruction set, for tests; returns the one in force: the best that the processor has, up to the cap.
// A negative cap only asks.
InstructionSet cap_instruction_set(int64_t cap);

// How a caller's thread pool runs body(context, part) for parts [0, parts): torch's, or a plain loop.
struct Threads {
  int64_t count;
  Team::Run run;
};

FASTSAMPLE_FUNCTION RowView row_of(const Batch& batch, int64_t row) {
  return {batch.data + row * batch.row_stride, batch.stride, batch.vocab, batch.dtype};
}

void sample(const Batch& batch, const int64_t* indices, int64_t indices_stride, const BatchFilters& filters,
            const BatchRandomness& randomness, bool replacement, const Tokens& out, const Threads& threads);
void filter_logits(const Batch& batch, const BatchFilters& filters, char* out, const Threads& threads);
void filtered_probs(const Batch& batch, const BatchFilters& filters, float* out, const Threads& threads);
void log_probs(const Batch& batch, const BatchFilters& filters, const int64_t* tokens, int64_t tokens_row_stride,
               int64_t tokens_stride, int64_t count, float* out, const Threads& threads);

void find_edits(const FindEdits& call, const Threads& threads);
void sample_full(const SampleFull& call, const Threads& threads);
void kept_tokens(const KeptTokens& call, const Threads& threads);
void fixed_probs_at(const FixedProbsAt& call, const Threads& threads);
void random_words(const RandomWords& call);
void sample_residual(const SampleResidual& call, const Threads& threads);

}  // namespace fastsample::cpu
