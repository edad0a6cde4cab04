// The CPU implementations of the operators, for torch's dispatcher.
#include <pthread.h>

#include <atomic>

#include "binding.h"
#include "binding_requests.h"
#include "cpu/batch.h"

namespace fastsample::cpu {
namespace {

using torch::stable::Tensor;

// torch's threads are GNU OpenMP's in its Linux packages. They do not come along when a process forks, and the child's
// first parallel region waits for them for ever, in torch's own operators too. Nobody says whether there were any, so a
// child does without.
std::atomic<bool> is_forked_child{false};
const int registered = pthread_atfork(nullptr, nullptr, [] { is_forked_child = true; });

Threads torch_threads() {
  if (is_forked_child.load(std::memory_order_relaxed)) return {1, nullptr};
  return {static_cast<int64_t>(torch::stable::get_num_threads()),
          [](int64_t parts, Team::Body body, const void* context) {
            torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
              for (int64_t part = begin; part < end; ++part) body(context, part);
            });
          }};
}

class CpuBackend {
 public:
  explicit CpuBackend(const Tensor& logits) { STD_TORCH_CHECK(logits.is_cpu(), "logits: expected a CPU tensor"); }

  bool holds(const Tensor& tensor) const { return tensor.is_cpu(); }

  void sample(const Batch& batch, const int64_t* indices, int64_t indices_stride, const BatchFilters& filters,
              const BatchRandomness& randomness, bool replacement, const Tokens& tokens) const {
    cpu::sample(batch, indices, indices_stride, filters, randomness, replacement, tokens, torch_threads());
  }
  void filter_logits(const Batch& batch, const BatchFilters& filters, void* out) const {
    cpu::filter_logits(batch, filters, static_cast<char*>(out), torch_threads());
  }
  void filtered_probs(const Batch& batch, const BatchFilters& filters, float* out) const {
    cpu::filtered_probs(batch, filters, out, torch_threads());
  }
  void log_probs(const Batch& batch, const BatchFilters& filters, const ConstTokens& wanted, float* out) const {
    cpu::log_probs(batch, filters, wanted.data, wanted.row_stride, wanted.stride, wanted.count, out, torch_threads());
  }
  void find_edits(const FindEdits& call) const { cpu::find_edits(call, torch_threads()); }
  void sample_full(const SampleFull& call) const { cpu::sample_full(call, torch_threads()); }
  void kept_tokens(const KeptTokens& call) const { cpu::kept_tokens(call, torch_threads()); }
  void fixed_probs_at(const FixedProbsAt& call) const { cpu::fixed_probs_at(call, torch_threads()); }
  void random_words(const RandomWords& call) const { cpu::random_words(call); }
  void sample_residual(const SampleResidual& call) const { cpu::sample_residual(call, torch_threads()); }
};

int64_t cpu_instruction_set(int64_t level) {
  return static_cast<int64_t>(cap_instruction_set(level));
}

}  // namespace
}  // namespace fastsample::cpu

STABLE_TORCH_LIBRARY_IMPL(fastsample, CPU, library) {
  fastsample::binding::Operators<fastsample::cpu::CpuBackend>::implement(library);
  fastsample::binding::RequestOperators<fastsample::cpu::CpuBackend>::implement(library);
}

STABLE_TORCH_LIBRARY_IMPL(fastsample, CompositeExplicitAutograd, library) {
  library.impl("cpu_instruction_set", TORCH_BOX(&fastsample::cpu::cpu_instruction_set));
}
