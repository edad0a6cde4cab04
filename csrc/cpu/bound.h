// Step bound: a logit below which nothing can be kept, found without looking at most tokens.
#pragma once

#include "weigh.h"

namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET {

// A value between two others, or one of them when they are neighbours. Halfway by value, ordinary rows end after a few
// steps; every other step is halfway by bit pattern, so that no row takes more than 64.
inline float between(float low, float high, int step) {
  const float middle = low * 0.5f + high * 0.5f;
  if (step % 2 == 0 && middle > low && middle < high) return middle;
  const int64_t low_key = order_key(low), high_key = order_key(high);
  return order_key_float(static_cast<int32_t>(low_key + (high_key - low_key) / 2));
}

inline int64_t count_reaching(const ContiguousRow<float>& values, float least) {
  const F bound = Simd::set(least);
  int64_t count = 0;
  for_each_vector(values, 0, values.size, [&](F x, int64_t) { count += Simd::count(Simd::greater_equal(x, bound)); });
  return count;
}

// A value that at least k of the given tokens reach, and few more (one in eight: another halving costs more than it
// saves); -FLT_MAX where fewer than k can be kept. Of the chunk maxima it is a lower bound of the k-th largest logit.
inline float value_reached_by(const float* values, int64_t count, int64_t k, float most) {
  const ContiguousRow<float> all{values, count};
  const F infinite = Simd::set(-kInfinity);
  F least = Simd::set(most);
  for_each_vector(all, 0, count,
                  [&](F x, int64_t) { least = Simd::min(Simd::select(Simd::greater(x, infinite), x, least), least); });
  const float low_finite = Simd::horizontal_min(least);
  float low = low_finite > -kFloatMax ? low_finite : -kFloatMax;
  if (count_reaching(all, low) < k) return -kFloatMax;
  if (count_reaching(all, most) >= k) return most;
  float high = most;
  const int64_t enough = k + k / 8 + 2;
  for (int step = 0;; ++step) {
    const float middle = between(low, high, step);
    if (!(middle > low && middle < high)) return low;
    const int64_t reaching = count_reaching(all, middle);
    if (reaching < k) {
      high = middle;
    } else {
      low = middle;
      if (reaching <= enough) return low;
    }
  }
}

// A sample of a row, to guess a bracket by. Groups of four neighbours, one at a random place in each of equal strata:
// neighbours cost one load, strata cover rows that drift, random places rows with a period.
struct Sample {
  ContiguousRow<float> logit;
  ContiguousRow<float> weight;
  double tokens_each;  // tokens of the row that one token of the sample stands for
};

// For rows of at least kShortRow tokens. One token in 32 bracketed the cut of an
// N(0,1) row of 128256 at top_p .9 within 7 % of its tokens.
constexpr int64_t kShortRow = 8192;

template <class Row>
inline Sample take_sample(const Row& row, RowScratch& scratch) {
  constexpr int64_t kGroup = 4;
  const int64_t wanted = row.size / 32 < kSampleCapacity ? row.size / 32 : kSampleCapacity;
  const int64_t groups = (wanted > 1024 ? wanted : 1024) / kGroup;
  const int64_t stratum = row.size / groups;
  uint32_t state = 0x9E3779B9u;
  float* logit = scratch.sample_logit;
  for (int64_t group = 0; group < groups; ++group) {
    state = state * 1664525u + 1013904223u;
    const int64_t at = group * stratum + (static_cast<int64_t>(state >> 8) * (stratum - kGroup + 1) >> 24);
    const int64_t last = row.size - kWidth;
    Simd::store(logit + group * kGroup, row.load(at < last ? at : last));
  }
  const int64_t size = groups * kGroup;
  return {{logit, size}, {scratch.sample_weight, size}, static_cast<double>(row.size) / static_cast<double>(size)};
}

// Weighs the sample's members of a base set.
template <class Weight>
inline void weigh_sample(const Sample& sample, Cut base, const Weight& weight, RowScratch& scratch) {
  const F least = Simd::set(base.logit);
  for_each_vector(sample.logit, 0, sample.logit.size, [&](F x, int64_t i) {
    const F weights = Simd::select(Simd::greater_equal(x, least), weight.product(x), Simd::set(0.0f));
    Simd::store(scratch.sample_weight + i, weights);
  });
}

// The mass of a row's tokens below a logit, and its standard deviation, as the sample tells.
struct Estimated {
  double mass;
  double deviation;
};

// Eight questions in one sweep: their sums do not wait for each other, as the sums of one question would.
constexpr int kPivots = 8;

inline void masses_below(const Sample& sample, const float (&pivot)[kPivots], Estimated (&estimated)[kPivots]) {
  F bound[kPivots], sum[kPivots], squares[kPivots];
  for (int i = 0; i < kPivots; ++i) {
    bound[i] = Simd::set(pivot[i]);
    sum[i] = squares[i] = Simd::set(0.0f);
  }
  for_each_vector(sample.logit, 0, sample.logit.size, [&](F x, int64_t at) {
    const F w = sample.weight.load(at);
    const F square = Simd::mul(w, w);
    for (int i = 0; i < kPivots; ++i) {
      const M below = Simd::greater(bound[i], x);
      sum[i] = Simd::add_where(below, sum[i], w);
      squares[i] = Simd::add_where(below, squares[i], square);
    }
  });
  for (int i = 0; i < kPivots; ++i)
    estimated[i] = {Simd::horizontal_sum(sum[i]) * sample.tokens_each,
                    __builtin_sqrt(Simd::horizontal_sum(squares[i])) * sample.tokens_each};
}

inline Estimated mass_below(const Sample& sample, float logit) {
  const F bound = Simd::set(logit);
  F sum = Simd::set(0.0f), squares = sum;
  for_each_vector(sample.logit, 0, sample.logit.size, [&](F x, int64_t at) {
    const F w = sample.weight.load(at);
    const M below = Simd::greater(bound, x);
    sum = Simd::add_where(below, sum, w);
    squares = Simd::add_where(below, squares, Simd::mul(w, w));
  });
  return {Simd::horizontal_sum(sum) * sample.tokens_each,
          __builtin_sqrt(Simd::horizontal_sum(squares)) * sample.tokens_each};
}

// The smallest and the largest logit between which the cut of a top_p prefix is expected.
struct Bracket {
  float low;
  float high;  // +inf: expect it anywhere above `low`
};

// What is known exactly about a row's largest tokens, the mass of all that reach a logit, and what the sample says of
// the rest.
struct Head {
  uint64_t mass;
  float logit;
  Estimated rest;
};

// The cut leaves at most (1 - top_p) Z below itself. That tail is what the sample estimates well, even where the mass
// sits in a few tokens that no sample meets: tail weights are bounded by the weight at the cut, and Z leans on the
// exactly known head.
inline Bracket bracket_of_tail(const Sample& sample, float top_p, Head head, double deviations) {
  const F none = Simd::set(0.0f), infinity = Simd::set(kInfinity);
  F least = infinity, most = Simd::set(-kInfinity);
  for_each_vector(sample.logit, 0, sample.logit.size, [&](F x, int64_t at) {
    const M counts = Simd::greater(sample.weight.load(at), none);
    least = Simd::min(Simd::select(counts, x, infinity), least);
    most = Simd::max(x, most);
  });
  const float low = Simd::horizontal_min(least), high = next_above(Simd::horizontal_max(most));
  if (!(low < high)) return {-kFloatMax, kInfinity};

  const Estimated all = mass_below(sample, high);
  const double known = static_cast<double>(head.mass), total = known + head.rest.mass;
  const double margin = deviations * head.rest.deviation;
  const double tail_share = 1.0 - static_cast<double>(top_p);
  const double tail_low = tail_share * (total - margin > known ? total - margin : known);
  const double tail_high = tail_share * (total + margin);
  const bool open = !(all.mass - deviations * all.deviation > tail_high);

  // Both ends at once, by fifths: five sweeps resolve the 40 octaves that have any weight to 1/75 octave.
  float fits = low, exceeds = high;  // the cut is above `fits`
  float under = low, over = high;    // and below `over`
  for (int sweep = 0; sweep < 5; ++sweep) {
    float pivot[kPivots];
    Estimated tail[kPivots];
    for (int i = 0; i < 4; ++i) {
      const float share = static_cast<float>(i + 1) * 0.2f;
      pivot[i] = fits * (1.0f - share) + exceeds * share;  // a difference could overflow
      pivot[i + 4] = under * (1.0f - share) + over * share;
    }
    masses_below(sample, pivot, tail);
    for (int i = 3; i >= 0; --i)
      if (tail[i].mass + deviations * tail[i].deviation > tail_low) exceeds = pivot[i];
    for (int i = 0; i < 4; ++i)
      if (pivot[i] < exceeds) fits = pivot[i];
    for (int i = 4; i < 8; ++i)
      if (!(tail[i].mass - deviations * tail[i].deviation > tail_high)) under = pivot[i];
    for (int i = 7; i >= 4; --i)
      if (pivot[i] > under) over = pivot[i];
  }
  // Snapped to tokens of the sample, a bracket around a value that many tokens share becomes that value alone.
  const F from = Simd::set(fits), to = Simd::set(over);
  F first = infinity, last = Simd::set(-kInfinity);
  for_each_vector(sample.logit, 0, sample.logit.size, [&](F x, int64_t) {
    first = Simd::min(Simd::select(Simd::greater_equal(x, from), x, infinity), first);
    last = Simd::max(Simd::select(Simd::greater(to, x), x, last), last);
  });
  const float snapped_low = Simd::horizontal_min(first), snapped_high = Simd::horizontal_max(last);
  if (open) return {snapped_low < kInfinity ? snapped_low : fits, kInfinity};
  return snapped_low <= snapped_high ? Bracket{snapped_low, snapped_high} : Bracket{fits, over};
}

}  // namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET
