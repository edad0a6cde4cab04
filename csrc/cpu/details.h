// What is said of a row's draws (law section 7).
#pragma once

#include "kept.h"

namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET {

inline void describe_invalid_row(const Details& details, int64_t draws) {
  const float nan = __builtin_nanf("");
  for (int64_t i = 0; i < draws; ++i) {
    if (details.logprobs.data) details.logprobs.data[i * details.logprobs.stride] = nan;
    if (details.raw_logprobs.data) details.raw_logprobs.data[i * details.raw_logprobs.stride] = nan;
    if (details.ranks.data) details.ranks.data[i * details.ranks.stride] = 0;
  }
  for (int64_t i = 0; details.top_tokens.data && i < details.top_tokens.columns; ++i) {
    details.top_tokens.data[i * details.top_tokens.stride] = -1;
    details.top_logprobs.data[i * details.top_logprobs.stride] = nan;
  }
  for (int64_t i = 0; details.numbers.data && i < kNumbers; ++i)
    details.numbers.data[i * details.numbers.stride] = i == 0;
}

// The terms of E, each (w_i * floor(-d_i * 2^20)) >> 20. Where d_i is below -41 the weight is 0.
FASTSAMPLE_INLINE U energy_of(const LogitWeight& weight, F x, U w) {
  return Simd::scaled_product(w, Simd::mul(Simd::max(weight.exponent(x), Simd::set(-41.0f)), Simd::set(-0x1p20f)));
}
FASTSAMPLE_INLINE U energy_of(const SpecialWeight&, F, U) {
  return Simd::zero();
}

// `with_everything`: also of the chunks that no kept token is in.
template <class Row, class Weight>
inline KeptSums sum_kept(const Row& row, const Chunks& chunks, int64_t first, int64_t last, const Weight& weight,
                         Cut cut, bool with_everything, const float* chunk_maximum) {
  KeptSums sums{0, 0, 0, kInfinity};
  F lowest = Simd::set(kInfinity);
  for (int64_t chunk = first; chunk < last; ++chunk) {
    if (chunk_maximum[chunk] < cut.logit) {
      if (with_everything && !weight.vanishes(chunk_maximum[chunk]))
        sums.everything +=
            weigh_chunks(row, chunks, chunk, chunk + 1, weight, {-kFloatMax, row.size}, nullptr, nullptr);
      continue;
    }
    for_each_stretch(cut, chunks.begin(chunk), chunks.end(chunk), [&](int64_t begin, int64_t end, float least) {
      const F bound = Simd::set(least);
      U everything = Simd::zero(), energy = Simd::zero();
      for_each_vector(row, begin, end, [&](F x, int64_t) {
        const U w = weight(x);
        const M kept = Simd::greater_equal(x, bound);
        everything = Simd::add(everything, w);
        energy = Simd::add_where(kept, energy, energy_of(weight, x, w));
        lowest = Simd::min(Simd::select(kept, x, lowest), lowest);
        sums.count += Simd::count(kept);
      });
      sums.everything += Simd::sum(everything);
      sums.energy += Simd::sum(energy);
    });
  }
  sums.least = Simd::horizontal_min(lowest);
  return sums;
}

// The last token before `end` that equals `value`; there is one.
template <class Row>
inline int64_t last_equal(const Row& row, const Chunks& chunks, const float* chunk_maximum, float value, int64_t end) {
  const F wanted = Simd::set(value);
  for (int64_t chunk = (end - 1) / chunks.size;; --chunk) {
    if (chunk_maximum[chunk] < value) continue;
    int64_t found = -1;
    const int64_t stop = end < chunks.end(chunk) ? end : chunks.end(chunk);
    for_each_vector(row, chunks.begin(chunk), stop, [&](F x, int64_t at) {
      if (!Simd::any(Simd::equal(x, wanted))) return;
      float lanes[kWidth];
      Simd::store(lanes, x);
      for (int lane = 0; lane < kWidth; ++lane)
        if (lanes[lane] == value) found = at + lane;
    });
    if (found >= 0) return found;
  }
}

inline int64_t bits_of(float x) {
  return static_cast<int32_t>(float_bits(x == 0 ? 0.0f : x));
}

// `numbers` of a valid row. Returns the weight of all tokens.
template <class Row>
inline uint64_t count_kept(const Row& row, const Chunks& chunks, const Filters& filters, float most, const Drawn& drawn,
                           const RowsOf<int64_t>& numbers, RowScratch& scratch, const Team& team) {
  KeptSums sums{drawn.everything, 0, 1, most};
  int64_t last = drawn.cut.end - 1;
  with_weight(filters, most, row.size, [&](const auto& weight) {
    if (greedy(filters)) {
      if (sums.everything == 0)
        sums.everything = weigh_row(row, chunks, weight, {-kFloatMax, row.size}, scratch.chunk_maximum, scratch, team);
      return;
    }
    team.run([&](int64_t part) {
      const int64_t first = chunks.first_of_part(part, team.parts), end = chunks.first_of_part(part + 1, team.parts);
      scratch.parts[part].kept =
          sum_kept(row, chunks, first, end, weight, drawn.cut, drawn.everything == 0, scratch.chunk_maximum);
    });
    sums = scratch.parts[0].kept;
    for (int64_t part = 1; part < team.parts; ++part) {
      const KeptSums& more = scratch.parts[part].kept;
      sums.everything += more.everything;
      sums.energy += more.energy;
      sums.count += more.count;
      sums.least = more.least < sums.least ? more.least : sums.least;
    }
    if (drawn.everything != 0) sums.everything = drawn.everything;
    const int64_t end = sums.least == drawn.cut.logit && drawn.cut.end < row.size ? drawn.cut.end : row.size;
    last = last_equal(row, chunks, scratch.chunk_maximum, sums.least, end);
  });
  const int64_t described[kNumbers] = {0,
                                       bits_of(most),
                                       bits_of(sums.least),
                                       last + 1,
                                       static_cast<int64_t>(drawn.total),
                                       sums.count,
                                       static_cast<int64_t>(sums.energy),
                                       static_cast<int64_t>(sums.everything)};
  for (int64_t i = 0; i < kNumbers; ++i) numbers.data[i * numbers.stride] = described[i];
  return sums.everything;
}

template <class Row>
inline int64_t count_from(const Row& row, int64_t begin, int64_t end, float least) {
  const F bound = Simd::set(least);
  const auto reaching = [&](F x) { return Simd::count(Simd::greater_equal(x, bound)); };
  int64_t count = 0, i = begin;
  for (; i + 4 * kWidth <= end; i += 4 * kWidth)
    count += reaching(row.load(i)) + reaching(row.load(i + kWidth)) + reaching(row.load(i + 2 * kWidth)) +
             reaching(row.load(i + 3 * kWidth));
  for_each_vector(row, i, end, [&](F x, int64_t) { count += reaching(x); });
  return count;
}

// 1 + how many tokens come before this one; 0 where it is none.
template <class Row>
inline int64_t rank_of(const Row& row, const Chunks& chunks, const float* chunk_maximum, int64_t token,
                       RowScratch& scratch, const Team& team) {
  if (token < 0 || token >= row.size) return 0;
  const float x = token_at(row, token);
  // The padding of a tail is -inf as well, so that those before this one are counted as what is not above.
  if (x == -kInfinity)
    return 1 + count_from(row, 0, row.size, -kFloatMax) + token - count_from(row, 0, token, -kFloatMax);
  team.run([&](int64_t part) {
    const int64_t last = chunks.first_of_part(part + 1, team.parts);
    uint64_t before = 0;
    for (int64_t chunk = chunks.first_of_part(part, team.parts); chunk < last; ++chunk)
      if (chunk_maximum[chunk] >= x)
        for_each_stretch({x, token}, chunks.begin(chunk), chunks.end(chunk),
                         [&](int64_t begin, int64_t end, float least) {
                           before += static_cast<uint64_t>(count_from(row, begin, end, least));
                         });
    scratch.parts[part].above = before;
  });
  int64_t rank = 1;
  for (int64_t part = 0; part < team.parts; ++part) rank += static_cast<int64_t>(scratch.parts[part].above);
  return rank;
}

// The first `count` tokens in rank, in index order, or all above -inf where there are fewer. They lie in few chunks,
// so that no list overflows and one thread is as fast as several.
template <class Row, class Weight>
inline Candidates& largest_tokens(const Row& row, const Chunks& chunks, const float* chunk_maximum,
                                  const Weight& weight, float most, int64_t count, RowScratch& scratch) {
  const float bound = value_reached_by(chunk_maximum, chunks.count, count, most);
  Candidates& candidates = scratch.parts[0].candidates;
  gather(row, chunks, 0, chunks.count, chunk_maximum, bound, count, candidates);
  if (candidates.size > count)
    keep(candidates,
         cut_candidates<Measure::kCount>(candidates, weight, {bound, most}, static_cast<uint64_t>(count), scratch.work),
         scratch.work);
  return candidates;
}

// The first tokens in rank, of those that `log_probability` is about, with what it says of them.
template <class Row, class Weight, class LogProbability>
inline void write_top(const Row& row, const Chunks& chunks, const float* chunk_maximum, const Weight& weight,
                      float most, const LogProbability& log_probability, const Details& details, RowScratch& scratch) {
  if (details.top_tokens.columns == 0) return;
  const Candidates& candidates =
      largest_tokens(row, chunks, chunk_maximum, weight, most, details.top_tokens.columns, scratch);
  int64_t order[kMostTopTokens];
  for (int64_t i = 0; i < candidates.size; ++i) {
    int64_t place = i;  // equal ones are already in index order
    for (; place > 0 && candidates.logit[i] > candidates.logit[order[place - 1]]; --place)
      order[place] = order[place - 1];
    order[place] = i;
  }
  for (int64_t i = 0; i < details.top_tokens.columns; ++i) {
    int64_t token = i < candidates.size ? static_cast<int64_t>(candidates.index[order[i]]) : -1;
    if (token >= 0 && !log_probability.keeps(token)) token = -1;
    details.top_tokens.data[i * details.top_tokens.stride] = token;
    details.top_logprobs.data[i * details.top_logprobs.stride] = token < 0 ? -kInfinity : log_probability(token);
  }
}

// What is said of the draws of a valid row as it was sampled. Returns the weight of all its tokens, or 0 where it was
// not summed.
template <class Row>
inline uint64_t describe_row(const Row& row, const Chunks& chunks, const Filters& filters, float most,
                             const Drawn& drawn, const Draws& draws, const Details& details, RowScratch& scratch,
                             const Team& team) {
  const RowsOf<float>& logprobs = details.logprobs;
  if (logprobs.data || details.has_top(true))
    with_weight(filters, most, row.size, [&](const auto& weight) {
      const LogProbability<Row, std::decay_t<decltype(weight)>> log_probability(row, weight, drawn.cut, drawn.total);
      for (int64_t i = 0; logprobs.data && i < draws.count; ++i)
        logprobs.data[i * logprobs.stride] = log_probability(draws.tokens[i * draws.tokens_stride]);
      if (details.has_top(true))
        write_top(row, chunks, scratch.chunk_maximum, weight, most, log_probability, details, scratch);
    });
  if (!details.numbers.data) return drawn.everything;
  return count_kept(row, chunks, filters, most, drawn, details.numbers, scratch, team);
}

// What is said of the row as it was, before edits, temperature and filters. `known`: the weight of all its tokens, or
// 0.
template <class Row>
inline void describe_raw_row(const Row& row, const Chunks& chunks, Maximum largest, const float* chunk_maximum,
                             uint64_t known, const Draws& draws, const Details& details, RowScratch& scratch,
                             const Team& team) {
  if (largest.invalid || !(largest.value > -kInfinity)) {
    Details of_raw = details;
    of_raw.logprobs.data = nullptr;
    of_raw.numbers.data = nullptr;
    if (!details.has_top(false)) of_raw.top_tokens.data = nullptr;
    return describe_invalid_row(of_raw, draws.count);
  }
  if (details.ranks.data)
    for (int64_t i = 0; i < draws.count; ++i)
      details.ranks.data[i * details.ranks.stride] =
          rank_of(row, chunks, chunk_maximum, draws.tokens[i * draws.tokens_stride], scratch, team);
  if (!details.raw_logprobs.data && !details.has_top(false)) return;
  const Filters neutral{1.0f, 0, 1.0f, 0.0f, Order::kTopKFirst, false};
  const Cut everything{-kFloatMax, row.size};
  with_weight(neutral, largest.value, row.size, [&](const auto& weight) {
    const uint64_t total = known ? known : weigh_row(row, chunks, weight, everything, chunk_maximum, scratch, team);
    const LogProbability<Row, std::decay_t<decltype(weight)>> log_probability(row, weight, everything, total);
    if (details.raw_logprobs.data)
      for (int64_t i = 0; i < draws.count; ++i)
        details.raw_logprobs.data[i * details.raw_logprobs.stride] =
            log_probability(draws.tokens[i * draws.tokens_stride]);
    if (details.has_top(false))
      write_top(row, chunks, chunk_maximum, weight, largest.value, log_probability, details, scratch);
  });
}

}  // namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET
