// The tokens of a row that one warp of a single block goes through, for the kernels that pass over rows of which the
// kept set is already known.
#pragma once

#include "gather.cuh"
#include "load_edited.cuh"

namespace fastsample::cuda {

// Whole words of 32 tokens, so that all lanes need the same word of a bitmask; in index order over the warps.
struct Stretch {
  uint32_t begin;
  uint32_t end;

  __device__ explicit Stretch(uint32_t vocab) {
    constexpr uint32_t kWarps = kRowThreads / 32;
    const uint64_t each = (uint64_t{vocab} + kRowThreads - 1) / kRowThreads * 32;
    const uint64_t first = each * (threadIdx.x / 32), last = first + each;
    static_assert(kWarps * 32 == kRowThreads);
    begin = static_cast<uint32_t>(first < vocab ? first : vocab);
    end = static_cast<uint32_t>(last < vocab ? last : vocab);
  }

  // Calls body(index, inside) for 32 neighbouring tokens at a time, one a lane; in all lanes, also beyond the end.
  template <class Body>
  __device__ __forceinline__ void for_each(const Body& body) const {
#pragma unroll 4
    for (uint32_t first = begin; first < end; first += 32) {
      const uint32_t index = first + threadIdx.x % 32;
      body(index, index < end);
    }
  }
};

// What `numbers` (law section 7) says of a row's kept set.
struct KeptRow {
  bool valid;
  float most;
  Cut cut;
  uint64_t total;
};

__device__ __forceinline__ KeptRow kept_row(const int64_t* numbers, int64_t stride) {
  const auto logit = [&](int number) { return __uint_as_float(static_cast<uint32_t>(numbers[number * stride])); };
  return {numbers[0] == 0,
          logit(1),
          {logit(2), static_cast<uint32_t>(numbers[3 * stride])},
          static_cast<uint64_t>(numbers[4 * stride])};
}

}  // namespace fastsample::cuda
