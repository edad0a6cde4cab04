// Step bound: a logit from which on the kept tokens can be looked for.
#pragma once

#include "group.cuh"
#include "weigh.cuh"

namespace fastsample::cuda {

// The order of floats as an order of unsigned integers.
__device__ __forceinline__ uint32_t rank_of(float x) {
  return static_cast<uint32_t>(order_key(x)) ^ 0x80000000u;
}
__device__ __forceinline__ float value_of_rank(uint32_t rank) {
  return order_key_float(static_cast<int32_t>(rank ^ 0x80000000u));
}

// A logit above -inf that at least k tokens reach, or else all that are above -inf: just below the k-th largest of
// maxima of disjoint parts. Found bit by bit from the top; the lowest 10 bits are left 0, since a bound may be low.
__device__ __forceinline__ float bound_of_count(const Group& group, const float* maxima, uint32_t count, int64_t k) {
  constexpr int kLowestBit = 10;
  uint32_t bound = 0;
#pragma unroll 1
  for (int bit = 31; bit >= kLowestBit; --bit) {
    const uint32_t higher = bound | (1u << bit);
    int64_t reach = 0;
#pragma unroll 1
    for (uint32_t begin = 0; begin < count; begin += group.threads()) {
      const uint32_t i = begin + group.thread();
      reach += __syncthreads_count(i < count && rank_of(maxima[i]) >= higher);
    }
    if (reach >= k) bound = higher;
  }
  const uint32_t lowest = rank_of(-kFloatMax);
  return value_of_rank(bound > lowest ? bound : lowest);
}

// The smallest logit whose weight reaches `least`. Weights never decrease with the logit, so a warp finds it among 2^32
// bit patterns in seven rounds of 32 guesses.
__device__ __forceinline__ float bound_of_weight(const Weight& weight, uint64_t least, uint32_t lane) {
  uint32_t below = rank_of(-kInfinity), reaches = rank_of(weight.most);
  while (reaches - below > 1) {
    const uint32_t span = reaches - below, step = (span + 31) / 32;
    const uint64_t offset = static_cast<uint64_t>(step) * (lane + 1);
    const bool inside = offset < span;
    const bool enough = !inside || weight(value_of_rank(below + static_cast<uint32_t>(offset))) >= least;
    const uint32_t first = static_cast<uint32_t>(__ffs(static_cast<int>(__ballot_sync(kAllLanes, enough)))) - 1;
    const uint64_t end = static_cast<uint64_t>(step) * (first + 1);
    if (end < span) reaches = below + static_cast<uint32_t>(end);
    below += step * first;
  }
  return value_of_rank(reaches);
}

}  // namespace fastsample::cuda
