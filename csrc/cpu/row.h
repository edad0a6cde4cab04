// What the CPU kernels are given and what they share. No torch: the sanitizer tests build this alone.
#pragma once

#include <cstdint>

#include "../batch.h"
#include "arithmetic.h"

namespace fastsample::cpu {

// One row of logits (or probabilities) where it lies: `stride` elements from token to token.
struct RowView {
  const void* data;
  int64_t stride;
  int64_t vocab;
  DType dtype;
};

// Where a row's draws go and where their random words come from.
struct Draws {
  RandomStream random;
  bool replacement;
  int64_t count;
  int64_t* tokens;
  int64_t tokens_stride;
};

// A prefix of the ranking: logits above `logit`, and those equal to it at indices below `end`.
struct Cut {
  float logit;
  int64_t end;
};

FASTSAMPLE_INLINE Cut tighter(Cut a, Cut b) {
  if (a.logit != b.logit) return a.logit > b.logit ? a : b;
  return a.end < b.end ? a : b;
}

// Tokens of a row that are still in play, in index order.
struct Candidates {
  float* logit;
  uint32_t* index;
  int64_t size;
  bool overflow;       // more tokens qualified than fit: the list is not complete
  bool ties_left_out;  // of the tokens equal to its bound, the list may hold only the first ones
};

// 32768 candidates are 256 KiB: a quarter of what a thread may use, and above 1/8 of a 262144-token vocabulary.
constexpr int64_t kCandidateCapacity = 32768;
constexpr int64_t kVectorPadding = 32;  // whole vectors are stored past the last candidate
constexpr int64_t kChunk = 256;         // tokens whose maximum and sum are kept together
constexpr int64_t kMaxChunks = 16384;   // 2^22 tokens in chunks of 256; longer rows of probabilities get longer chunks
constexpr int64_t kSampleCapacity = 8192;
constexpr int kHistogramBits = 11;

// The share of one thread of a row that several threads split.
struct PartScratch {
  Candidates candidates;
  float maximum;
  bool invalid;
  uint64_t total;
  uint64_t above;
};

// All working memory of one row, whatever the vocabulary: 0.5 MiB, and 0.25 MiB for each part. Kept by the calling
// thread between calls, because a fresh allocation of that size page-faults anew in every call.
struct RowScratch {
  float* chunk_maximum;  // [kMaxChunks]
  uint64_t* chunk_sum;   // [kMaxChunks]
  Candidates work;
  float* sample_logit;   // [kSampleCapacity]
  float* sample_weight;  // [kSampleCapacity]
  uint64_t* histogram_measure;
  uint32_t* histogram_count;
  PartScratch* parts;
};

// How the steps of one row run: `parts` contiguous shares of its chunks, at once if there is more than one.
struct Team {
  using Body = void (*)(const void* context, int64_t part);
  using Run = void (*)(int64_t parts, Body body, const void* context);
  int64_t parts;
  Run run_parts;

  template <class Function>
  void run(const Function& function) const {
    if (parts == 1) return function(int64_t{0});
    run_parts(
        parts,
        [](const void* context, int64_t part) {
          const IeeeArithmetic arithmetic;
          (*static_cast<const Function*>(context))(part);
        },
        &function);
  }
};

// One entry per operation and instruction set; batch.cpp picks the set once.
struct Kernels {
  void (*sample)(const RowView&, const Filters&, const Draws&, RowScratch&, const Team&);
  void (*filter_logits)(const RowView&, const Filters&, void* out, RowScratch&, const Team&);
  void (*filtered_probs)(const RowView&, const Filters&, float* out, RowScratch&, const Team&);
  void (*log_probs)(const RowView&, const Filters&, const int64_t* tokens, int64_t tokens_stride, int64_t count,
                    float* out, RowScratch&, const Team&);
};

extern const Kernels kScalarKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;

}  // namespace fastsample::cpu
