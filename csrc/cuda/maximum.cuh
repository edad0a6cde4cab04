// Step maximum: the row's largest token, whether the row is valid, and many tokens that are large, for the step bound.
#pragma once

#include "group.cuh"
#include "load.cuh"
#include "order.cuh"

namespace fastsample::cuda {

// The maxima of disjoint parts of the row, the same in every block: k of them bound the k-th largest token from below.
constexpr uint32_t kMaxima = 2048;
constexpr uint32_t kFewMaxima = kMaxThreads;  // one for each thread of a block, where that is enough

// The largest of a lane's tokens; a positive NaN if one of them, or a negative probability, makes the row invalid.
template <class Row>
__device__ __forceinline__ float load_and_maximum(Row& row, bool probabilities) {
  constexpr int kTokens = Row::kTokens;
  float largest = -kInfinity;
  bool negative = false;
  row.load([&](const float (&x)[kTokens], uint32_t index) {
#pragma unroll
    for (int i = 0; i < kTokens; ++i) largest = maximum_or_nan(largest, x[i]);
    if (probabilities) {
#pragma unroll
      for (int i = 0; i < kTokens; ++i) negative |= x[i] < 0 && index + i < row.vocab;
    }
  });
  return negative || largest != largest ? __uint_as_float(0x7FC00000u) : largest;
}

// Shares the threads' maxima with every block, as ranks, those of groups of lanes so wide that no more than `limit`
// remain. Returns how many.
__device__ __forceinline__ uint32_t share_maxima(Group& group, float largest, uint32_t limit, uint32_t* maxima) {
  uint32_t rank = rank_of(largest);  // a positive NaN ranks above +inf
  uint32_t width = 1;
  while (width < 32 && group.blocks * group.threads() / width > limit) {
    const uint32_t other = __shfl_xor_sync(kAllLanes, rank, static_cast<int>(width));
    rank = other > rank ? other : rank;
    width *= 2;
  }
  const uint32_t place = (group.rank * group.threads() + group.thread()) / width;
  if (group.lane % width == 0)
#pragma unroll 1
    for (uint32_t block = 0; block < group.blocks; ++block) *group.in_block(maxima + place, block) = rank;
  group.sync();
  return group.blocks * group.threads() / width;
}

// By one warp.
__device__ __forceinline__ uint32_t largest_of(const uint32_t* maxima, uint32_t count, uint32_t lane) {
  uint32_t largest = 0;
  for (uint32_t i = lane; i < count; i += 32) largest = maxima[i] > largest ? maxima[i] : largest;
  return warp_maximum(largest);
}

// Law section 1; a comparison with NaN is false.
__device__ __forceinline__ bool valid_maximum(float largest, bool probabilities) {
  return probabilities ? largest > 0 && largest < kInfinity : largest > -kInfinity;
}

}  // namespace fastsample::cuda
