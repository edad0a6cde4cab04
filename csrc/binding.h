// The operators whose schemas are in fastsample/ops.py, on torch's stable ABI: tensors in, the structs of batch.h out.
// Each compiled backend instantiates Operators once. fastsample/arguments.py has checked everything that a user can get
// wrong; what is checked here is only what would otherwise read or write out of bounds when an operator is called
// directly.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "batch.h"
#include "cpu/arithmetic.h"

namespace fastsample::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Batch batch_of(const Tensor& logits, int64_t order, bool probabilities) {
  STD_TORCH_CHECK(logits.dim() == 2, "logits: expected a tensor [rows, vocab], got ", logits.dim(), " dimensions");
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

// The parameters of a call, each a number or a value for each of `rows` output rows on the backend's device.
template <class Backend>
class Parameters {
 public:
  Parameters(const Backend& backend, int64_t rows) : backend_(backend), rows_(rows) {}

  PerRow<float> of_float(const char* name, double value, const std::optional<Tensor>& values) const {
    return per_row<float>(name, narrowed(value), values, ScalarType::Float);
  }

  PerRow<int64_t> of_int(const char* name, int64_t value, const std::optional<Tensor>& values) const {
    return per_row<int64_t>(name, value, values, ScalarType::Long);
  }

 private:
  // A denormal temperature must survive its rounding. Compilers move arithmetic over changes of the floating-point
  // environment (gcc 12 did it here), but no volatile access.
  static float narrowed(double value) {
    const volatile double given = value;
    const cpu::IeeeArithmetic arithmetic;
    const volatile float rounded = static_cast<float>(given);
    return rounded;
  }

  template <class T>
  PerRow<T> per_row(const char* name, T value, const std::optional<Tensor>& values, ScalarType dtype) const {
    if (!values) return {value, nullptr, 0};
    STD_TORCH_CHECK(backend_.holds(*values) && values->scalar_type() == dtype, name, ": expected a tensor of ",
                    dtype == ScalarType::Float ? "float32" : "int64", " on the device of the logits");
    STD_TORCH_CHECK(values->dim() == 0 || (values->dim() == 1 && values->size(0) == rows_), name,
                    ": expected a tensor of shape [] or [", rows_, "]");
    return {T{}, static_cast<const T*>(values->const_data_ptr()), values->dim() == 0 ? 0 : values->stride(0)};
  }

  const Backend& backend_;
  const int64_t rows_;
};

// The arguments that operators share, in schema order, each as one parameter pack: named here and nowhere else. Two
// rows' filters in one call have a prefix to tell them apart.
#define FASTSAMPLE_FILTERS(prefix)                                                                         \
  double prefix##temperature, const std::optional<Tensor>&prefix##temperature_rows, int64_t prefix##top_k, \
      const std::optional<Tensor>&prefix##top_k_rows, double prefix##top_p,                                \
      const std::optional<Tensor>&prefix##top_p_rows, double prefix##min_p,                                \
      const std::optional<Tensor>&prefix##min_p_rows, int64_t prefix##order
#define FASTSAMPLE_BATCH_FILTERS(parameters, prefix, probabilities)                                                 \
  BatchFilters {                                                                                                    \
    parameters.of_float(#prefix "temperature", prefix##temperature, prefix##temperature_rows),                      \
        parameters.of_int(#prefix "top_k", prefix##top_k, prefix##top_k_rows),                                      \
        parameters.of_float(#prefix "top_p", prefix##top_p, prefix##top_p_rows),                                    \
        parameters.of_float(#prefix "min_p", prefix##min_p, prefix##min_p_rows), static_cast<Order>(prefix##order), \
        probabilities                                                                                               \
  }
#define FASTSAMPLE_RANDOMNESS                                                                                   \
  int64_t seed, const std::optional<Tensor>&seed_rows, int64_t offset, const std::optional<Tensor>&offset_rows, \
      int64_t stream, const std::optional<Tensor>&stream_rows, bool stream_per_row
#define FASTSAMPLE_BATCH_RANDOMNESS(parameters)                                                   \
  BatchRandomness {                                                                               \
    parameters.of_int("seed", seed, seed_rows), parameters.of_int("offset", offset, offset_rows), \
        parameters.of_int("stream", stream, stream_rows), stream_per_row                          \
  }

// The operators on a backend. It is constructed from the logits, which it checks to be on a device of its kind; it says
// whether it holds() another tensor on that device; and it has sample, filter_logits, filtered_probs and log_probs, in
// pointers. RequestOperators has the operator `sample` as torch sees it.
template <class Backend>
struct Operators {
  static void sample(Tensor out, const Tensor& logits, const std::optional<Tensor>& indices, FASTSAMPLE_FILTERS(),
                     FASTSAMPLE_RANDOMNESS, bool replacement, bool probabilities) {
    const Backend backend(logits);
    const Batch batch = batch_of(logits, order, probabilities);
    STD_TORCH_CHECK((out.dim() == 1 || out.dim() == 2) && backend.holds(out) && out.scalar_type() == ScalarType::Long,
                    "out: expected an int64 tensor [batch] or [batch, num_samples] on the device of the logits");
    const int64_t rows = out.size(0);
    if (indices) {
      STD_TORCH_CHECK(indices->dim() == 1 && indices->size(0) == rows && backend.holds(*indices) &&
                          indices->scalar_type() == ScalarType::Long,
                      "indices: expected an int64 tensor [", rows, "] on the device of the logits");
    } else {
      STD_TORCH_CHECK(rows == batch.rows, "out: ", rows, " rows for ", batch.rows, " rows of logits");
    }
    const Parameters<Backend> parameters(backend, rows);
    const BatchRandomness randomness = FASTSAMPLE_BATCH_RANDOMNESS(parameters);
    const bool one_draw = out.dim() == 1;
    const Tokens tokens{static_cast<int64_t*>(out.mutable_data_ptr()), rows, one_draw ? 1 : out.size(1), out.stride(0),
                        one_draw ? 1 : out.stride(1)};
    backend.sample(batch, indices ? static_cast<const int64_t*>(indices->const_data_ptr()) : nullptr,
                   indices ? indices->stride(0) : 0, FASTSAMPLE_BATCH_FILTERS(parameters, , probabilities), randomness,
                   replacement, tokens);
  }

  static Tensor filter_logits(const Tensor& logits, FASTSAMPLE_FILTERS()) {
    const Backend backend(logits);
    const Batch batch = batch_of(logits, order, false);
    const Parameters<Backend> parameters(backend, batch.rows);
    Tensor out = torch::stable::new_empty(logits, {batch.rows, batch.vocab});
    backend.filter_logits(batch, FASTSAMPLE_BATCH_FILTERS(parameters, , false), out.mutable_data_ptr());
    return out;
  }

  static Tensor filtered_probs(const Tensor& logits, FASTSAMPLE_FILTERS()) {
    const Backend backend(logits);
    const Batch batch = batch_of(logits, order, false);
    const Parameters<Backend> parameters(backend, batch.rows);
    Tensor out = torch::stable::new_empty(logits, {batch.rows, batch.vocab}, ScalarType::Float);
    backend.filtered_probs(batch, FASTSAMPLE_BATCH_FILTERS(parameters, , false),
                           static_cast<float*>(out.mutable_data_ptr()));
    return out;
  }

  static Tensor log_probs(const Tensor& logits, const Tensor& tokens, FASTSAMPLE_FILTERS()) {
    const Backend backend(logits);
    const Batch batch = batch_of(logits, order, false);
    STD_TORCH_CHECK(tokens.dim() == 2 && tokens.size(0) == batch.rows && backend.holds(tokens) &&
                        tokens.scalar_type() == ScalarType::Long,
                    "tokens: expected an int64 tensor [", batch.rows, ", n] on the device of the logits");
    const Parameters<Backend> parameters(backend, batch.rows);
    Tensor out = torch::stable::new_empty(logits, {batch.rows, tokens.size(1)}, ScalarType::Float);
    const ConstTokens wanted{static_cast<const int64_t*>(tokens.const_data_ptr()), batch.rows, tokens.size(1),
                             tokens.stride(0), tokens.stride(1)};
    backend.log_probs(batch, FASTSAMPLE_BATCH_FILTERS(parameters, , false), wanted,
                      static_cast<float*>(out.mutable_data_ptr()));
    return out;
  }

  template <class Library>
  static void implement(Library& library) {
    library.impl("filter_logits", TORCH_BOX(&filter_logits));
    library.impl("filtered_probs", TORCH_BOX(&filtered_probs));
    library.impl("log_probs", TORCH_BOX(&log_probs));
  }
};

}  // namespace fastsample::binding
