// The operators that requests bring in (penalties, masks, details, speculative verification), bound like those of
// binding.h: tensors in, the calls of requests.h out.
#pragma once

#include <string>
#include <tuple>
#include <type_traits>

#include "binding.h"
#include "requests.h"

namespace fastsample::binding {

#define FASTSAMPLE_EDITS                                                      \
  const std::optional<Tensor>&allowed, const std::optional<Tensor>&edit_bits, \
      const std::optional<Tensor>&edits_before, const std::optional<Tensor>&edit_values

template <class T>
constexpr ScalarType scalar_type_of() {
  using Element = std::remove_const_t<T>;
  static_assert(std::is_same_v<Element, float> || std::is_same_v<Element, int32_t> || std::is_same_v<Element, int64_t>);
  if (std::is_same_v<Element, float>) return ScalarType::Float;
  return std::is_same_v<Element, int32_t> ? ScalarType::Int : ScalarType::Long;
}

template <class T>
constexpr const char* type_name() {
  if (scalar_type_of<T>() == ScalarType::Float) return "float32";
  return scalar_type_of<T>() == ScalarType::Int ? "int32" : "int64";
}

// A tensor without elements may have no address, and null means that the call has no such tensor.
template <class T>
T* address(const Tensor& tensor) {
  static std::remove_const_t<T> nothing{};
  T* data;
  if constexpr (std::is_const_v<T>)
    data = static_cast<T*>(tensor.const_data_ptr());
  else
    data = static_cast<T*>(tensor.mutable_data_ptr());
  return data ? data : &nothing;
}

// The tensors of a call, each checked for what would read or write out of bounds.
template <class Backend>
class Arguments {
 public:
  Arguments(const Backend& backend, int64_t rows, int64_t vocab) : backend_(backend), rows_(rows), vocab_(vocab) {}

  int64_t words() const { return (vocab_ + 31) / 32; }

  // [rows, at least `columns`]
  template <class T>
  RowsOf<T> matrix(const char* name, const std::optional<Tensor>& tensor, int64_t columns) const {
    if (!tensor) return {nullptr, 0, 0, 0};
    check<T>(name, *tensor);
    STD_TORCH_CHECK(tensor->dim() == 2 && tensor->size(0) == rows_ && tensor->size(1) >= columns, name,
                    ": expected a tensor of shape [", rows_, ", n] with n of at least ", columns);
    return {address<T>(*tensor), tensor->stride(0), tensor->stride(1), tensor->size(1)};
  }

  template <class T>
  struct Vector {
    T* data;
    int64_t stride;
    int64_t size;
  };

  // [size], or of any size where that is -1
  template <class T>
  Vector<T> vector(const char* name, const std::optional<Tensor>& tensor, int64_t size = -1) const {
    if (!tensor) return {nullptr, 0, 0};
    check<T>(name, *tensor);
    STD_TORCH_CHECK(tensor->dim() == 1 && (size < 0 || tensor->size(0) == size), name,
                    ": expected a tensor of one dimension", size < 0 ? "" : " and of the size ",
                    size < 0 ? "" : std::to_string(size));
    return {address<T>(*tensor), tensor->stride(0), tensor->size(0)};
  }

  // [rows, draws], or [rows] of one draw
  template <class T>
  RowsOf<T> by_draw(const char* name, const std::optional<Tensor>& tensor, int64_t draws) const {
    if (!tensor || tensor->dim() != 1 || draws != 1) return matrix<T>(name, tensor, draws);
    const Vector<T> column = vector<T>(name, tensor, rows_);
    return {column.data, column.stride, 1, 1};
  }

  // [rows, columns] without gaps
  template <class T>
  T* block(const char* name, const Tensor& tensor, int64_t columns) const {
    check<T>(name, tensor);
    STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == rows_ && tensor.size(1) == columns && tensor.is_contiguous(),
                    name, ": expected a contiguous tensor of shape [", rows_, ", ", columns, "]");
    return address<T>(tensor);
  }

  RowIndices indices(const char* name, const std::optional<Tensor>& tensor, const Batch& batch) const {
    STD_TORCH_CHECK(tensor || rows_ == batch.rows, name, ": needed for ", rows_, " output rows of ", batch.rows,
                    " rows of logits");
    const Vector<const int64_t> vector = this->vector<const int64_t>(name, tensor, rows_);
    return {vector.data, vector.stride};
  }

  // Lists of tokens, `number` of them.
  Csr lists(const char* name, const std::optional<Tensor>& tokens, const char* offsets_name,
            const std::optional<Tensor>& offsets, int64_t number) const {
    STD_TORCH_CHECK(tokens.has_value() == offsets.has_value(), name, " and ", offsets_name,
                    ": expected both or neither");
    const Vector<const int64_t> entries = vector<const int64_t>(name, tokens);
    const Vector<const int64_t> ends = vector<const int64_t>(offsets_name, offsets, number + 1);
    return {entries.data, entries.size, entries.stride, ends.data, ends.stride};
  }

  Histories histories(const char* name, const std::optional<Tensor>& tokens, const char* lengths_name,
                      const std::optional<Tensor>& lengths) const {
    const Vector<const int64_t> counted = vector<const int64_t>(lengths_name, lengths, rows_);
    return {matrix<const int64_t>(name, tokens, 0), counted.data, counted.stride};
  }

  Edits edits(FASTSAMPLE_EDITS) const {
    STD_TORCH_CHECK(
        edit_bits.has_value() == edits_before.has_value() && edit_bits.has_value() == edit_values.has_value(),
        "edit_bits, edits_before and edit_values: expected all three or none");
    Edits edits{matrix<const int32_t>("allowed", allowed, words()), nullptr, nullptr, nullptr, words(), 0};
    if (!edit_bits) return edits;
    STD_TORCH_CHECK(edit_values->dim() == 2 && edit_values->size(1) > 0, "edit_values: expected a tensor [rows, n]");
    edits.capacity = edit_values->size(1);
    edits.bits = block<const int32_t>("edit_bits", *edit_bits, words());
    edits.before = block<const int32_t>("edits_before", *edits_before, words());
    edits.values = block<const float>("edit_values", *edit_values, edits.capacity);
    return edits;
  }

 private:
  template <class T>
  void check(const char* name, const Tensor& tensor) const {
    STD_TORCH_CHECK(backend_.holds(tensor) && tensor.scalar_type() == scalar_type_of<T>(), name,
                    ": expected a tensor of ", type_name<T>(), " on the device of the logits");
  }

  const Backend& backend_;
  const int64_t rows_;
  const int64_t vocab_;
};

// A backend has find_edits, sample_full, kept_tokens, fixed_probs_at, random_words and sample_residual, each of the
// call of that name in requests.h, besides what Operators asks of it.
template <class Backend>
struct RequestOperators {
  static std::tuple<Tensor, Tensor, Tensor, Tensor> find_edits(
      const Tensor& logits, const std::optional<Tensor>& indices, int64_t rows, double repetition_penalty,
      const std::optional<Tensor>& repetition_penalty_rows, double presence_penalty,
      const std::optional<Tensor>& presence_penalty_rows, double frequency_penalty,
      const std::optional<Tensor>& frequency_penalty_rows, const std::optional<Tensor>& prompt_tokens,
      const std::optional<Tensor>& prompt_lengths, const std::optional<Tensor>& output_tokens,
      const std::optional<Tensor>& output_lengths, const std::optional<Tensor>& prompt_mask,
      const std::optional<Tensor>& output_counts, const std::optional<Tensor>& bias_tokens,
      const std::optional<Tensor>& bias_values, const std::optional<Tensor>& bias_offsets,
      const std::optional<Tensor>& bad_words, const std::optional<Tensor>& bad_word_offsets,
      const std::optional<Tensor>& bad_word_rows, bool bad_words_in_prompt, int64_t min_tokens,
      const std::optional<Tensor>& min_tokens_rows, const std::optional<Tensor>& stop_tokens,
      const std::optional<Tensor>& stop_offsets, const std::optional<Tensor>& allowed) {
    const Backend backend(logits);
    const Batch batch = batch_of(logits, 0, false);
    STD_TORCH_CHECK(rows >= 0, "rows: expected a number of rows, got ", rows);
    const Parameters<Backend> parameters(backend, rows);
    const Arguments<Backend> arguments(backend, rows, batch.vocab);

    STD_TORCH_CHECK(bias_tokens.has_value() == bias_values.has_value(),
                    "bias_tokens and bias_values: expected both or neither");
    const Csr biased = arguments.lists("bias_tokens", bias_tokens, "bias_offsets", bias_offsets, rows);
    const auto bias = arguments.template vector<const float>("bias_values", bias_values, biased.count);
    STD_TORCH_CHECK(!bad_word_offsets || (bad_word_offsets->dim() == 1 && bad_word_offsets->size(0) > 0),
                    "bad_word_offsets: expected a tensor [number of words + 1]");
    const int64_t words = bad_word_offsets ? bad_word_offsets->size(0) - 1 : 0;
    STD_TORCH_CHECK(bad_words.has_value() == bad_word_rows.has_value(),
                    "bad_words and bad_word_rows: expected both or neither");
    const auto word_rows = arguments.template vector<const int64_t>("bad_word_rows", bad_word_rows, rows + 1);
    const Adjustments adjustments{
        parameters.of_float("repetition_penalty", repetition_penalty, repetition_penalty_rows),
        parameters.of_float("presence_penalty", presence_penalty, presence_penalty_rows),
        parameters.of_float("frequency_penalty", frequency_penalty, frequency_penalty_rows),
        arguments.histories("prompt_tokens", prompt_tokens, "prompt_lengths", prompt_lengths),
        arguments.histories("output_tokens", output_tokens, "output_lengths", output_lengths),
        arguments.template matrix<const int32_t>("prompt_mask", prompt_mask, arguments.words()),
        arguments.template matrix<const int32_t>("output_counts", output_counts, batch.vocab),
        {biased, bias.data, bias.stride},
        {arguments.lists("bad_words", bad_words, "bad_word_offsets", bad_word_offsets, words), words, word_rows.data,
         word_rows.stride, bad_words_in_prompt},
        parameters.of_int("min_tokens", min_tokens, min_tokens_rows),
        arguments.lists("stop_tokens", stop_tokens, "stop_offsets", stop_offsets, rows),
        arguments.template matrix<const int32_t>("allowed", allowed, arguments.words())};

    // As fastsample/schemas.py, most_edits: the two have to agree, or a compiled graph gets another shape than it was
    // told of.
    int64_t most = 1 + adjustments.prompt.tokens.columns + adjustments.output.tokens.columns + biased.count +
                   (bad_word_offsets ? words + 1 : 0) + adjustments.stop_tokens.count;
    if (most > batch.vocab || prompt_mask || output_counts) most = batch.vocab;

    Tensor bits = torch::stable::new_empty(logits, {rows, arguments.words()}, ScalarType::Int);
    Tensor before = torch::stable::new_empty(logits, {rows, arguments.words()}, ScalarType::Int);
    Tensor values = torch::stable::new_empty(logits, {rows, most}, ScalarType::Float);
    Tensor status = torch::stable::new_empty(logits, {rows}, ScalarType::Int);
    backend.find_edits(FindEdits{batch,
                                 arguments.indices("indices", indices, batch),
                                 rows,
                                 adjustments,
                                 {address<int32_t>(bits), address<int32_t>(before), address<float>(values),
                                  address<int32_t>(status), arguments.words(), most}});
    return {bits, before, values, status};
  }

  static void sample_full(Tensor out, const Tensor& logits, const std::optional<Tensor>& indices, FASTSAMPLE_FILTERS(),
                          FASTSAMPLE_RANDOMNESS, bool replacement, FASTSAMPLE_EDITS,
                          const std::optional<Tensor>& history, const std::optional<Tensor>& history_lengths,
                          const std::optional<Tensor>& counts, const std::optional<Tensor>& logprobs,
                          const std::optional<Tensor>& raw_logprobs, const std::optional<Tensor>& ranks,
                          const std::optional<Tensor>& top_tokens, const std::optional<Tensor>& top_logprobs,
                          const std::optional<Tensor>& numbers, bool top_of_processed) {
    const Backend backend(logits);
    const Batch batch = batch_of(logits, order, false);
    STD_TORCH_CHECK(out.dim() == 1 || out.dim() == 2, "out: expected an int64 tensor [batch] or [batch, num_samples]");
    const int64_t rows = out.size(0), draws = out.dim() == 1 ? 1 : out.size(1);
    const Parameters<Backend> parameters(backend, rows);
    const Arguments<Backend> arguments(backend, rows, batch.vocab);
    const auto tokens = arguments.template by_draw<int64_t>("out", out, draws);
    const auto lengths = arguments.template vector<int64_t>("history_lengths", history_lengths, rows);
    const Details details{arguments.template by_draw<float>("logprobs", logprobs, draws),
                          arguments.template by_draw<float>("raw_logprobs", raw_logprobs, draws),
                          arguments.template by_draw<int64_t>("ranks", ranks, draws),
                          arguments.template matrix<int64_t>("top_tokens", top_tokens, 0),
                          arguments.template matrix<float>("top_logprobs", top_logprobs, 0),
                          arguments.template matrix<int64_t>("numbers", numbers, kNumbers),
                          top_of_processed};
    STD_TORCH_CHECK(top_tokens.has_value() == top_logprobs.has_value() &&
                        details.top_tokens.columns == details.top_logprobs.columns &&
                        details.top_tokens.columns <= kMostTopTokens,
                    "top_tokens and top_logprobs: expected both, with the same number of columns, at most ",
                    kMostTopTokens, ", or neither");
    backend.sample_full(
        SampleFull{batch, arguments.indices("indices", indices, batch), FASTSAMPLE_BATCH_FILTERS(parameters, , false),
                   FASTSAMPLE_BATCH_RANDOMNESS(parameters), replacement,
                   Tokens{tokens.data, rows, draws, tokens.row_stride, tokens.stride},
                   arguments.edits(allowed, edit_bits, edits_before, edit_values),
                   History{arguments.template matrix<int64_t>("history", history, 0), lengths.data, lengths.stride,
                           arguments.template matrix<int32_t>("counts", counts, batch.vocab)},
                   details});
  }

  // With log-probabilities it is sample_full, of which nothing else is asked, by half as many arguments: of those, each
  // takes 0.1 us of a call (measured), of which one sequence's has 50.
  static void sample(Tensor out, const Tensor& logits, const std::optional<Tensor>& indices, FASTSAMPLE_FILTERS(),
                     FASTSAMPLE_RANDOMNESS, bool replacement, bool probabilities,
                     const std::optional<Tensor>& logprobs) {
    constexpr std::nullopt_t none = std::nullopt;
    if (!logprobs)
      return Operators<Backend>::sample(out, logits, indices, temperature, temperature_rows, top_k, top_k_rows, top_p,
                                        top_p_rows, min_p, min_p_rows, order, seed, seed_rows, offset, offset_rows,
                                        stream, stream_rows, stream_per_row, replacement, probabilities);
    STD_TORCH_CHECK(!probabilities, "logprobs: expected none with probabilities");
    sample_full(out, logits, indices, temperature, temperature_rows, top_k, top_k_rows, top_p, top_p_rows, min_p,
                min_p_rows, order, seed, seed_rows, offset, offset_rows, stream, stream_rows, stream_per_row,
                replacement, none, none, none, none, none, none, none, logprobs, none, none, none, none, none, false);
  }

  static Tensor kept_tokens(const Tensor& logits, const std::optional<Tensor>& indices, FASTSAMPLE_EDITS,
                            const Tensor& numbers, const Tensor& offsets, int64_t total) {
    const Backend backend(logits);
    const Batch batch = batch_of(logits, 0, false);
    STD_TORCH_CHECK(numbers.dim() == 2, "numbers: expected an int64 tensor [batch, ", kNumbers, "]");
    STD_TORCH_CHECK(total >= 0, "total: expected a number of tokens, got ", total);
    const int64_t rows = numbers.size(0);
    const Arguments<Backend> arguments(backend, rows, batch.vocab);
    const auto begins = arguments.template vector<const int64_t>("offsets", offsets, rows + 1);
    Tensor out = torch::stable::new_empty(logits, {total}, ScalarType::Long);
    backend.kept_tokens(KeptTokens{batch, arguments.indices("indices", indices, batch), rows,
                                   arguments.edits(allowed, edit_bits, edits_before, edit_values),
                                   arguments.template matrix<const int64_t>("numbers", numbers, kNumbers), begins.data,
                                   begins.stride, address<int64_t>(out), total});
    return out;
  }

  static Tensor fixed_probs_at(const Tensor& logits, const std::optional<Tensor>& indices, const Tensor& tokens,
                               FASTSAMPLE_FILTERS(), bool probabilities) {
    const Backend backend(logits);
    const Batch batch = batch_of(logits, order, probabilities);
    STD_TORCH_CHECK(tokens.dim() == 2, "tokens: expected an int64 tensor [batch, n]");
    const int64_t rows = tokens.size(0), count = tokens.size(1);
    const Parameters<Backend> parameters(backend, rows);
    const Arguments<Backend> arguments(backend, rows, batch.vocab);
    const auto wanted = arguments.template matrix<const int64_t>("tokens", tokens, 0);
    Tensor out = torch::stable::new_empty(logits, {rows, count}, ScalarType::Long);
    backend.fixed_probs_at(FixedProbsAt{batch, arguments.indices("indices", indices, batch),
                                        ConstTokens{wanted.data, rows, count, wanted.row_stride, wanted.stride},
                                        FASTSAMPLE_BATCH_FILTERS(parameters, , probabilities), address<int64_t>(out)});
    return out;
  }

  static Tensor random_words(const Tensor& like, int64_t rows, FASTSAMPLE_RANDOMNESS, int64_t first, int64_t count) {
    const Backend backend(like);
    STD_TORCH_CHECK(rows >= 0 && count >= 0, "rows, count: expected numbers of rows and words, got ", rows, " and ",
                    count);
    const Parameters<Backend> parameters(backend, rows);
    Tensor out = torch::stable::new_empty(like, {rows, count}, ScalarType::Long);
    backend.random_words(RandomWords{rows, FASTSAMPLE_BATCH_RANDOMNESS(parameters), static_cast<uint32_t>(first), count,
                                     address<int64_t>(out)});
    return out;
  }

  static void sample_residual(Tensor out, const Tensor& target, const Tensor& target_indices, FASTSAMPLE_FILTERS(),
                              bool target_probabilities, const Tensor& draft, const Tensor& draft_indices,
                              FASTSAMPLE_FILTERS(draft_), bool draft_probabilities, FASTSAMPLE_RANDOMNESS) {
    const Backend backend(target);
    const Batch targets = batch_of(target, order, target_probabilities);
    const Batch drafts = batch_of(draft, draft_order, draft_probabilities);
    STD_TORCH_CHECK(backend.holds(draft) && drafts.vocab == targets.vocab, "draft: expected a vocabulary of ",
                    targets.vocab, " tokens on the device of the target, got ", drafts.vocab);
    STD_TORCH_CHECK(out.dim() == 2, "out: expected an int64 tensor [batch, 1]");
    const int64_t rows = out.size(0);
    const Parameters<Backend> parameters(backend, rows);
    const Arguments<Backend> arguments(backend, rows, targets.vocab);
    const auto tokens = arguments.template matrix<int64_t>("out", out, 1);
    backend.sample_residual(SampleResidual{targets, arguments.indices("target_indices", target_indices, targets),
                                           FASTSAMPLE_BATCH_FILTERS(parameters, , target_probabilities), drafts,
                                           arguments.indices("draft_indices", draft_indices, drafts),
                                           FASTSAMPLE_BATCH_FILTERS(parameters, draft_, draft_probabilities),
                                           FASTSAMPLE_BATCH_RANDOMNESS(parameters),
                                           Tokens{tokens.data, rows, 1, tokens.row_stride, tokens.stride}});
  }

  template <class Library>
  static void implement(Library& library) {
    library.impl("sample", TORCH_BOX(&sample));
    library.impl("find_edits", TORCH_BOX(&find_edits));
    library.impl("sample_full", TORCH_BOX(&sample_full));
    library.impl("kept_tokens", TORCH_BOX(&kept_tokens));
    library.impl("fixed_probs_at", TORCH_BOX(&fixed_probs_at));
    library.impl("random_words", TORCH_BOX(&random_words));
    library.impl("sample_residual", TORCH_BOX(&sample_residual));
  }
};

#undef FASTSAMPLE_EDITS

}  // namespace fastsample::binding
