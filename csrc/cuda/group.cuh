// The blocks that share a row, and how their threads tell each other what they found.
#pragma once

#include "portable.cuh"
#include "work.h"

namespace fastsample::cuda {

constexpr uint32_t kAllLanes = 0xFFFFFFFFu;
constexpr int kMaxWarps = kMaxBlocks * kMaxThreads / 32;

__device__ __forceinline__ uint64_t warp_sum(uint64_t value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

// Of 32 bits: one instruction from sm_80 on.
__device__ __forceinline__ uint32_t warp_count(uint32_t value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
#else
  return __reduce_add_sync(kAllLanes, value);
#endif
}
__device__ __forceinline__ uint32_t warp_maximum(uint32_t value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  for (int distance = 16; distance > 0; distance /= 2) {
    const uint32_t other = __shfl_xor_sync(kAllLanes, value, distance);
    value = other > value ? other : value;
  }
  return value;
#else
  return __reduce_max_sync(kAllLanes, value);
#endif
}
__device__ __forceinline__ uint32_t warp_minimum(uint32_t value) {
  return ~warp_maximum(~value);
}

__device__ __forceinline__ uint64_t warp_minimum(uint64_t value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const uint64_t other = __shfl_xor_sync(kAllLanes, value, distance);
    value = other < value ? other : value;
  }
  return value;
}

// Inclusive sum over the lanes up to this one.
template <class T>
__device__ __forceinline__ T warp_scan(T value, uint32_t lane) {
#pragma unroll
  for (uint32_t distance = 1; distance < 32; distance *= 2) {
    const T below = __shfl_up_sync(kAllLanes, value, distance);
    if (lane >= distance) value += below;
  }
  return value;
}

// One block, or the blocks of a thread-block cluster, which reach each other's shared memory. What they exchange goes
// through a mailbox that every block has a copy of; it is double, so that one barrier an exchange is enough: whoever
// writes a half again has passed the barrier of the exchange in between, and so has everyone who read it.
struct Group {
  uint32_t lane;
  uint32_t warp;   // in the block
  uint32_t warps;  // of a block
  uint32_t rank;   // of the block
  uint32_t blocks;
  uint64_t* mailbox;        // [2][kMaxWarps], shared
  uint64_t* block_mailbox;  // [2][kMaxThreads / 32], shared: for what stays in the block
  uint32_t half;            // the one that the next exchange uses
  uint32_t block_half;

  __device__ uint32_t thread() const { return warp * 32 + lane; }
  __device__ uint32_t threads() const { return warps * 32; }
  __device__ uint32_t number() const { return rank * warps + warp; }  // of the warp, in index order of its tokens
  __device__ bool leads() const { return rank == 0; }                 // the block that finishes alone what is small

  // Where block `other` has what is at `mine` in this block's shared memory.
  template <class T>
  __device__ __forceinline__ T* in_block(T* mine, uint32_t other) const {
    return blocks > 1 ? cluster_map(mine, other) : mine;
  }

  __device__ __forceinline__ void sync() const {
    if (blocks > 1) {
      cluster_arrive();
      cluster_wait();
    } else {
      __syncthreads();
    }
  }

  // Every warp's value, by its number, in every block. All lanes pass the same value.
  __device__ __forceinline__ const uint64_t* exchange(uint64_t value) {
    uint64_t* const all = mailbox + half * kMaxWarps;
    if (lane < blocks) *in_block(all + number(), lane) = value;
    sync();
    half ^= 1;
    return all;
  }

  // The sum over all threads, and over the warps before this one.
  __device__ __forceinline__ uint64_t sum(uint64_t value, uint64_t& before) {
    const uint64_t* const all = exchange(warp_sum(value));
    uint64_t total = 0, earlier = 0;
#pragma unroll 1
    for (uint32_t other = lane; other < blocks * warps; other += 32) {
      total += all[other];
      if (other < number()) earlier += all[other];
    }
    before = warp_sum(earlier);
    return warp_sum(total);
  }

  __device__ __forceinline__ uint64_t sum(uint64_t value) {
    uint64_t before;
    return sum(value, before);
  }

  // The sum over this block's threads.
  __device__ __forceinline__ uint64_t sum_in_block(uint64_t value) {
    uint64_t* const all = block_mailbox + block_half * (kMaxThreads / 32);
    block_half ^= 1;
    value = warp_sum(value);
    if (lane == 0) all[warp] = value;
    __syncthreads();
    return warp_sum(lane < warps ? all[lane] : 0);
  }

  // What one thread of the group knows; all others pass 0.
  __device__ __forceinline__ uint64_t tell(uint64_t value) { return sum(value); }

  __device__ __forceinline__ uint32_t minimum(uint32_t value) {
    const uint64_t* const all = exchange(warp_minimum(value));
#pragma unroll 1
    for (uint32_t other = lane; other < blocks * warps; other += 32)
      value = all[other] < value ? static_cast<uint32_t>(all[other]) : value;
    return warp_minimum(value);
  }
  __device__ __forceinline__ uint64_t minimum(uint64_t value) {
    const uint64_t* const all = exchange(warp_minimum(value));
#pragma unroll 1
    for (uint32_t other = lane; other < blocks * warps; other += 32) value = all[other] < value ? all[other] : value;
    return warp_minimum(value);
  }
};

}  // namespace fastsample::cuda
