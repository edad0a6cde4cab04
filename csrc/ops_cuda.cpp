// The CUDA implementations of the operators, for torch's dispatcher. The object built from this loads in every torch >=
// 2.10, also in one without CUDA, where calling it is an error.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <atomic>
#include <vector>

#include "binding_requests.h"
#include "cuda/launch.h"
#include "cuda/policy.h"

// fastsample/native_objects.py finds this in the file and knows, before it loads it, which GPUs the object serves.
__attribute__((used)) static const char kBuild[] = "fastsample CUDA build: " FASTSAMPLE_CUDA_BUILD;

namespace fastsample::cuda {
namespace {

using torch::stable::Tensor;

using CurrentStream = AOTITorchError (*)(int32_t device, void** stream);

// From torch's CUDA library, which a torch without CUDA lacks: to link with it would keep this object from loading
// there.
CurrentStream current_stream_of_torch() {
  static const CurrentStream function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<CurrentStream>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(function != nullptr, "the CUDA kernels cannot run: this torch is built without CUDA");
  return function;
}

void* current_stream(int32_t device) {
  void* stream = nullptr;
  STD_TORCH_CHECK(current_stream_of_torch()(device, &stream) == AOTI_TORCH_SUCCESS,
                  "torch has no current stream on cuda:", device);
  return stream;
}

// The shape that takes the policy's place, as one number; 0 for none.
std::atomic<uint64_t> forced_shape{0};

void cuda_force_shape(int64_t blocks, int64_t threads, bool cluster, bool resident, bool overlaps) {
  const uint64_t sizes = static_cast<uint64_t>(blocks & 0xFFFF) << 32 | static_cast<uint64_t>(threads & 0xFFFF) << 16;
  forced_shape = sizes | static_cast<uint64_t>(cluster) << 2 | static_cast<uint64_t>(resident) << 1 | overlaps;
}

class CudaBackend {
 public:
  explicit CudaBackend(const Tensor& logits)
      : logits_(logits), device_(checked_device(logits)), stream_(current_stream(device_)), guard_(device_) {}

  bool holds(const Tensor& tensor) const { return tensor.is_cuda() && tensor.get_device_index() == device_; }

  void sample(const Batch& batch, const int64_t* indices, int64_t indices_stride, const BatchFilters& filters,
              const BatchRandomness& randomness, bool replacement, const Tokens& tokens) const {
    Work work = work_of(Operation::kSample, batch, filters);
    work.rows = tokens.rows;
    work.indices = indices;
    work.indices_stride = indices_stride;
    work.randomness = randomness;
    work.replacement = replacement;
    work.tokens = tokens;
    if (tokens.count > 0) enqueue(work);
  }
  void filter_logits(const Batch& batch, const BatchFilters& filters, void* out) const {
    Work work = work_of(Operation::kFilterLogits, batch, filters);
    work.out = out;
    enqueue(work);
  }
  void filtered_probs(const Batch& batch, const BatchFilters& filters, float* out) const {
    Work work = work_of(Operation::kFilteredProbs, batch, filters);
    work.out = out;
    enqueue(work);
  }
  void log_probs(const Batch& batch, const BatchFilters& filters, const ConstTokens& wanted, float* out) const {
    Work work = work_of(Operation::kLogProbs, batch, filters);
    work.wanted = wanted;
    work.out = out;
    if (wanted.count > 0) enqueue(work);
  }

  void sample_full(const SampleFull& call) const {
    const Details& details = call.details;
    const bool asked = details.numbers.data || details.top_tokens.data;
    if (call.tokens.count > 0 || asked) enqueue(call, sizes_of(call));
  }
  void find_edits(const FindEdits& call) const {
    const std::optional<Tensor> last_bias = workspace(bias_entries(call) * static_cast<int64_t>(sizeof(uint32_t)));
    check(launch(call, last_bias ? static_cast<uint32_t*>(last_bias->mutable_data_ptr()) : nullptr, stream_));
  }
  void kept_tokens(const KeptTokens& call) const { check(launch(call, stream_)); }
  void random_words(const RandomWords& call) const { check(launch(call, stream_)); }
  void fixed_probs_at(const FixedProbsAt& call) const {
    if (call.tokens.count == 0) return;
    const Tensor numbers = numbers_of(call.batch, call.indices, call.filters, call.tokens.rows);
    check(launch(call, static_cast<const int64_t*>(numbers.const_data_ptr()), stream_));
  }
  void sample_residual(const SampleResidual& call) const {
    const int64_t rows = call.tokens.rows;
    const Tensor target = numbers_of(call.target, call.target_indices, call.target_filters, rows);
    const Tensor draft = numbers_of(call.draft, call.draft_indices, call.draft_filters, rows);
    check(launch(call, static_cast<const int64_t*>(target.const_data_ptr()),
                 static_cast<const int64_t*>(draft.const_data_ptr()), stream_));
  }

  std::vector<int64_t> shape(const Batch& batch, int64_t rows) const {
    Work work = work_of(Operation::kSample, batch, BatchFilters{});
    work.rows = rows;
    const Shape shape = chosen_shape(work);
    return {shape.blocks, shape.threads, shape.cluster, shape.resident};
  }

 private:
  // The first thing a call does: without torch's CUDA nothing else here works.
  static int32_t checked_device(const Tensor& logits) {
    current_stream_of_torch();
    STD_TORCH_CHECK(logits.is_cuda(), "logits: expected a CUDA tensor");
    return logits.get_device_index();
  }

  static Work work_of(Operation operation, const Batch& batch, const BatchFilters& filters) {
    Work work{};
    work.operation = operation;
    work.batch = batch;
    work.rows = batch.rows;
    work.filters = filters;
    return work;
  }

  Shape chosen_shape(const Work& work) const {
    Shape shape;
    const char* error = shape_for(work, shape);
    STD_TORCH_CHECK(error == nullptr, "cuda:", device_, " cannot be asked what it is: ", error);
    const uint64_t forced = forced_shape;
    if (forced == 0) return shape;
    return {static_cast<int32_t>(forced >> 32 & 0xFFFF), static_cast<int32_t>(forced >> 16 & 0xFFFF), (forced & 4) != 0,
            (forced & 2) != 0, (forced & 1) != 0};
  }

  // Null for no bytes. Given back when the call returns, before the kernel has run: torch's caching allocator hands
  // memory out again in the order of the stream, so nobody else gets it sooner.
  std::optional<Tensor> workspace(int64_t bytes) const {
    if (bytes == 0) return std::nullopt;
    return torch::stable::new_empty(logits_, {bytes}, torch::headeronly::ScalarType::Byte);
  }

  void check(const char* error) const {
    STD_TORCH_CHECK(error == nullptr, "the CUDA kernels did not start on cuda:", device_, ": ", error);
  }

  void enqueue(const Work& work) const { enqueue(work, work); }

  // `work` is the call's sizes.
  template <class Call>
  void enqueue(const Call& call, const Work& work) const {
    if (work.rows == 0) return;
    const Shape shape = chosen_shape(work);
    const std::optional<Tensor> memory = workspace(static_cast<int64_t>(workspace_bytes(work, shape)));
    check(launch(call, shape, memory ? memory->mutable_data_ptr() : nullptr, stream_));
  }

  // The kept sets of rows, in a launch of their own.
  Tensor numbers_of(const Batch& batch, const RowIndices& indices, const BatchFilters& filters, int64_t rows) const {
    Tensor numbers = torch::stable::new_empty(logits_, {rows, kNumbers}, torch::headeronly::ScalarType::Long);
    const SampleFull call = kept_sets(batch, indices, filters, rows, static_cast<int64_t*>(numbers.mutable_data_ptr()));
    enqueue(call, sizes_of(call));
    return numbers;
  }

  const Tensor& logits_;
  const int32_t device_;
  void* const stream_;
  const torch::stable::accelerator::DeviceGuard guard_;
};

// How a call of sample() on these logits with so many output rows would run: blocks and threads a row, whether the
// blocks are a cluster, whether the row stays on the chip.
std::vector<int64_t> cuda_shape(const Tensor& logits, int64_t rows) {
  return CudaBackend(logits).shape(binding::batch_of(logits, 0, false), rows);
}

}  // namespace
}  // namespace fastsample::cuda

STABLE_TORCH_LIBRARY_IMPL(fastsample, CompositeExplicitAutograd, library) {
  library.impl("cuda_force_shape", TORCH_BOX(&fastsample::cuda::cuda_force_shape));
}

STABLE_TORCH_LIBRARY_IMPL(fastsample, CUDA, library) {
  fastsample::binding::Operators<fastsample::cuda::CudaBackend>::implement(library);
  fastsample::binding::RequestOperators<fastsample::cuda::CudaBackend>::implement(library);
  library.impl("cuda_shape", TORCH_BOX(&fastsample::cuda::cuda_shape));
}
