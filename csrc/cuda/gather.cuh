// Step gather: the few tokens that may be kept, with their rank, into one block's shared memory.
#pragma once

#include "bound.cuh"
#include "load.cuh"

namespace fastsample::cuda {

// A prefix of the ranking (law section 2): logits above `logit`, and those equal to it at indices below `end`.
struct Cut {
  float logit;
  uint32_t end;

  __device__ __forceinline__ bool keeps(float x, uint32_t index) const {
    return x > logit || (x == logit && index < end);
  }
};

__device__ __forceinline__ Cut everything() {
  return {-kFloatMax, 0xFFFFFFFFu};
}

__device__ __forceinline__ Cut tighter(Cut a, Cut b) {
  if (a.logit != b.logit) return a.logit > b.logit ? a : b;
  return a.end < b.end ? a : b;
}

// A token as one number: the larger, the earlier in the ranking.
__device__ __forceinline__ uint64_t place_in_ranking(float x, uint32_t index) {
  return static_cast<uint64_t>(rank_of(x)) << 32 | ~index;
}
__device__ __forceinline__ float logit_of(uint64_t place) {
  return value_of_rank(static_cast<uint32_t>(place >> 32));
}
__device__ __forceinline__ uint32_t index_of(uint64_t place) {
  return ~static_cast<uint32_t>(place);
}

// Ranking n tokens by comparing each with each takes n rounds of a few instructions.
constexpr uint32_t kListSize = 256;

struct List {
  uint32_t* size;          // [1]: how many tokens this block gathered, which may be more than fit
  uint64_t* gathered;      // [kListSize]: this block's, in no order
  uint64_t* place;         // [kListSize]: the leading block's, from all blocks
  uint64_t* weight;        // [kListSize]
  uint64_t* mass_before;   // [kListSize]: the weight of all that rank before
  uint32_t* count_before;  // [kListSize]
};

// Gathers the tokens of `base` from `low` to `high` into the leading block's list. Returns how many there are; if they
// are more than kListSize, the list is not made. `reach` is at least the largest of the lane's tokens.
template <class Row>
__device__ __forceinline__ uint32_t gather(Group& group, const Row& row, float reach, Cut base, float low, float high,
                                           const List& list) {
  if (group.thread() == 0) *list.size = 0;
  __syncthreads();
  if (reach >= low)
    row.sweep([&](const float (&x)[Row::kTokens], uint32_t index) {
#pragma unroll
      for (int i = 0; i < Row::kTokens; ++i) {
        if (!(x[i] >= low && x[i] <= high && base.keeps(x[i], index + i))) continue;
        const uint32_t at = atomicAdd(list.size, 1u);
        if (at < kListSize) list.gathered[at] = place_in_ranking(x[i], index + i);
      }
    });
  __syncthreads();
  const uint64_t* const sizes = group.exchange(*list.size);  // the same from each warp of a block
  uint32_t total = 0;
#pragma unroll 1
  for (uint32_t block = 0; block < group.blocks; ++block) total += static_cast<uint32_t>(sizes[block * group.warps]);
  if (total > kListSize) return total;
  if (group.leads())
#pragma unroll 1
    for (uint32_t i = group.thread(); i < total; i += group.threads()) {
      uint32_t block = 0, at = i;
      while (at >= sizes[block * group.warps]) at -= static_cast<uint32_t>(sizes[block++ * group.warps]);
      list.place[i] = *group.in_block(list.gathered + at, block);
    }
  group.sync();  // no block reuses or leaves what the leading one still reads
  return total;
}

// Weighs and ranks the leading block's list.
__device__ __forceinline__ void rank_list(const Group& group, const Weight& weight, uint32_t size, const List& list) {
#pragma unroll 1
  for (uint32_t i = group.thread(); i < size; i += group.threads()) list.weight[i] = weight(logit_of(list.place[i]));
  __syncthreads();
#pragma unroll 1
  for (uint32_t i = group.thread(); i < size; i += group.threads()) {
    const uint64_t mine = list.place[i];
    uint64_t mass = 0;
    uint32_t count = 0;
    // Without a branch: with one, each load waited for the comparison before it (seen in the SASS).
#pragma unroll 8
    for (uint32_t j = 0; j < size; ++j) {
      const uint64_t weighs = list.weight[j];
      const bool before = list.place[j] > mine;
      mass += before ? weighs : 0;
      count += before;
    }
    list.mass_before[i] = mass;
    list.count_before[i] = count;
  }
  __syncthreads();
}

}  // namespace fastsample::cuda
