// The kernel of kept_tokens: a block lists a row's kept set in index order.
#pragma once

#include "stretch.cuh"

namespace fastsample::cuda {

__global__ void __launch_bounds__(kRowThreads, 1) kept_tokens_kernel(const __grid_constant__ KeptTokens call) {
  SHARED_ARRAY(uint32_t, of_warps, kRowThreads / 32);
  wait_for_earlier_kernels();
  const int64_t row = blockIdx.x, source = call.indices[row];
  const KeptRow kept = kept_row(call.numbers.row(row), call.numbers.stride);
  if (!kept.valid || source < 0 || source >= call.batch.rows) return;
  const RowInMemory logits(call.batch, source, 0, 1, 0);
  const RowEdits edits = edits_of_row(call.edits, row);
  const Stretch stretch(logits.vocab);
  const auto keeps = [&](uint32_t index, bool inside) {
    return __ballot_sync(kAllLanes, inside && kept.cut.keeps(edits(logits.token(inside ? index : 0), index), index));
  };
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint32_t mine = 0;
  stretch.for_each([&](uint32_t index, bool inside) { mine += static_cast<uint32_t>(__popc(keeps(index, inside))); });
  if (lane == 0) of_warps[warp] = mine;
  __syncthreads();
  int64_t place = call.offsets[row * call.offsets_stride];
  for (uint32_t other = 0; other < warp; ++other) place += of_warps[other];
  const int64_t of_row = call.offsets[(row + 1) * call.offsets_stride];
  const int64_t end = of_row < call.total ? of_row : call.total;
  stretch.for_each([&](uint32_t index, bool inside) {
    const uint32_t found = keeps(index, inside);
    const int64_t at = place + bits_below(found, lane);
    if ((found >> lane & 1) && at >= 0 && at < end) call.out[at] = index;
    place += __popc(found);
  });
}

}  // namespace fastsample::cuda
