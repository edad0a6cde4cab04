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

// A lower bound of the k-th largest logit: a value that at least k chunk maxima reach, and few more. Each of those
// maxima is a token, so k tokens reach the bound. -FLT_MAX where fewer than k chunks hold a token that can be kept.
inline float bound_of_chunk_maxima(const float* chunk_maximum, int64_t count, int64_t k, float most) {
  const ContiguousRow<float> maxima{chunk_maximum, count};
  float low = most;
  for (int64_t chunk = 0; chunk < count; ++chunk) low = chunk_maximum[chunk] < low ? chunk_maximum[chunk] : low;
  low = low > -kFloatMax ? low : -kFloatMax;
  if (count_reaching(maxima, low) < k) return -kFloatMax;
  if (count_reaching(maxima, most) >= k) return most;
  float high = most;
  const int64_t enough = k + k / 8 + 2;
  for (int step = 0;; ++step) {
    const float middle = between(low, high, step);
    if (!(middle > low && middle < high)) return low;
    const int64_t reaching = count_reaching(maxima, middle);
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

template <class Row, class Estimate>
inline Sample take_sample(const Row& row, Cut base, const Estimate& estimate, RowScratch& scratch) {
  constexpr int64_t kGroup = 4;
  const int64_t wanted = row.size / 32 < kSampleCapacity ? row.size / 32 : kSampleCapacity;
  const int64_t groups = (wanted > 1024 ? wanted : 1024) / kGroup;
  const int64_t stratum = row.size / groups;
  uint32_t state = 0x9E3779B9u;
  float* logit = scratch.sample_logit;
  for (int64_t group = 0; group < groups; ++group) {
    state = state * 1664525u + 1013904223u;
    int64_t at = group * row.size / groups + (static_cast<int64_t>(state >> 8) * (stratum - kGroup + 1) >> 24);
    at = at < row.size - kWidth ? at : row.size - kWidth;
    Simd::store(logit + group * kGroup, row.load(at));
  }
  const int64_t size = groups * kGroup;
  const ContiguousRow<float> logits{logit, size};
  const F least = Simd::set(base.logit);
  for_each_vector(logits, 0, size, [&](F x, int64_t i) {
    const F weights = Simd::select(Simd::greater_equal(x, least), estimate(x), Simd::set(0.0f));
    Simd::store(scratch.sample_weight + i, weights);
  });
  return {logits, {scratch.sample_weight, size}, static_cast<double>(row.size) / static_cast<double>(size)};
}

struct Estimated {
  double mass;
  double deviation;
};

// The mass of a row's tokens below a logit, and its standard deviation, as the sample tells.
inline Estimated mass_below(const Sample& sample, float logit) {
  const F bound = Simd::set(logit), none = Simd::set(0.0f);
  F sum = none, squares = none;
  for_each_vector(sample.logit, 0, sample.logit.size, [&](F x, int64_t i) {
    const F w = Simd::select(Simd::greater(bound, x), sample.weight.load(i), none);
    sum = Simd::add(sum, w);
    squares = Simd::add(squares, Simd::mul(w, w));
  });
  return {Simd::horizontal_sum(sum) * sample.tokens_each,
          __builtin_sqrt(Simd::horizontal_sum(squares)) * sample.tokens_each};
}

// The smallest and the largest logits between which the cut of a top_p prefix is expected.
struct Bracket {
  float low;
  float high;  // +inf: expect it anywhere above `low`
};

// The cut leaves at most (1 - top_p) Z below itself. That tail is what the sample estimates well, even where the mass
// sits in a few tokens that no sample meets: tail weights are bounded by the weight at the cut, and Z leans on the
// exactly known `head`, the mass of all tokens at or above `head_logit`.
inline Bracket bracket_of_tail(const Sample& sample, float top_p, uint64_t head, float head_logit, double deviations) {
  float low = kInfinity, high = -kInfinity;
  for (int64_t i = 0; i < sample.logit.size; ++i) {
    if (!(sample.weight.data[i] > 0)) continue;
    low = sample.logit.data[i] < low ? sample.logit.data[i] : low;
    high = sample.logit.data[i] > high ? sample.logit.data[i] : high;
  }
  if (low > high) return {-kFloatMax, kInfinity};
  const Estimated below_head = mass_below(sample, head_logit);
  const double total = static_cast<double>(head) + below_head.mass;
  const double margin = deviations * below_head.deviation;
  const double least_total = total - margin > static_cast<double>(head) ? total - margin : static_cast<double>(head);
  const double tail_low = (1.0 - static_cast<double>(top_p)) * least_total;
  const double tail_high = (1.0 - static_cast<double>(top_p)) * (total + margin);

  // Eleven halvings resolve the 40 octaves that have any weight to 1/50 octave.
  constexpr int kSteps = 11;
  float fits = low, exceeds = next_above(high);
  for (int step = 0; step < kSteps; ++step) {
    const float middle = fits * 0.5f + exceeds * 0.5f;
    const Estimated tail = mass_below(sample, middle);
    (tail.mass + deviations * tail.deviation <= tail_low ? fits : exceeds) = middle;
  }
  float under = fits, over = next_above(high);
  const Estimated all = mass_below(sample, over);
  const bool open = !(all.mass - deviations * all.deviation > tail_high);
  for (int step = 0; step < kSteps && !open; ++step) {
    const float middle = under * 0.5f + over * 0.5f;
    const Estimated tail = mass_below(sample, middle);
    (tail.mass - deviations * tail.deviation > tail_high ? over : under) = middle;
  }
  // Snapped to tokens of the sample, a bracket around a value that many tokens share becomes that value alone.
  Bracket bracket{kInfinity, open ? kInfinity : -kInfinity};
  for (int64_t i = 0; i < sample.logit.size; ++i) {
    const float x = sample.logit.data[i];
    if (x >= fits && x < bracket.low) bracket.low = x;
    if (!open && x < over && x > bracket.high) bracket.high = x;
  }
  return bracket.low <= bracket.high ? bracket : Bracket{fits, kInfinity};
}

}  // namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET
