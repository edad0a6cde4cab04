// The kernels of fixed_probs_at, random_words and sample_residual (law section 8). Which tokens the rows keep, another
// launch has found before: `numbers` are those of sample_full.
#pragma once

#include "draw.cuh"
#include "stretch.cuh"

namespace fastsample::cuda {

// floor(2^102 / z) for z in [2^39, 2^62], digit by digit, as the law's weights need it: 0 for 0.
__device__ __forceinline__ uint64_t fixed_reciprocal(uint64_t z) {
  uint64_t quotient = 0, rest = uint64_t{1} << 38;  // as after the first digits, since 2^38 < z
#pragma unroll 1
  for (int digit = 0; digit < 64; ++digit) {  // the rest stays below z, so twice it fits
    rest *= 2;
    const bool fits = rest >= z;
    rest -= fits ? z : 0;
    quotient = quotient * 2 + fits;
  }
  return z ? quotient : 0;
}

// The weights and the fixed-point probabilities of a row's tokens.
struct FixedRow {
  RowInMemory row;
  KeptRow kept;
  Weight weight;
  uint64_t reciprocal;

  __device__ FixedRow(const Batch& batch, int64_t source, const Filters& filters, const int64_t* numbers)
      : row(batch, source, 0, 1, 0),
        kept(kept_row(numbers, 1)),
        weight(filters, kept.most, batch.vocab),
        reciprocal(fixed_reciprocal(kept.total)) {}

  __device__ __forceinline__ uint64_t kept_weight(uint32_t token) const {
    const float x = row.token(token);
    return kept.cut.keeps(x, token) ? weight(x) : 0;
  }
  __device__ __forceinline__ uint64_t probability(uint32_t token) const {
    return __umul64hi(kept_weight(token) << 2, reciprocal);
  }
};

__global__ void __launch_bounds__(kEntryThreads, 1)
    fixed_probs_at_kernel(const __grid_constant__ FixedProbsAt call, const int64_t* const numbers) {
  wait_for_earlier_kernels();
  const int64_t entry = int64_t{blockIdx.x} * kEntryThreads + threadIdx.x;
  const ConstTokens& tokens = call.tokens;
  if (entry >= tokens.rows * tokens.count) return;
  const int64_t row = entry / tokens.count;
  const int64_t token = tokens.data[row * tokens.row_stride + entry % tokens.count * tokens.stride];
  const int64_t* const of_row = numbers + row * kNumbers;
  int64_t probability = -1;
  if (of_row[0] == 0 && token >= 0 && token < call.batch.vocab)
    probability = static_cast<int64_t>(
        FixedRow(call.batch, call.indices[row], call.filters[row], of_row).probability(static_cast<uint32_t>(token)));
  call.out[entry] = probability;
}

__global__ void __launch_bounds__(kEntryThreads, 1) random_words_kernel(const __grid_constant__ RandomWords call) {
  wait_for_earlier_kernels();
  const int64_t entry = int64_t{blockIdx.x} * kEntryThreads + threadIdx.x;
  if (entry >= call.rows * call.count) return;
  const RandomStream stream = call.randomness[entry / call.count];
  const uint32_t draw = call.first + static_cast<uint32_t>(entry % call.count);
  const PhiloxWords words = philox(stream.seed, stream.offset, stream.stream, draw / 2);
  call.out[entry] = static_cast<int64_t>(draw % 2 ? words.word[1] : words.word[0]);
}

// Sums over the warps of a block, and over those before each.
struct BlockSums {
  uint64_t* of_warps;  // [kRowThreads / 32], shared

  __device__ __forceinline__ uint64_t operator()(uint64_t value, uint64_t& mine, uint64_t& before) const {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    mine = warp_sum(value);
    __syncthreads();  // of_warps is no longer read
    if (lane == 0) of_warps[warp] = mine;
    __syncthreads();
    const uint64_t other = lane < kRowThreads / 32 ? of_warps[lane] : 0;
    before = warp_sum(lane < warp ? other : 0);
    return warp_sum(other);
  }
};

// A block draws a row's token by three of its weights, in this order: the residual; where that is 0 everywhere, p^; and
// without a draft the target's own.
__global__ void __launch_bounds__(kRowThreads, 1)
    sample_residual_kernel(const __grid_constant__ SampleResidual call, const int64_t* const target_numbers,
                           const int64_t* const draft_numbers) {
  SHARED_ARRAY(uint64_t, of_warps, kRowThreads / 32);
  wait_for_earlier_kernels();
  const int64_t row = blockIdx.x;
  int64_t* const out = call.tokens.data + row * call.tokens.row_stride;
  const int64_t* const of_target = target_numbers + row * kNumbers;
  const int64_t* const of_draft = draft_numbers + row * kNumbers;
  if (of_target[0] != 0) {
    if (threadIdx.x == 0) *out = -1;
    return;
  }
  const bool drafted = of_draft[0] == 0;
  const FixedRow target(call.target, call.target_indices[row], call.target_filters[row], of_target);
  const FixedRow draft(call.draft, drafted ? call.draft_indices[row] : 0, call.draft_filters[row], of_draft);
  const Stretch stretch(target.row.vocab);
  const auto residual = [&](uint32_t token) {
    const uint64_t p = target.probability(token), q = draft.probability(token);
    return p > q ? p - q : 0;
  };
  const auto mass_of = [&](const auto& weight_of) {
    uint64_t mass = 0;
    stretch.for_each([&](uint32_t token, bool inside) { mass += inside ? weight_of(token) : 0; });
    return mass;
  };
  const BlockSums sums{of_warps};
  uint64_t mine, before, total = drafted ? sums(mass_of(residual), mine, before) : 0;
  const bool from_residual = total > 0;
  const auto weight_of = [&](uint32_t token) {
    return from_residual ? residual(token) : drafted ? target.probability(token) : target.kept_weight(token);
  };
  if (!from_residual) total = sums(mass_of(weight_of), mine, before);

  const RandomStream stream = call.randomness[row];
  const uint64_t aim = multiply_high(philox(stream.seed, stream.offset, stream.stream, 0).word[0], total);
  if (aim < before || aim - before >= mine) return;
  const uint32_t lane = threadIdx.x % 32;
  uint64_t rest = aim - before;
#pragma unroll 1
  for (uint32_t first = stretch.begin; first < stretch.end; first += 32) {
    const uint64_t weighs = first + lane < stretch.end ? weight_of(first + lane) : 0;
    const uint64_t running = warp_scan(weighs, lane), all = __shfl_sync(kAllLanes, running, 31);
    if (rest < all) {
      if (rest < running && rest >= running - weighs) *out = first + lane;
      return;
    }
    rest -= all;
  }
}

}  // namespace fastsample::cuda
