// The calls that requests bring in, over the rows of a batch; find_edits has its own file.
#include "rows.h"

namespace fastsample::cpu {

namespace {

bool exists(const Batch& batch, int64_t row) {
  return row >= 0 && row < batch.rows;
}

}  // namespace

void sample_full(const SampleFull& call, const Threads& threads) {
  const Kernels& kernel = kernels();
  const bool edited = static_cast<bool>(call.edits);
  for_each_row(call.tokens.rows, call.batch.vocab, edited, threads,
               [&](int64_t row, RowScratch& scratch, const Team& team) {
                 const Draws draws{call.randomness[row], call.replacement, call.tokens.count,
                                   call.tokens.data + row * call.tokens.row_stride, call.tokens.stride};
                 const int64_t from = call.indices[row];
                 // A row that does not exist is as invalid as one without a token above -inf.
                 const float nothing = -kInfinity;
                 const RowView view =
                     exists(call.batch, from) ? row_of(call.batch, from) : RowView{&nothing, 1, 1, DType::kFloat32};
                 const RowEdits edits = edits_of_row(call.edits, row);
                 kernel.sample_full(view, edited && exists(call.batch, from) ? &edits : nullptr, call.filters[row],
                                    draws, call.details.from(row), scratch, team);
               });
  // After all draws: a length may be the random offset of a draw, in the same memory.
  if (call.history && call.tokens.count > 0)
    for (int64_t row = 0; row < call.tokens.rows; ++row)
      call.history.record(row, call.tokens.data[row * call.tokens.row_stride]);
}

void kept_tokens(const KeptTokens& call, const Threads& threads) {
  const Kernels& kernel = kernels();
  std::fill_n(call.out, call.total, int64_t{-1});
  for_each_row(call.rows, call.batch.vocab, false, threads, [&](int64_t row, RowScratch& scratch, const Team&) {
    const int64_t from = call.indices[row];
    const auto number = [&](int64_t which) { return call.numbers.row(row)[which * call.numbers.stride]; };
    const float logit = bits_float(static_cast<uint32_t>(number(2)));
    if (!exists(call.batch, from) || number(0) != 0 || logit != logit) return;
    const int64_t end = call.offsets[(row + 1) * call.offsets_stride];
    // Numbers that sample_full has not written still read and write nothing out of bounds.
    const Cut cut{std::max(logit, -kFloatMax), std::clamp(number(3), int64_t{0}, call.batch.vocab)};
    kernel.kept_tokens(row_of(call.batch, from), edits_of_row(call.edits, row), cut,
                       call.offsets[row * call.offsets_stride], end < call.total ? end : call.total, call.out, scratch);
  });
}

void fixed_probs_at(const FixedProbsAt& call, const Threads& threads) {
  const Kernels& kernel = kernels();
  const int64_t count = call.tokens.count;
  if (count == 0) return;
  for_each_row(call.tokens.rows, call.batch.vocab, false, threads,
               [&](int64_t row, RowScratch& scratch, const Team& team) {
                 const int64_t from = call.indices[row];
                 int64_t* out = call.out + row * count;
                 if (!exists(call.batch, from)) {
                   std::fill_n(out, count, int64_t{-1});
                   return;
                 }
                 kernel.fixed_probs_at(row_of(call.batch, from), call.filters[row],
                                       call.tokens.data + row * call.tokens.row_stride, call.tokens.stride, count, out,
                                       scratch, team);
               });
}

void random_words(const RandomWords& call) {
  for (int64_t row = 0; row < call.rows; ++row) {
    const RandomStream random = call.randomness[row];
    for (int64_t i = 0; i < call.count; ++i) {
      const uint32_t draw = call.first + static_cast<uint32_t>(i);
      const PhiloxWords words = philox(random.seed, random.offset, random.stream, draw / 2);
      call.out[row * call.count + i] = static_cast<int64_t>(words.word[draw % 2]);
    }
  }
}

void sample_residual(const SampleResidual& call, const Threads& threads) {
  const Kernels& kernel = kernels();
  for_each_row(call.tokens.rows, call.target.vocab, false, threads,
               [&](int64_t row, RowScratch& scratch, const Team& team) {
                 int64_t* token = call.tokens.data + row * call.tokens.row_stride;
                 const int64_t target = call.target_indices[row], draft = call.draft_indices[row];
                 if (!exists(call.target, target)) {
                   *token = -1;
                   return;
                 }
                 const bool is_drafted = exists(call.draft, draft);
                 const RowView drafted = is_drafted ? row_of(call.draft, draft) : RowView{};
                 const Draws draws{call.randomness[row], true, 1, token, 1};
                 kernel.sample_residual(row_of(call.target, target), call.target_filters[row],
                                        is_drafted ? &drafted : nullptr, call.draft_filters[row], draws, scratch, team);
               });
}

}  // namespace fastsample::cpu
