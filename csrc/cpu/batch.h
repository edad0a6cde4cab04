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

// A per-row parameter: one number for all rows, or a value per row.
template <class T>
struct PerRow {
  T value;
  const T* rows;  // null: `value` holds for every row
  int64_t stride;

  T operator[](int64_t row) const { return rows ? rows[row * stride] : value; }
};

struct BatchFilters {
  PerRow<float> temperature;
  PerRow<int64_t> top_k;
  PerRow<float> top_p;
  PerRow<float> min_p;
  Order order;
  bool probabilities;

  Filters operator[](int64_t row) const {
    return {temperature[row], top_k[row], top_p[row], min_p[row], order, probabilities};
  }
};

struct BatchRandomness {
  PerRow<int64_t> seed;
  PerRow<int64_t> offset;
  PerRow<int64_t> stream;
  bool stream_per_row;
};

struct Batch {
  const char* data;
  int64_t rows;
  int64_t row_stride;  // in bytes
  int64_t stride;      // in elements
  int64_t vocab;
  DType dtype;

  RowView row(int64_t i) const { return {data + i * row_stride, stride, vocab, dtype}; }
};

struct Tokens {
  int64_t* data;
  int64_t rows;
  int64_t count;
  int64_t row_stride;
  int64_t stride;
};

void sample(const Batch& batch, const int64_t* indices, int64_t indices_stride, const BatchFilters& filters,
            const BatchRandomness& randomness, bool replacement, const Tokens& out, const Threads& threads);
void filter_logits(const Batch& batch, const BatchFilters& filters, char* out, const Threads& threads);
void filtered_probs(const Batch& batch, const BatchFilters& filters, float* out, const Threads& threads);
void log_probs(const Batch& batch, const BatchFilters& filters, const int64_t* tokens, int64_t tokens_row_stride,
               int64_t tokens_stride, int64_t count, float* out, const Threads& threads);

}  // namespace fastsample::cpu
