// Step cut: where a prefix of the ranking first reaches a count (top_k) or a mass (top_p), exactly, in a row of any
// kind.
#pragma once

#include "histogram.cuh"

namespace fastsample::cuda {

// Neighbouring tokens of the ranking, from logit to logit, as ranks; what lies above them measures `above`.
struct Bracket {
  uint32_t low;
  uint32_t high;
  uint64_t above;
};

template <class Row>
struct Cutting {
  const Sweeps<Row>& sweeps;
  const Histogram& histogram;
  Measure measure;
  Cut base;         // what is cut
  uint64_t target;  // how much to keep

  // The shortest prefix of the base set's ranking that measures at least `target`, or all of it where it measures less.
  // It ends at or above `least`. `share` is what part of the base set's measure the target is, roughly. The same in
  // every thread.
  __device__ __forceinline__ Cut cut(float least, float share) const {
    const Bracket whole{rank_of(least > base.logit ? least : base.logit), rank_of(sweeps.weight.most), 0};
    Bracket bracket = whole;
    bool guessed = least == -kFloatMax && guess(share, bracket);
    for (;;) {  // eight bits of the bit pattern a round, until one value or a short list remains
      if (bracket.low == bracket.high) return cut_ties(bracket);
      const uint32_t bits = 32 - static_cast<uint32_t>(__clz(static_cast<int>(bracket.high - bracket.low)));
      const uint32_t shift = bits > kBucketBits ? bits - kBucketBits : 0;
      histogram.fill(sweeps, measure, base, value_of_rank(bracket.low), 1, [&](float x) {
        const uint32_t rank = rank_of(x);
        return rank < bracket.low || rank > bracket.high ? kBuckets : (rank - bracket.low) >> shift;
      });
      const uint32_t bucket = histogram.choose(sweeps.group, target, bracket.above);
      if (bucket == kBuckets) {
        if (!guessed) return base;
        bracket = whole;  // a wrong guess costs one sweep
      } else {
        bracket.low += bucket << shift;
        const uint32_t span = (1u << shift) - 1;
        if (bracket.high - bracket.low > span) bracket.high = bracket.low + span;
        if (bracket.low < bracket.high && histogram.merged_count[bucket] <= kListSize) return cut_list(bracket);
      }
      guessed = false;
    }
  }

 private:
  // Guesses a bracket from every eighth vector. Buckets of equal width in the logit spread a row over many of them,
  // where those of the bit pattern would put nearly all of N(0,1) into a dozen: atomics of lanes with the same bucket
  // wait for each other. False where there is nothing to guess from.
  __device__ __forceinline__ bool guess(float share, Bracket& bracket) const {
    constexpr uint32_t kStep = 8;
    constexpr float kPerOctave = kBuckets / -kLowestExponent;
    const Weight& weight = sweeps.weight;
    if (weight.kind != Weight::Kind::kLogits || !(weight.scale0 > 0) || sweeps.row.vectors < kStep) return false;
    histogram.fill(sweeps, measure, base, -kFloatMax, kStep, [&](float x) {
      const float distance = fminf(-weight.exponent(x) * kPerOctave, kBuckets - 1);
      return kBuckets - 1 - static_cast<uint32_t>(distance);
    });
    // The standard error of a share p of the mass of n independent N(0,1) is sqrt(e p (1 - p) / n): .4 % for n = 16000,
    // p = .9. A wrong guess costs one sweep.
    const uint64_t sampled = histogram.total(sweeps.group);
    const uint64_t expected = static_cast<uint64_t>(static_cast<float>(sampled) * share);
    const uint64_t slack = measure == Measure::kMass ? sampled / 64 : expected / 8 + 64;
    uint64_t ignored = 0;
    const uint32_t highest =
        expected > slack ? histogram.choose(sweeps.group, expected - slack, ignored) : kBuckets - 1;
    ignored = 0;
    const uint32_t lowest = histogram.choose(sweeps.group, expected + slack, ignored);
    const float width = 1.0f / (kPerOctave * weight.scale0);
    const float high = weight.most - static_cast<float>(kBuckets - 1 - highest) * width;
    const float low = weight.most - static_cast<float>(kBuckets - lowest) * width;
    if (highest < kBuckets && high < weight.most) bracket.high = rank_of(high);
    if (lowest > 0 && lowest < kBuckets && low > value_of_rank(bracket.low)) bracket.low = rank_of(low);
    if (bracket.low < bracket.high) {
      const Cut higher = tighter(base, {value_of_rank(bracket.high), 0});
      bracket.above = sweeps.group.sum(sweeps.lane_measure(measure, higher));
      if (bracket.above < target) return true;
    }
    bracket = {rank_of(base.logit), rank_of(weight.most), 0};
    return false;
  }

  __device__ __forceinline__ Cut cut_ties(const Bracket& bracket) const {
    const float value = value_of_rank(bracket.low);
    const uint64_t each = measure == Measure::kMass ? sweeps.weight(value) : 1;
    return {value, sweeps.end_of_ties(base, value, (target - bracket.above + each - 1) / each)};
  }

  __device__ __forceinline__ Cut cut_list(const Bracket& bracket) const {
    Group& group = sweeps.group;
    const List& list = sweeps.list;
    const uint64_t wanted = target - bracket.above;
    const uint32_t size =
        gather(group, sweeps.row, sweeps.reach, base, value_of_rank(bracket.low), value_of_rank(bracket.high), list);
    uint64_t found = 0;
    if (group.leads()) {
      rank_list(group, sweeps.weight, size, list);
#pragma unroll 1
      for (uint32_t i = group.thread(); i < size; i += group.threads()) {
        const uint64_t before = measure == Measure::kMass ? list.mass_before[i] : list.count_before[i];
        const uint64_t measured = measure == Measure::kMass ? list.weight[i] : 1;
        if (before < wanted && wanted <= before + measured) found = list.place[i];
      }
    }
    found = group.tell(found);
    return {logit_of(found), index_of(found) + 1};
  }
};

}  // namespace fastsample::cuda
