// The rows of the law, step by step: which tokens a row keeps, and draws from them.
#pragma once

#include <type_traits>

#include "draw.h"
#include "maximum.h"
#include "selection.h"

namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET {

inline void invalid_row(const Draws& draws) {
  for (int64_t i = 0; i < draws.count; ++i) draws.tokens[i * draws.tokens_stride] = -1;
}

// Step maximum over a team, and whether the row is valid.
template <class Row>
inline bool read_row(const Row& row, const Chunks& chunks, const Filters& filters, RowScratch& scratch,
                     const Team& team, float& most) {
  if (!valid_filters(filters)) return false;
  team.run([&](int64_t part) {
    const int64_t first = chunks.first_of_part(part, team.parts), last = chunks.first_of_part(part + 1, team.parts);
    scratch.parts[part].maximum = filters.probabilities
                                      ? maximum<true>(row, chunks, first, last, scratch.chunk_maximum)
                                      : maximum<false>(row, chunks, first, last, scratch.chunk_maximum);
  });
  Maximum all{-kInfinity, false};
  for (int64_t part = 0; part < team.parts; ++part) all = larger(all, scratch.parts[part].maximum);
  most = all.value;
  if (all.invalid) return false;
  return filters.probabilities ? most > 0 && most < kInfinity : most > -kInfinity;
}

// Calls body(weight) with the weights that the row calls for.
template <class Body>
inline void with_weight(const Filters& filters, float most, int64_t vocab, const Body& body) {
  if (filters.probabilities)
    body(SpecialWeight::of_probabilities(most, vocab));
  else if (most == kInfinity)
    body(SpecialWeight::of_infinite());
  else
    body(LogitWeight(most, filters.temperature));
}

// What a valid row's draws came from.
struct Drawn {
  Cut cut;
  uint64_t total;       // Z
  uint64_t everything;  // the weight of all tokens, or 0 where it was not summed
};

// Selection and draws of a valid row.
template <class Row>
Drawn draw_row(const Row& row, const Chunks& chunks, const Filters& filters, float most, const Draws& draws,
               RowScratch& scratch, const Team& team) {
  if (greedy(filters)) {
    const int64_t token = first_maximum(row, chunks, scratch.chunk_maximum, most);
    for (int64_t i = 0; i < draws.count; ++i)
      draws.tokens[i * draws.tokens_stride] = draws.replacement || i == 0 ? token : -1;
    return {{most, token + 1}, kLargestWeight, filters.temperature == 0 ? kLargestWeight : 0};
  }
  Drawn drawn;
  with_weight(filters, most, row.size, [&](const auto& weight) {
    const Selection<Row, std::decay_t<decltype(weight)>> selection{row, chunks, filters, weight, most, scratch, team};
    const Kept kept = selection.select();
    drawn.cut = kept.cut;
    if (kept.where == Kept::kInList) {
      const Candidates& candidates = scratch.parts[0].candidates;
      const ContiguousRow<float> list{candidates.logit, candidates.size};
      const Chunks list_chunks(list.size);
      const Cut all{-kFloatMax, list.size};
      weigh_chunks(list, list_chunks, 0, list_chunks.count, weight, all, nullptr, scratch.chunk_sum);
      drawn.total =
          draw(Survivors<ContiguousRow<float>, std::decay_t<decltype(weight)>>{list, candidates.index, list_chunks,
                                                                               weight, all, scratch.chunk_sum},
               draws);
    } else {
      if (kept.where == Kept::kInRow) selection.weigh_kept(kept.cut);
      drawn.total = draw(
          Survivors<Row, std::decay_t<decltype(weight)>>{row, nullptr, chunks, weight, kept.cut, scratch.chunk_sum},
          draws);
    }
    drawn.everything = selection.mass_of_everything;
  });
  return drawn;
}

template <class Row>
void sample_row(const Row& row, const Filters& filters, const Draws& draws, RowScratch& scratch, const Team& team) {
  const Chunks chunks(row.size);
  float most;
  if (!read_row(row, chunks, filters, scratch, team, most)) return invalid_row(draws);
  draw_row(row, chunks, filters, most, draws, scratch, team);
}

// Calls body(weight, cut, total) with the kept set of a valid row, or returns false.
template <class Row, class Body>
bool with_kept(const Row& row, const Filters& filters, RowScratch& scratch, const Team& team, const Body& body) {
  const Chunks chunks(row.size);
  float most;
  if (!read_row(row, chunks, filters, scratch, team, most)) return false;
  with_weight(filters, most, row.size, [&](const auto& weight) {
    if (greedy(filters))
      return body(weight, Cut{most, first_maximum(row, chunks, scratch.chunk_maximum, most) + 1},
                  weight_of(weight, most));
    const Selection<Row, std::decay_t<decltype(weight)>> selection{row, chunks, filters, weight, most, scratch, team};
    const Kept kept = selection.select();
    if (kept.where == Kept::kInList) return body(weight, kept.cut, mass_of(scratch.parts[0].candidates, weight));
    body(weight, kept.cut, kept.where == Kept::kInRow ? selection.weigh_kept(kept.cut) : selection.sum_of_chunks());
  });
  return true;
}

inline float exponent_of(const LogitWeight& weight, float x) {
  return (x - weight.most) * weight.scale;
}
inline float exponent_of(const SpecialWeight&, float x) {
  return x == kInfinity ? 0.0f : -kInfinity;
}

// Law section 5: log-probabilities over a cut of a valid row of logits, whose weights sum to `total`. The logarithm in
// float64, as every backend has it: one of float32 is a unit off here and there, and a ratio of two of these, which a
// trainer wants to be 1, then up to 8.
template <class Row, class Weight>
class LogProbability {
 public:
  LogProbability(const Row& row, const Weight& weight, Cut cut, uint64_t total)
      : row_(row),
        weight_(weight),
        cut_(cut),
        normaliser_(static_cast<float>(
            __builtin_log1p(static_cast<double>(static_cast<float>(total - kLargestWeight)) * 0x1p-40))) {}

  float operator()(int64_t token) const {
    if (token < 0 || token >= row_.size) return __builtin_nanf("");
    const float x = token_at(row_, token);
    const float d = exponent_of(weight_, x);
    constexpr float kLn2 = 0x1.62e430p-1f;
    return kept(x, token) && d > -kInfinity ? -(-d * kLn2 + normaliser_) : -kInfinity;
  }

  // Of a token of the row.
  bool keeps(int64_t token) const { return kept(token_at(row_, token), token); }

 private:
  bool kept(float x, int64_t token) const { return x > cut_.logit || (x == cut_.logit && token < cut_.end); }

  const Row& row_;
  const Weight& weight_;
  const Cut cut_;
  const float normaliser_;
};

}  // namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET
