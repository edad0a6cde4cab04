// How a row's tokens are distributed: sums in buckets that rise with the logit, of all blocks in every block.
#pragma once

#include "sweeps.cuh"

namespace fastsample::cuda {

constexpr uint32_t kBucketBits = 8;
constexpr uint32_t kBuckets = 1 << kBucketBits;

// Adds to a 64-bit sum in two words of shared memory. An atomicAdd of 64 bits is a compare-and-swap loop there (seen in
// the SASS of sm_90), which spins where many lanes have the same bucket; of 32 bits it is one instruction.
__device__ __forceinline__ void atomic_add_words(uint32_t* low, uint32_t* high, uint64_t value) {
  const uint32_t word = static_cast<uint32_t>(value);
  const uint32_t before = atomicAdd(low, word);
  const uint32_t carry = before + word < word;
  const uint32_t upper = static_cast<uint32_t>(value >> 32) + carry;
  if (upper) atomicAdd(high, upper);
}

struct Histogram {
  uint32_t* count;            // [kBuckets]: of this block
  uint32_t* mass;             // [2][kBuckets]: low and high words, of this block
  uint32_t* merged_count;     // [kBuckets]
  uint64_t* merged_measured;  // [kBuckets], bucket b at slot(b)

  // Eight neighbouring buckets are one lane's in choose(): dealt out like this, the lanes read 32 neighbouring words.
  static __device__ __forceinline__ uint32_t slot(uint32_t bucket) { return bucket % 8 * 32 + bucket / 8; }

  // Of the base set's tokens in every `step`-th vector. bucket_of(x) is kBuckets for a token that is left out; of a
  // lane whose tokens are all below `least`, every token is.
  template <class Row, class BucketOf>
  __device__ __forceinline__ void fill(const Sweeps<Row>& sweeps, Measure measure, Cut base, float least, uint32_t step,
                                       const BucketOf& bucket_of) const {
    const Group& group = sweeps.group;
#pragma unroll 1
    for (uint32_t bucket = group.thread(); bucket < kBuckets; bucket += group.threads()) {
      count[bucket] = 0;
      mass[bucket] = 0;
      mass[kBuckets + bucket] = 0;
    }
    __syncthreads();
    if (sweeps.reach >= least)
      sweeps.row.sweep(
          [&](const float (&x)[Row::kTokens], uint32_t index) {
#pragma unroll
            for (int i = 0; i < Row::kTokens; ++i) {
              const uint32_t bucket = bucket_of(x[i]);
              if (bucket >= kBuckets || !base.keeps(x[i], index + i)) continue;
              atomicAdd(count + bucket, 1u);
              if (measure == Measure::kMass)
                atomic_add_words(mass + bucket, mass + kBuckets + bucket, sweeps.weight(x[i]));
            }
          },
          step);
    group.sync();
#pragma unroll 1
    for (uint32_t bucket = group.thread(); bucket < kBuckets; bucket += group.threads()) {
      uint64_t measured = 0;
      uint32_t tokens = 0;
      for (uint32_t block = 0; block < group.blocks; ++block) {
        tokens += *group.in_block(count + bucket, block);
        if (measure != Measure::kMass) continue;
        const uint32_t* const words = group.in_block(mass, block);
        measured += words[bucket] | static_cast<uint64_t>(words[kBuckets + bucket]) << 32;
      }
      merged_count[bucket] = tokens;
      merged_measured[slot(bucket)] = measure == Measure::kMass ? measured : tokens;
    }
    group.sync();
  }

  // The bucket, from the top, in which the running sum reaches `target`; adds what lies above it to `above`. kBuckets
  // where all of them together do not. Each warp for itself.
  __device__ __forceinline__ uint32_t choose(const Group& group, uint64_t target, uint64_t& above) const {
    constexpr uint32_t kPerLane = kBuckets / 32;
    const uint32_t highest = kBuckets - 1 - group.lane * kPerLane;
    uint64_t sum = 0;
#pragma unroll 1
    for (uint32_t i = 0; i < kPerLane; ++i) sum += merged_measured[slot(highest - i)];
    const uint64_t running = above + warp_scan(sum, group.lane);
    const uint32_t reached = __ballot_sync(kAllLanes, running >= target);
    if (reached == 0) return kBuckets;
    uint64_t before = running - sum;
    uint32_t bucket = highest;
#pragma unroll 1
    for (uint32_t i = 0; i + 1 < kPerLane; ++i) {
      const uint64_t next = before + merged_measured[slot(bucket)];
      if (next >= target) break;
      before = next;
      --bucket;
    }
    const int lane = __ffs(static_cast<int>(reached)) - 1;
    above = __shfl_sync(kAllLanes, before, lane);
    return __shfl_sync(kAllLanes, bucket, lane);
  }

  // What all buckets measure. Each warp for itself.
  __device__ __forceinline__ uint64_t total(const Group& group) const {
    uint64_t sum = 0;
#pragma unroll 1
    for (uint32_t bucket = group.lane; bucket < kBuckets; bucket += 32) sum += merged_measured[bucket];
    return warp_sum(sum);
  }
};

}  // namespace fastsample::cuda
