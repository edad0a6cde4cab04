// Step cut: where a prefix of the ranking first reaches a count (top_k) or a mass (top_p), exactly, in a row of any
// kind.
#pragma once

#include "gather.cuh"

namespace fastsample::cuda {

enum class Measure : uint32_t { kCount, kMass };

constexpr uint32_t kBucketBits = 8;
constexpr uint32_t kBuckets = 1 << kBucketBits;

struct Histogram {
  uint32_t* count;         // [kBuckets]
  uint64_t* mass;          // [kBuckets]
  uint32_t* merged_count;  // [kBuckets]: of all blocks
  uint64_t* merged_mass;   // [kBuckets]
};

// The row with what its steps share.
template <class Row>
struct Sweeps {
  static constexpr int kTokens = Row::kTokens;

  Group& group;
  const Row& row;
  const Weight& weight;
  float reach;  // at least the largest of the lane's tokens
  List list;
  Histogram histogram;

  // This lane's share of what a base set weighs.
  __device__ __forceinline__ uint64_t lane_mass(Cut base) const {
    uint64_t sum = 0;
    if (!(reach >= base.logit)) return 0;
    const bool all = base.logit == -kFloatMax && base.end == everything().end;
    row.sweep([&](const float (&x)[kTokens], uint32_t index) {
      if (all) {  // -inf weighs nothing
        sum += weight.sum(x, [](int) { return true; });
        return;
      }
      bool any = false;
#pragma unroll
      for (int i = 0; i < kTokens; ++i) any |= x[i] >= base.logit;
      if (any) sum += weight.sum(x, [&](int i) { return base.keeps(x[i], index + i); });
    });
    return sum;
  }

  __device__ __forceinline__ uint64_t mass(Cut base) const { return group.sum(lane_mass(base)); }

  // In the warp whose tokens measure more than `target`: the token at which their running sum passes it, and what that
  // token measures.
  template <class MeasureOf>
  __device__ __forceinline__ uint32_t locate(uint64_t target, const MeasureOf& measure_of, uint64_t& measured) const {
#pragma unroll 1
    for (uint32_t v = 0; v < row.vectors; ++v) {
      float x[kTokens];
      row.vector(v, x);
      const uint32_t index = row.index(v);
      uint64_t sum = 0;
#pragma unroll
      for (int i = 0; i < kTokens; ++i) sum += measure_of(x[i], index + i);
      const uint64_t running = warp_scan(sum, group.lane);
      const uint64_t all = __shfl_sync(kAllLanes, running, 31);
      if (target >= all) {
        target -= all;
        continue;
      }
      // Measured anew, once a draw: to keep what the lane measured would take 16 registers that 64 do not have.
      const int passes = __ffs(static_cast<int>(__ballot_sync(kAllLanes, running > target))) - 1;
      uint64_t rest = target - (running - sum);
      uint32_t token = index;
#pragma unroll
      for (int i = 0; i < kTokens; ++i) {
        if (token != index + i) continue;
        measured = measure_of(x[i], index + i);
        if (rest < measured) continue;
        rest -= measured;
        ++token;
      }
      measured = __shfl_sync(kAllLanes, measured, passes);
      return __shfl_sync(kAllLanes, token, passes);
    }
    return 0;
  }

  // The index after the `needed`-th token equal to `value` in the base set, in every thread.
  __device__ __forceinline__ uint32_t end_of_ties(Cut base, float value, uint64_t needed) const {
    const auto tie = [&](float x, uint32_t index) -> uint64_t { return x == value && base.keeps(x, index); };
    uint64_t ties = 0;
    if (reach >= value)
      row.sweep([&](const float (&x)[kTokens], uint32_t index) {
#pragma unroll
        for (int i = 0; i < kTokens; ++i) ties += tie(x[i], index + i);
      });
    const uint64_t of_warp = warp_sum(ties);
    uint64_t before;
    group.sum(ties, before);
    uint64_t end = 0;
    if (before < needed && needed <= before + of_warp) {
      uint64_t measured;
      end = locate(needed - before - 1, tie, measured) + 1;
    }
    return static_cast<uint32_t>(group.tell(group.lane == 0 ? end : 0));
  }

  // One round: sums what lies between two logits into buckets of their ordered bit patterns. Every block gets all sums.
  __device__ __forceinline__ void make_histogram(Measure measure, Cut base, uint32_t low, uint32_t high,
                                                 uint32_t shift) const {
#pragma unroll 1
    for (uint32_t bucket = group.thread(); bucket < kBuckets; bucket += group.threads()) {
      histogram.count[bucket] = 0;
      histogram.mass[bucket] = 0;
    }
    __syncthreads();
    if (reach >= value_of_rank(low))
      row.sweep([&](const float (&x)[kTokens], uint32_t index) {
#pragma unroll
        for (int i = 0; i < kTokens; ++i) {
          const uint32_t rank = rank_of(x[i]);
          if (rank < low || rank > high || !base.keeps(x[i], index + i)) continue;
          const uint32_t bucket = (rank - low) >> shift;
          atomicAdd(histogram.count + bucket, 1u);
          if (measure == Measure::kMass)
            atomicAdd(reinterpret_cast<unsigned long long*>(histogram.mass + bucket),
                      static_cast<unsigned long long>(weight(x[i])));
        }
      });
    group.sync();
#pragma unroll 1
    for (uint32_t bucket = group.thread(); bucket < kBuckets; bucket += group.threads()) {
      uint64_t mass = 0;
      uint32_t count = 0;
      for (uint32_t block = 0; block < group.blocks; ++block) {
        count += *group.in_block(histogram.count + bucket, block);
        if (measure == Measure::kMass) mass += *group.in_block(histogram.mass + bucket, block);
      }
      histogram.merged_count[bucket] = count;
      histogram.merged_mass[bucket] = measure == Measure::kMass ? mass : count;
    }
    group.sync();
  }

  // The bucket, from the top, in which the running sum reaches `target`; adds what lies above it to `above`. kBuckets
  // where all of them together do not. Each warp for itself.
  __device__ __forceinline__ uint32_t choose_bucket(uint64_t target, uint64_t& above) const {
    constexpr uint32_t kPerLane = kBuckets / 32;
    const uint32_t highest = kBuckets - 1 - group.lane * kPerLane;
    uint64_t sum = 0;
#pragma unroll 1
    for (uint32_t i = 0; i < kPerLane; ++i) sum += histogram.merged_mass[highest - i];
    const uint64_t running = above + warp_scan(sum, group.lane);
    const uint32_t reached = __ballot_sync(kAllLanes, running >= target);
    if (reached == 0) return kBuckets;
    uint64_t before = running - sum;
    uint32_t bucket = highest;
#pragma unroll 1
    for (uint32_t i = 0; i + 1 < kPerLane; ++i) {
      const uint64_t next = before + histogram.merged_mass[bucket];
      if (next >= target) break;
      before = next;
      --bucket;
    }
    const int lane = __ffs(static_cast<int>(reached)) - 1;
    above = __shfl_sync(kAllLanes, before, lane);
    return __shfl_sync(kAllLanes, bucket, lane);
  }

  // The shortest prefix of the base set's ranking that measures at least `target`, if it ends at or below `high` and at
  // or above `low`: histograms, eight bits of the bit pattern a round, until one value or a short list remains. All of
  // the base set where it measures less. The same in every thread.
  __device__ Cut cut_row(Measure measure, Cut base, float least, float most, uint64_t target) const {
    uint32_t low = rank_of(least > base.logit ? least : base.logit), high = rank_of(most);
    uint64_t above = 0;
    for (;;) {
      if (low == high) {
        const float value = value_of_rank(low);
        const uint64_t each = measure == Measure::kMass ? weight(value) : 1;
        return {value, end_of_ties(base, value, (target - above + each - 1) / each)};
      }
      const uint32_t bits = 32 - static_cast<uint32_t>(__clz(static_cast<int>(high - low)));
      const uint32_t shift = bits > kBucketBits ? bits - kBucketBits : 0;
      make_histogram(measure, base, low, high, shift);
      const uint32_t bucket = choose_bucket(target, above);
      if (bucket == kBuckets) return base;
      const uint32_t count = histogram.merged_count[bucket];
      low += bucket << shift;
      const uint32_t span = (1u << shift) - 1;
      if (high - low > span) high = low + span;
      if (low < high && count <= kListSize) return cut_list(measure, base, low, high, target - above);
    }
  }

 private:
  __device__ __forceinline__ Cut cut_list(Measure measure, Cut base, uint32_t low, uint32_t high,
                                          uint64_t target) const {
    const uint32_t size = gather(group, row, reach, base, value_of_rank(low), value_of_rank(high), list);
    uint64_t found = 0;
    if (group.leads()) {
      rank_list(group, weight, size, list);
#pragma unroll 1
      for (uint32_t i = group.thread(); i < size; i += group.threads()) {
        const uint64_t before = measure == Measure::kMass ? list.mass_before[i] : list.count_before[i];
        const uint64_t measured = measure == Measure::kMass ? list.weight[i] : 1;
        if (before < target && target <= before + measured) found = list.place[i];
      }
    }
    found = group.tell(found);
    return {logit_of(found), index_of(found) + 1};
  }
};

}  // namespace fastsample::cuda
