// What the CPU kernels are given and what they share. No torch: the sanitizer tests build this alone.
#pragma once

#include <cstdint>

#include "../requests.h"
#include "arithmetic.h"

namespace fastsample::cpu {

// One row of logits (or probabilities) where it lies: `stride` elements from token to token.
struct RowView {
  const void* data;
  int64_t stride;
  int64_t vocab;
  DType dtype;
};

// Exact, and without instructions that not every processor has.
FASTSAMPLE_FUNCTION float widen_float16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = half >> 10 & 0x1Fu;
  const uint32_t fraction = half & 0x3FFu;
  if (exponent == 31) return bits_float(sign | 0x7F800000u | fraction << 13);
  if (exponent != 0) return bits_float(sign | (exponent + 112) << 23 | fraction << 13);
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
  return sign ? -magnitude : magnitude;
}

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

// The largest of some tokens, and whether one of them makes the row invalid.
struct Maximum {
  float value;
  bool invalid;
};

// What is counted of a kept set (law section 7).
struct KeptSums {
  uint64_t everything;  // the weight of all tokens, kept or not
  uint64_t energy;      // E
  int64_t count;
  float least;  // the smallest logit kept
};

// The share of one thread of a row that several threads split.
struct PartScratch {
  Candidates candidates;
  Maximum maximum;
  Maximum raw_maximum;
  uint64_t total;
  uint64_t above;
  KeptSums kept;
};

// All working memory of one row: 0.6 MiB and 0.25 MiB for each part, and the row itself where it is edited. Kept by
// the calling thread between calls, because a fresh allocation of that size page-faults anew in every call.
struct RowScratch {
  float* edited;             // [vocab + kVectorPadding], for edited rows alone
  float* raw_chunk_maximum;  // [kMaxChunks], of an edited row as it was
  float* chunk_maximum;      // [kMaxChunks]
  uint64_t* chunk_sum;       // [kMaxChunks]
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
  // `edits` may be null; `details` are the row's own, as RowsOf::from gives them.
  void (*sample_full)(const RowView&, const RowEdits* edits, const Filters&, const Draws&, const Details& details,
                      RowScratch&, const Team&);
  // Writes the indices of a cut's tokens to out[begin], ... as far as they are in [0, end).
  void (*kept_tokens)(const RowView&, const RowEdits&, Cut, int64_t begin, int64_t end, int64_t* out, RowScratch&);
  void (*fixed_probs_at)(const RowView&, const Filters&, const int64_t* tokens, int64_t tokens_stride, int64_t count,
                         int64_t* out, RowScratch&, const Team&);
  // `draft` may be null: there is none.
  void (*sample_residual)(const RowView& target, const Filters& target_filters, const RowView* draft,
                          const Filters& draft_filters, const Draws&, RowScratch&, const Team&);
};

extern const Kernels kScalarKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;

}  // namespace fastsample::cpu
