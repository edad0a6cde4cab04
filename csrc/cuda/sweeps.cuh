// A row with what its steps share, and the sweeps over it that they have in common.
#pragma once

#include "gather.cuh"

namespace fastsample::cuda {

enum class Measure : uint32_t { kCount, kMass };

template <class Row>
struct Sweeps {
  static constexpr int kTokens = Row::kTokens;

  Group& group;
  const Row& row;
  const Weight& weight;
  float reach;  // at least the largest of the lane's tokens
  List list;

  // This lane's share of what the tokens that a cut keeps measure.
  __device__ __forceinline__ uint64_t lane_measure(Measure measure, Cut cut) const {
    uint64_t sum = 0;
    if (!(reach >= cut.logit)) return 0;
    const bool all = measure == Measure::kMass && cut.logit == -kFloatMax && cut.end == everything().end;
    row.sweep([&](const float (&x)[kTokens], uint32_t index) {
      if (all) {  // -inf weighs nothing
        sum += weight.sum(x, [](int) { return true; });
        return;
      }
      uint32_t kept = 0;
#pragma unroll
      for (int i = 0; i < kTokens; ++i) kept += cut.keeps(x[i], index + i);
      if (measure == Measure::kCount)
        sum += kept;
      else if (kept)
        sum += weight.sum(x, [&](int i) { return cut.keeps(x[i], index + i); });
    });
    return sum;
  }

  __device__ __forceinline__ uint64_t mass(Cut cut) const { return group.sum(lane_measure(Measure::kMass, cut)); }

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
      // Measured anew, once a draw: to keep what the lane measured would take 16 registers with 16-bit logits.
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

  // The index after the `needed`-th token equal to `value` in the base set, or the base set's end where there are
  // fewer; in every thread.
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
    if (group.sum(ties, before) < needed) return base.end;
    uint64_t end = 0;
    if (before < needed && needed <= before + of_warp) {
      uint64_t measured;
      end = locate(needed - before - 1, tie, measured) + 1;
    }
    return static_cast<uint32_t>(group.tell(group.lane == 0 ? end : 0));
  }
};

}  // namespace fastsample::cuda
