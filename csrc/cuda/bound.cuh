// Step bound: a logit from which on the kept tokens can be looked for.
#pragma once

#include "maximum.cuh"
#include "weigh.cuh"

namespace fastsample::cuda {

// A logit above -inf that at least `wanted` tokens reach, or else all that are above -inf: at or a little below the
// largest but `wanted` - 1 of maxima (ranks) of disjoint parts. By one warp: when all took part, in
// 22 rounds with a barrier each, that was 22 of the 51 instructions a token of a top-k row (counted in PTX).
__device__ __forceinline__ float bound_of_count(const uint32_t* maxima, uint32_t count, uint32_t largest,
                                                uint32_t wanted, uint32_t lane) {
  const uint32_t enough = wanted + wanted / 8 + 8;
  uint32_t low = rank_of(-kFloatMax), high = largest + 1;  // enough maxima reach low, if any logit, and not high
  uint32_t reach = count;
  const auto halve = [&](const auto& reaching) {
    while (high - low > 1 && reach > enough) {
      const uint32_t middle = low + (high - low) / 2, all = warp_count(reaching(middle));
      if (all >= wanted) {
        low = middle;
        reach = all;
      } else {
        high = middle;
      }
    }
  };
  if (count <= kFewMaxima) {
    constexpr uint32_t kEach = kFewMaxima / 32;
    uint32_t mine[kEach];
#pragma unroll
    for (uint32_t i = 0; i < kEach; ++i) mine[i] = i * 32 + lane < count ? maxima[i * 32 + lane] : 0;
    // Where every lane has t maxima that reach a logit, 32 t do: that narrows the search to a few rounds.
    uint32_t least = 0xFFFFFFFFu;
#pragma unroll 1
    for (uint32_t found = 0; found < wanted; found += 32) {
      uint32_t next = 0;
#pragma unroll
      for (uint32_t i = 0; i < kEach; ++i) next = mine[i] < least && mine[i] > next ? mine[i] : next;
      least = next;
    }
    least = warp_minimum(least);
    low = least > low ? least : low;
    halve([&](uint32_t middle) {
      uint32_t reaching[4] = {};  // four sums, since one would be a chain of 16 additions
#pragma unroll
      for (uint32_t i = 0; i < kEach; ++i) reaching[i % 4] += mine[i] >= middle;
      return reaching[0] + reaching[1] + reaching[2] + reaching[3];
    });
  } else {
    halve([&](uint32_t middle) {
      uint32_t reaching = 0;
      for (uint32_t i = lane; i < count; i += 32) reaching += maxima[i] >= middle;
      return reaching;
    });
  }
  return value_of_rank(low);
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
