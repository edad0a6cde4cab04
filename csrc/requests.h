// What a request adds to a call, as every compiled backend is given it (law sections 0 and 7): adjustments and the
// edits that they come to, the history that a draw goes into, and what is said of it. No torch, no CUDA headers.
#pragma once

#include "batch.h"

namespace fastsample {

// A matrix with a row for each output row; null where the call has none.
template <class T>
struct RowsOf {
  T* data;
  int64_t row_stride;  // in elements, as `stride`
  int64_t stride;
  int64_t columns;

  FASTSAMPLE_FUNCTION T* row(int64_t number) const { return data + number * row_stride; }
  // The matrix from a row on.
  FASTSAMPLE_FUNCTION RowsOf from(int64_t number) const {
    return {data ? row(number) : nullptr, row_stride, stride, columns};
  }
};

// Law section 0, "edits": what a row's logits are replaced by, and which of the others are allowed.
struct Edits {
  RowsOf<const int32_t> allowed;  // a bit a token, or null: all are
  const int32_t* bits;            // [rows, words], or null with the next two: no edits
  const int32_t* before;          // [rows, words]: edits in the row's earlier words
  const float* values;            // [rows, capacity]
  int64_t words;
  int64_t capacity;

  FASTSAMPLE_FUNCTION explicit operator bool() const { return allowed.data || bits; }
};

FASTSAMPLE_FUNCTION int bits_below(uint32_t word, uint32_t bit) {
  const uint32_t below = word & ((1u << bit) - 1);
#if defined(__CUDA_ARCH__)
  return __popc(below);
#else
  return __builtin_popcount(below);
#endif
}

// The edits of one row. Only aligned int32 words are read.
struct RowEdits {
  const int32_t* allowed;
  int64_t allowed_stride;
  const int32_t* bits;
  const int32_t* before;
  const float* values;
  int64_t capacity;

  FASTSAMPLE_FUNCTION uint32_t allowed_word(int64_t word) const {
    return allowed ? static_cast<uint32_t>(allowed[word * allowed_stride]) : 0xFFFFFFFFu;
  }
  FASTSAMPLE_FUNCTION uint32_t edited_word(int64_t word) const { return bits ? static_cast<uint32_t>(bits[word]) : 0; }

  // The logit x of a token as section 0 leaves it.
  FASTSAMPLE_FUNCTION float operator()(float x, int64_t token) const {
    const int64_t word = token >> 5;
    const uint32_t bit = static_cast<uint32_t>(token & 31);
    const uint32_t edited = edited_word(word);
    if (edited >> bit & 1) return values[before[word] + bits_below(edited, bit)];
    return allowed_word(word) >> bit & 1 ? x : -kInfinity;
  }
};

FASTSAMPLE_FUNCTION RowEdits edits_of_row(const Edits& edits, int64_t row) {
  return {edits.allowed.data ? edits.allowed.row(row) : nullptr,
          edits.allowed.stride,
          edits.bits ? edits.bits + row * edits.words : nullptr,
          edits.before ? edits.before + row * edits.words : nullptr,
          edits.values ? edits.values + row * edits.capacity : nullptr,
          edits.capacity};
}

// Lists of tokens a row: row r has the entries [offsets[r], offsets[r + 1]).
struct Csr {
  const int64_t* tokens;  // null: no row has any
  int64_t count;
  int64_t stride;
  const int64_t* offsets;
  int64_t offsets_stride;
};

// Histories of tokens, the first lengths[row] of each row; a null `lengths` means all columns.
struct Histories {
  RowsOf<const int64_t> tokens;
  const int64_t* lengths;
  int64_t lengths_stride;
};

struct Bias {
  Csr entries;
  const float* values;
  int64_t values_stride;
};

// Word number n is tokens[word_offsets[n] .. word_offsets[n + 1]), and row r has the words [rows[r], rows[r + 1]).
struct BadWords {
  Csr words;       // `offsets` says where each word begins
  int64_t number;  // of words
  const int64_t* rows;
  int64_t rows_stride;
  bool in_prompt;
};

// Law section 0, before it is worked out.
struct Adjustments {
  PerRow<float> repetition_penalty;
  PerRow<float> presence_penalty;
  PerRow<float> frequency_penalty;
  Histories prompt;
  Histories output;
  RowsOf<const int32_t> prompt_mask;    // a bit a token
  RowsOf<const int32_t> output_counts;  // a count a token
  Bias bias;
  BadWords bad_words;
  PerRow<int64_t> min_tokens;
  Csr stop_tokens;
  RowsOf<const int32_t> allowed;
};

enum EditStatus : int32_t { kInvalidPenalty = 1, kEntriesIgnored = 2 };

// Law section 0: the penalties of one row.
struct Penalties {
  float repetition;
  float presence;
  float frequency;

  FASTSAMPLE_FUNCTION bool valid() const {
    return repetition > 0 && repetition < kInfinity && presence - presence == 0 && frequency - frequency == 0;
  }
  FASTSAMPLE_FUNCTION bool look_at_prompt() const { return repetition != 1; }
  FASTSAMPLE_FUNCTION bool look_at_output() const { return repetition != 1 || presence != 0 || frequency != 0; }
};

// What is known of one edited token.
struct Edit {
  bool has_bias;
  float bias;
  bool in_history;  // in the prompt or the output
  int64_t count;    // in the output
  bool banned;      // or not allowed
};

// Law section 0, the formula.
FASTSAMPLE_FUNCTION float edited_logit(float x, const Penalties& penalties, const Edit& edit) {
#if defined(__CUDA_ARCH__)
  if (edit.has_bias) x = __fadd_rn(x, edit.bias);
  if (edit.in_history) x = x > 0 ? __fdiv_rn(x, penalties.repetition) : __fmul_rn(x, penalties.repetition);
  if (edit.count > 0) {
    x = __fsub_rn(x, __fmul_rn(penalties.frequency, static_cast<float>(edit.count)));
    x = __fsub_rn(x, penalties.presence);
  }
#else
  if (edit.has_bias) x = x + edit.bias;
  if (edit.in_history) x = x > 0 ? x / penalties.repetition : x * penalties.repetition;
  if (edit.count > 0) {
    const float frequency = penalties.frequency * static_cast<float>(edit.count);
    x = x - frequency;
    x = x - penalties.presence;
  }
#endif
  return edit.banned ? -kInfinity : x;
}

// Where the edits of each row are written; see fastsample/schemas.py, find_edits.
struct FoundEdits {
  int32_t* bits;    // [rows, words]
  int32_t* before;  // [rows, words]
  float* values;    // [rows, capacity]
  int32_t* status;  // [rows]: EditStatus
  int64_t words;
  int64_t capacity;  // as many as a row can have, fastsample/schemas.py, most_edits; at least 1
};

// Law section 7: where a row's first token goes once it is drawn. Each may be null.
struct History {
  RowsOf<int64_t> tokens;
  int64_t* lengths;
  int64_t lengths_stride;
  RowsOf<int32_t> counts;

  FASTSAMPLE_FUNCTION explicit operator bool() const { return tokens.data || lengths || counts.data; }

  FASTSAMPLE_FUNCTION void record(int64_t row, int64_t token) const {
    if (token < 0) return;
    if (counts.data) ++counts.row(row)[token * counts.stride];
    if (!lengths) return;
    int64_t& length = lengths[row * lengths_stride];
    if (tokens.data && length >= 0 && length < tokens.columns) tokens.row(row)[length * tokens.stride] = token;
    ++length;
  }
};

constexpr int kNumbers = 8;
constexpr int64_t kMostTopTokens = 32;

// Law section 7: what is said of the draws. Each is null where nobody asked for it.
struct Details {
  RowsOf<float> logprobs;      // [rows, draws]
  RowsOf<float> raw_logprobs;  // [rows, draws]
  RowsOf<int64_t> ranks;       // [rows, draws]
  RowsOf<int64_t> top_tokens;  // [rows, n], with the next or not at all
  RowsOf<float> top_logprobs;
  RowsOf<int64_t> numbers;  // [rows, kNumbers]
  bool top_of_processed;    // or of the row as it was before its edits, temperature and filters

  FASTSAMPLE_FUNCTION Details from(int64_t row) const {
    return {logprobs.from(row),     raw_logprobs.from(row), ranks.from(row), top_tokens.from(row),
            top_logprobs.from(row), numbers.from(row),      top_of_processed};
  }
  FASTSAMPLE_FUNCTION bool has_top(bool of_processed) const {
    return top_tokens.data && top_of_processed == of_processed;
  }
  // Is anything said of the row as it was before its edits?
  FASTSAMPLE_FUNCTION bool of_raw_row() const { return raw_logprobs.data || ranks.data || has_top(false); }
};

// The logits row of each output row: itself where there are no indices.
struct RowIndices {
  const int64_t* data;
  int64_t stride;

  FASTSAMPLE_FUNCTION int64_t operator[](int64_t row) const { return data ? data[row * stride] : row; }
};

// A call of each operator that a request brings in, under its name in fastsample/schemas.py. `rows` are output rows, by
// which everything but `batch` is indexed.

struct FindEdits {
  Batch batch;
  RowIndices indices;
  int64_t rows;
  Adjustments adjustments;
  FoundEdits found;
};

struct SampleFull {
  Batch batch;
  RowIndices indices;
  BatchFilters filters;
  BatchRandomness randomness;
  bool replacement;
  Tokens tokens;
  Edits edits;
  History history;
  Details details;
};

struct KeptTokens {
  Batch batch;
  RowIndices indices;
  int64_t rows;
  Edits edits;
  RowsOf<const int64_t> numbers;  // [rows, kNumbers]
  const int64_t* offsets;         // [rows + 1]
  int64_t offsets_stride;
  int64_t* out;  // [total]
  int64_t total;
};

struct FixedProbsAt {
  Batch batch;
  RowIndices indices;
  ConstTokens tokens;
  BatchFilters filters;
  int64_t* out;  // as tokens, contiguous
};

struct RandomWords {
  int64_t rows;
  BatchRandomness randomness;
  uint32_t first;
  int64_t count;
  int64_t* out;  // [rows, count]
};

struct SampleResidual {
  Batch target;
  RowIndices target_indices;
  BatchFilters target_filters;
  Batch draft;
  RowIndices draft_indices;
  BatchFilters draft_filters;
  BatchRandomness randomness;
  Tokens tokens;
};

}  // namespace fastsample
