// The CPU implementations of the operators whose schemas are in fastsample/ops.py, on torch's stable ABI: tensors in,
// raw pointers out to cpu/batch.h. fastsample/arguments.py has checked everything that a user can get wrong; what is
// checked here is only what would otherwise read or write out of bounds when an operator is called directly.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "cpu/batch.h"

namespace fastsample::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Threads torch_threads() {
  return {static_cast<int64_t>(torch::stable::get_num_threads()),
          [](int64_t parts, Team::Body body, const void* context) {
            torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
              for (int64_t part = begin; part < end; ++part) body(context, part);
            });
          }};
}

Batch batch_of(const Tensor& logits, int64_t order, bool probabilities) {
  STD_TORCH_CHECK(logits.is_cpu() && logits.dim() == 2, "logits: expected a CPU tensor [rows, vocab], got ",
                  logits.dim(), " dimensions");
  DType dtype = DType::kFloat32;
  int64_t bytes = 4;
  if (logits.scalar_type() != ScalarType::Float) {
    STD_TORCH_CHECK(logits.scalar_type() == ScalarType::Half || logits.scalar_type() == ScalarType::BFloat16,
                    "logits: expected float32, float16 or bfloat16");
    dtype = logits.scalar_type() == ScalarType::Half ? DType::kFloat16 : DType::kBFloat16;
    bytes = 2;
  }
  const int64_t largest = probabilities ? int64_t{1} << 31 : int64_t{1} << 22;
  STD_TORCH_CHECK(logits.size(1) > 0 && logits.size(1) <= largest, "logits: expected a vocabulary of 1 to ", largest,
                  " tokens, got ", logits.size(1));
  STD_TORCH_CHECK(order >= 0 && order <= 2, "order: expected 0, 1 or 2, got ", order);
  return {static_cast<const char*>(logits.const_data_ptr()),
          logits.size(0),
          logits.stride(0) * bytes,
          logits.stride(1),
          logits.size(1),
          dtype};
}

template <class T>
PerRow<T> per_row(const char* name, double value, const std::optional<Tensor>& rows, int64_t batch, ScalarType dtype) {
  if (!rows) return {static_cast<T>(value), nullptr, 0};
  STD_TORCH_CHECK(rows->is_cpu() && rows->scalar_type() == dtype, name, ": expected a CPU tensor of ",
                  dtype == ScalarType::Float ? "float32" : "int64");
  STD_TORCH_CHECK(rows->dim() == 0 || (rows->dim() == 1 && rows->size(0) == batch), name,
                  ": expected a tensor of shape [] or [", batch, "]");
  return {T{}, static_cast<const T*>(rows->const_data_ptr()), rows->dim() == 0 ? 0 : rows->stride(0)};
}

// Not inlined, so that the rounding to float32 stays between the two changes of the floating-point environment.
__attribute__((noinline)) PerRow<float> per_row_float(const char* name, double value, const std::optional<Tensor>& rows,
                                                      int64_t batch) {
  const IeeeArithmetic arithmetic;  // a denormal temperature must survive its rounding to float32
  return per_row<float>(name, value, rows, batch, ScalarType::Float);
}

PerRow<int64_t> per_row_int(const char* name, int64_t value, const std::optional<Tensor>& rows, int64_t batch) {
  PerRow<int64_t> result = per_row<int64_t>(name, 0, rows, batch, ScalarType::Long);
  result.value = value;  // not through a double, which has 53 bits
  return result;
}

// The arguments that every operator shares, in schema order, as one parameter pack: named here and nowhere else.
#define FASTSAMPLE_FILTERS                                                                                        \
  double temperature, const std::optional<Tensor>&temperature_rows, int64_t top_k,                                \
      const std::optional<Tensor>&top_k_rows, double top_p, const std::optional<Tensor>&top_p_rows, double min_p, \
      const std::optional<Tensor>&min_p_rows, int64_t order
#define FASTSAMPLE_BATCH_FILTERS(batch, probabilities)                                                    \
  BatchFilters {                                                                                          \
    per_row_float("temperature", temperature, temperature_rows, batch),                                   \
        per_row_int("top_k", top_k, top_k_rows, batch), per_row_float("top_p", top_p, top_p_rows, batch), \
        per_row_float("min_p", min_p, min_p_rows, batch), static_cast<Order>(order), probabilities        \
  }

void sample_cpu(Tensor out, const Tensor& logits, const std::optional<Tensor>& indices, FASTSAMPLE_FILTERS,
                int64_t seed, const std::optional<Tensor>& seed_rows, int64_t offset,
                const std::optional<Tensor>& offset_rows, int64_t stream, const std::optional<Tensor>& stream_rows,
                bool stream_per_row, bool replacement, bool probabilities) {
  const Batch batch = batch_of(logits, order, probabilities);
  STD_TORCH_CHECK(out.dim() == 2 && out.is_cpu() && out.scalar_type() == ScalarType::Long,
                  "out: expected an int64 CPU tensor [batch, num_samples]");
  const int64_t rows = out.size(0);
  if (indices) {
    STD_TORCH_CHECK(indices->is_cpu() && indices->scalar_type() == ScalarType::Long && indices->dim() == 1 &&
                        indices->size(0) == rows,
                    "indices: expected an int64 CPU tensor [", rows, "]");
  } else {
    STD_TORCH_CHECK(rows == batch.rows, "out: ", rows, " rows for ", batch.rows, " rows of logits");
  }
  const BatchRandomness randomness{per_row_int("seed", seed, seed_rows, rows),
                                   per_row_int("offset", offset, offset_rows, rows),
                                   per_row_int("stream", stream, stream_rows, rows), stream_per_row};
  const Tokens tokens{static_cast<int64_t*>(out.mutable_data_ptr()), rows, out.size(1), out.stride(0), out.stride(1)};
  sample(batch, indices ? static_cast<const int64_t*>(indices->const_data_ptr()) : nullptr,
         indices ? indices->stride(0) : 0, FASTSAMPLE_BATCH_FILTERS(rows, probabilities), randomness, replacement,
         tokens, torch_threads());
}

Tensor filter_logits_cpu(const Tensor& logits, FASTSAMPLE_FILTERS) {
  const Batch batch = batch_of(logits, order, false);
  Tensor out = torch::stable::new_empty(logits, {batch.rows, batch.vocab});
  filter_logits(batch, FASTSAMPLE_BATCH_FILTERS(batch.rows, false), static_cast<char*>(out.mutable_data_ptr()),
                torch_threads());
  return out;
}

Tensor filtered_probs_cpu(const Tensor& logits, FASTSAMPLE_FILTERS) {
  const Batch batch = batch_of(logits, order, false);
  Tensor out = torch::stable::new_empty(logits, {batch.rows, batch.vocab}, ScalarType::Float);
  filtered_probs(batch, FASTSAMPLE_BATCH_FILTERS(batch.rows, false), static_cast<float*>(out.mutable_data_ptr()),
                 torch_threads());
  return out;
}

Tensor log_probs_cpu(const Tensor& logits, const Tensor& tokens, FASTSAMPLE_FILTERS) {
  const Batch batch = batch_of(logits, order, false);
  STD_TORCH_CHECK(
      tokens.is_cpu() && tokens.scalar_type() == ScalarType::Long && tokens.dim() == 2 && tokens.size(0) == batch.rows,
      "tokens: expected an int64 CPU tensor [", batch.rows, ", n]");
  Tensor out = torch::stable::new_empty(logits, {batch.rows, tokens.size(1)}, ScalarType::Float);
  log_probs(batch, FASTSAMPLE_BATCH_FILTERS(batch.rows, false), static_cast<const int64_t*>(tokens.const_data_ptr()),
            tokens.stride(0), tokens.stride(1), tokens.size(1), static_cast<float*>(out.mutable_data_ptr()),
            torch_threads());
  return out;
}

int64_t cpu_instruction_set(int64_t level) {
  return static_cast<int64_t>(cap_instruction_set(level));
}

}  // namespace
}  // namespace fastsample::cpu

STABLE_TORCH_LIBRARY_IMPL(fastsample, CPU, library) {
  library.impl("sample", TORCH_BOX(&fastsample::cpu::sample_cpu));
  library.impl("filter_logits", TORCH_BOX(&fastsample::cpu::filter_logits_cpu));
  library.impl("filtered_probs", TORCH_BOX(&fastsample::cpu::filtered_probs_cpu));
  library.impl("log_probs", TORCH_BOX(&fastsample::cpu::log_probs_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(fastsample, CompositeExplicitAutograd, library) {
  library.impl("cpu_instruction_set", TORCH_BOX(&fastsample::cpu::cpu_instruction_set));
}
