// A call as every compiled backend is given it: tensors as pointers and strides, parameters as a number or a value per
// row. No torch, no CUDA headers.
#pragma once

#include "law.h"

namespace fastsample {

enum class DType : int32_t { kFloat32, kFloat16, kBFloat16 };

// A per-row parameter: one number for all rows, or a value per row.
template <class T>
struct PerRow {
  T value;
  const T* rows;  // null: `value` holds for every row
  int64_t stride;

  FASTSAMPLE_FUNCTION T operator[](int64_t row) const { return rows ? rows[row * stride] : value; }
};

// The filters of one row.
struct Filters {
  float temperature;
  int64_t top_k;
  float top_p;
  float min_p;
  Order order;
  bool probabilities;  // the row holds probabilities (law section 5); temperature is not used
};

struct BatchFilters {
  PerRow<float> temperature;
  PerRow<int64_t> top_k;
  PerRow<float> top_p;
  PerRow<float> min_p;
  Order order;
  bool probabilities;

  FASTSAMPLE_FUNCTION Filters operator[](int64_t row) const {
    return {temperature[row], top_k[row], top_p[row], min_p[row], order, probabilities};
  }
};

// Law section 1: what makes a row invalid besides its tokens. Each comparison is false for NaN.
FASTSAMPLE_FUNCTION bool valid_filters(const Filters& filters) {
  return (filters.probabilities || filters.temperature >= 0) && filters.top_p >= 0 && filters.top_p <= 1 &&
         filters.min_p >= 0 && filters.min_p <= 1;
}

FASTSAMPLE_FUNCTION bool has_top_k(const Filters& filters, int64_t vocab) {
  return filters.top_k > 0 && filters.top_k < vocab;
}
FASTSAMPLE_FUNCTION bool has_min_p(const Filters& filters) {
  return filters.min_p > 0;
}
FASTSAMPLE_FUNCTION bool has_top_p(const Filters& filters) {
  return filters.top_p < 1;
}

// Law section 3: does Z_B, of which top_p keeps a share, sum over all tokens?
FASTSAMPLE_FUNCTION bool base_is_everything(const Filters& filters, int64_t vocab) {
  switch (filters.order) {
    case Order::kTopKFirst:
      return !has_top_k(filters, vocab);
    case Order::kMinPFirst:
      return !has_top_k(filters, vocab) && !has_min_p(filters);
    default:
      return true;
  }
}

// Only the first maximum is kept: temperature 0, and top_k 1 whatever the other filters.
FASTSAMPLE_FUNCTION bool greedy(const Filters& filters) {
  return (filters.temperature == 0 && !filters.probabilities) || filters.top_k == 1;
}

// Where the random words of one row come from (law section 4).
struct RandomStream {
  uint64_t seed;
  uint64_t offset;
  uint32_t stream;
};

struct BatchRandomness {
  PerRow<int64_t> seed;
  PerRow<int64_t> offset;
  PerRow<int64_t> stream;
  bool stream_per_row;

  FASTSAMPLE_FUNCTION RandomStream operator[](int64_t row) const {
    const uint64_t number = static_cast<uint64_t>(stream[row]) + (stream_per_row ? static_cast<uint64_t>(row) : 0);
    return {static_cast<uint64_t>(seed[row]), static_cast<uint64_t>(offset[row]), static_cast<uint32_t>(number)};
  }
};

// Logits (or probabilities) [rows, vocab] where they lie.
struct Batch {
  const char* data;
  int64_t rows;
  int64_t row_stride;  // in bytes
  int64_t stride;      // in elements
  int64_t vocab;
  DType dtype;
};

// int64 [rows, count]: tokens to write, or tokens asked for.
template <class Integer>
struct TokenMatrix {
  Integer* data;
  int64_t rows;
  int64_t count;
  int64_t row_stride;  // in elements, as `stride`
  int64_t stride;
};
using Tokens = TokenMatrix<int64_t>;
using ConstTokens = TokenMatrix<const int64_t>;

}  // namespace fastsample
