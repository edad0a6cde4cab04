#include "batch.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "rows.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fastsample::cpu {

namespace {

#if defined(__x86_64__)
// __builtin_cpu_supports knows this name only from gcc 11 and clang 18 on.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}
#endif

InstructionSet best_instruction_set() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("bmi2") ||
      !__builtin_cpu_supports("popcnt") || !has_f16c())
    return InstructionSet::kScalar;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return InstructionSet::kAvx512;
  return InstructionSet::kAvx2;
#else
  return InstructionSet::kScalar;
#endif
}

// Asked once, as in a virtual machine each cpuid instruction traps (26 us, more than a top-k row takes); and when the
// object is loaded, as a child forked in the middle of a first call would wait for ever for that call to have asked.
const auto best_level = static_cast<int64_t>(best_instruction_set());
std::atomic<int64_t> level_in_force{best_level};

// Memory of one thread's rows, made on first use and kept; left unset, so that only what a row uses is ever paged in.
class Scratch {
 public:
  RowScratch& of(int64_t parts, int64_t edited_tokens) {
    if (!row_) {
      row_.reset(new RowArrays);
      scratch_.chunk_maximum = row_->chunk_maximum;
      scratch_.raw_chunk_maximum = row_->raw_chunk_maximum;
      scratch_.chunk_sum = row_->chunk_sum;
      scratch_.sample_logit = row_->sample_logit;
      scratch_.sample_weight = row_->sample_weight;
      scratch_.histogram_measure = row_->histogram_measure;
      scratch_.histogram_count = row_->histogram_count;
      scratch_.work = {row_->work.logit, row_->work.index, 0, false, false};
    }
    if (edited_tokens > edited_size_) {
      edited_.reset(new float[static_cast<size_t>(edited_tokens + kVectorPadding)]);
      edited_size_ = edited_tokens;
      scratch_.edited = edited_.get();
    }
    lists_.reserve(static_cast<size_t>(parts));
    parts_.reserve(static_cast<size_t>(parts));
    while (static_cast<int64_t>(parts_.size()) < parts) {
      lists_.push_back(std::unique_ptr<List>(new List));
      parts_.push_back({});
      parts_.back().candidates = {lists_.back()->logit, lists_.back()->index, 0, false, false};
    }
    scratch_.parts = parts_.data();
    return scratch_;
  }

 private:
  struct List {
    float logit[kCandidateCapacity + kVectorPadding];
    uint32_t index[kCandidateCapacity + kVectorPadding];
  };
  struct RowArrays {
    float chunk_maximum[kMaxChunks];
    float raw_chunk_maximum[kMaxChunks];
    uint64_t chunk_sum[kMaxChunks];
    float sample_logit[kSampleCapacity + kVectorPadding];
    float sample_weight[kSampleCapacity + kVectorPadding];
    uint64_t histogram_measure[1 << kHistogramBits];
    uint32_t histogram_count[1 << kHistogramBits];
    List work;
  };
  std::unique_ptr<RowArrays> row_;
  std::unique_ptr<float[]> edited_;
  int64_t edited_size_ = 0;
  std::vector<std::unique_ptr<List>> lists_;
  std::vector<PartScratch> parts_;
  RowScratch scratch_{};
};

}  // namespace

RowScratch& thread_scratch(int64_t parts, int64_t edited_tokens) {
  static thread_local Scratch scratch;
  return scratch.of(parts, edited_tokens);
}

const Kernels& kernels() {
#if defined(__x86_64__)
  switch (cap_instruction_set(-1)) {
    case InstructionSet::kAvx512:
      return kAvx512Kernels;
    case InstructionSet::kAvx2:
      return kAvx2Kernels;
    default:
      break;
  }
#endif
  return kScalarKernels;
}

InstructionSet cap_instruction_set(int64_t cap) {
  if (cap >= 0) level_in_force.store(std::min(cap, best_level), std::memory_order_relaxed);
  return static_cast<InstructionSet>(level_in_force.load(std::memory_order_relaxed));
}

void sample(const Batch& batch, const int64_t* indices, int64_t indices_stride, const BatchFilters& filters,
            const BatchRandomness& randomness, bool replacement, const Tokens& out, const Threads& threads) {
  if (out.count == 0) return;
  const Kernels& kernel = kernels();
  for_each_row(out.rows, batch.vocab, false, threads, [&](int64_t row, RowScratch& scratch, const Team& team) {
    const int64_t from = indices ? indices[row * indices_stride] : row;
    int64_t* tokens = out.data + row * out.row_stride;
    if (from < 0 || from >= batch.rows) {
      for (int64_t i = 0; i < out.count; ++i) tokens[i * out.stride] = -1;
      return;
    }
    const Draws draws{randomness[row], replacement, out.count, tokens, out.stride};
    kernel.sample(row_of(batch, from), filters[row], draws, scratch, team);
  });
}

void filter_logits(const Batch& batch, const BatchFilters& filters, char* out, const Threads& threads) {
  const Kernels& kernel = kernels();
  const int64_t row_bytes = batch.vocab * (batch.dtype == DType::kFloat32 ? 4 : 2);
  for_each_row(batch.rows, batch.vocab, false, threads, [&](int64_t row, RowScratch& scratch, const Team& team) {
    kernel.filter_logits(row_of(batch, row), filters[row], out + row * row_bytes, scratch, team);
  });
}

void filtered_probs(const Batch& batch, const BatchFilters& filters, float* out, const Threads& threads) {
  const Kernels& kernel = kernels();
  for_each_row(batch.rows, batch.vocab, false, threads, [&](int64_t row, RowScratch& scratch, const Team& team) {
    kernel.filtered_probs(row_of(batch, row), filters[row], out + row * batch.vocab, scratch, team);
  });
}

void log_probs(const Batch& batch, const BatchFilters& filters, const int64_t* tokens, int64_t tokens_row_stride,
               int64_t tokens_stride, int64_t count, float* out, const Threads& threads) {
  const Kernels& kernel = kernels();
  for_each_row(batch.rows, batch.vocab, false, threads, [&](int64_t row, RowScratch& scratch, const Team& team) {
    kernel.log_probs(row_of(batch, row), filters[row], tokens + row * tokens_row_stride, tokens_stride, count,
                     out + row * count, scratch, team);
  });
}

}  // namespace fastsample::cpu
