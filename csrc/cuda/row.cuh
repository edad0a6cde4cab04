// What every kernel of this family does with a row, by the steps of the law: load, maximum, bound, gather, weigh, cut,
// draw. A row is one block's, or shared by the blocks of a cluster, or, where there are no clusters, read by several
// blocks of which the last to arrive goes on.
#pragma once

#include "draw.cuh"

namespace fastsample::cuda {

// The law's kept set for a row of which only the first maximum is kept.
template <class Row>
__device__ __forceinline__ uint32_t first_maximum(const Sweeps<Row>& sweeps) {
  const float most = sweeps.weight.most;
  uint32_t first = 0xFFFFFFFFu;
  if (sweeps.reach >= most)
    sweeps.row.sweep([&](const float (&x)[Row::kTokens], uint32_t index) {
#pragma unroll
      for (int i = Row::kTokens - 1; i >= 0; --i)
        if (x[i] == most && index + i < first) first = index + i;
    });
  return sweeps.group.minimum(first);
}

// Draws; returns Z of a kept set of logits, which where that is in the list only the leading block knows.
template <class Row>
__device__ __forceinline__ uint64_t sample_row(const Sweeps<Row>& sweeps, const Kept& kept, bool only_maximum,
                                               const Draws& draws) {
  Group& group = sweeps.group;
  if (!only_maximum && !kept.in_list) return draw_from_row(sweeps, kept.cut, draws);
  if (!group.leads()) return 0;
  if (!only_maximum) return draw_from_list(group, sweeps.list, kept.size, kept.last, draws);
  draws.fill(group, draws.replacement ? 0 : 1, draws.replacement ? static_cast<int64_t>(kept.cut.end) - 1 : -1);
  if (group.thread() == 0) draws.write(0, static_cast<int64_t>(kept.cut.end) - 1);
  return kLargestWeight;
}

// The kept set as a cut of the row, in every thread.
__device__ __forceinline__ Cut cut_of(Group& group, const Kept& kept) {
  if (!kept.in_list) return kept.cut;
  const uint64_t last = group.tell(group.leads() && group.thread() == 0 ? kept.last : 0);
  return {logit_of(last), index_of(last) + 1};
}

// Whether this block is the last of its row's to have got here. What the others wrote before is then to be seen.
__device__ __forceinline__ bool last_to_arrive(uint32_t* arrivals, uint32_t blocks, uint32_t* arrived) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) *arrived = atomicAdd(arrivals, 1u);
  __syncthreads();
  __threadfence();
  return *arrived + 1 == blocks;
}

// What a block finds out about its row's maximum, where a later look for large tokens may put its own.
struct MaximumMemory {
  uint32_t* maxima;  // [kMaxima]
  float* largest;
  float* head;
};

// A kernel's part of the work on a row is its Job: which call it is, how its row is read, and what becomes of the kept
// set. `job.row` is the output row.
template <class Job>
__device__ __forceinline__ void run_row(const Job& job, const Shape& shape, const Workspace& workspace) {
  SHARED_DYNAMIC(uint4, row_memory);
  SHARED_ARRAY(uint64_t, mailbox, 2 * kMaxWarps);
  SHARED_ARRAY(uint64_t, block_mailbox, 2 * kMaxThreads / 32);
  SHARED_ARRAY(uint32_t, maxima, kMaxima);
  SHARED_ARRAY(uint64_t, gathered, kListSize);
  SHARED_ARRAY(uint64_t, place, kListSize);
  SHARED_ARRAY(uint64_t, weights, kListSize);
  SHARED_ARRAY(uint64_t, mass_before, kListSize);
  SHARED_ARRAY(uint32_t, count_before, kListSize);
  SHARED_ARRAY(uint32_t, bucket_count, kBuckets);
  SHARED_ARRAY(uint32_t, bucket_mass, 2 * kBuckets);
  SHARED_ARRAY(uint32_t, merged_count, kBuckets);
  SHARED_ARRAY(uint64_t, merged_measured, kBuckets);
  SHARED_VARIABLE(float, largest_of_row);
  SHARED_VARIABLE(float, head_of_row);
  SHARED_VARIABLE(uint32_t, gathered_size);
  SHARED_VARIABLE(uint32_t, arrived);

  SHARED_VARIABLE(Filters, filters_of_row);
  SHARED_VARIABLE(Random, random_of_row);

  wait_for_earlier_kernels();
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const uint32_t blocks = static_cast<uint32_t>(shape.blocks);
  const bool alone = !shape.cluster || blocks == 1;
  Group group{lane, warp, warps, alone ? 0 : cluster_rank(), alone ? 1 : blocks, mailbox, block_mailbox, 0, 0};
  const auto& call = job.call;
  const Filters filters = call.filters[job.row];
  const int64_t source = job.source();
  if (!(source >= 0 && source < call.batch.rows && valid_filters(filters))) {
    if (!alone || blockIdx.x % blocks == 0) job.write_invalid(group);
    return;
  }
  if (!alone) cluster_arrive();  // waited for once the row is loaded: then all blocks run and can be written to

  float largest, reach;
  typename Job::Row row =
      job.template read<typename Job::Row>(source, group.number(), group.blocks * warps, warp, lane, row_memory);
  if (Job::Row::kStays || !alone || blocks == 1) {
    largest = load_and_maximum(row, filters.probabilities);
    reach = largest;
  } else {
    const uint32_t part = blockIdx.x % blocks;
    typename Job::Slice slice =
        job.template read<typename Job::Slice>(source, part * warps + warp, blocks * warps, warp, lane, row_memory);
    float* const maxima_of_row = workspace.maxima + job.row * blocks * blockDim.x + threadIdx.x;
    maxima_of_row[part * blockDim.x] = load_and_maximum(slice, filters.probabilities);
    if (!last_to_arrive(workspace.arrivals + job.row, blocks, &arrived)) return;
    largest = -kInfinity;
#pragma unroll 1
    for (uint32_t block = 0; block < blocks; ++block)
      largest = maximum_or_nan(largest, *const_cast<volatile float*>(maxima_of_row + block * blockDim.x));
    reach = kInfinity;  // these maxima are of other tokens than this thread's
  }
  // What all need of the row's parameters, once for the block; read after the barrier of share_maxima. By the last
  // thread, whose warp often has the fewest tokens.
  if (group.thread() == group.threads() - 1) {
    filters_of_row = filters;
    if (job.draws()) random_of_row = Random(call.randomness[job.row]);
  }
  if (!alone) cluster_wait();

  const uint32_t bounded = tokens_to_bound(filters, row.vocab);
  const uint32_t count = share_maxima(group, largest, bounded > kFewK ? kMaxima : kFewMaxima, maxima);
  if (warp == 0) {
    const uint32_t rank = largest_of(maxima, count, lane);
    const float head = bounded ? bound_of_count(maxima, count, rank, bounded, lane) : -kFloatMax;
    if (lane == 0) {
      largest_of_row = value_of_rank(rank);
      head_of_row = head;
    }
  }
  __syncthreads();
  const float most = largest_of_row;
  if (!valid_maximum(most, call.filters.probabilities)) return job.write_invalid(group);

  const Weight weight(filters_of_row, most, call.batch.vocab);
  const Sweeps<typename Job::Row> sweeps{
      group, row, weight, reach, {&gathered_size, gathered, place, weights, mass_before, count_before}};
  const Histogram histogram{bucket_count, bucket_mass, merged_count, merged_measured};
  const Selection<typename Job::Row> selection{sweeps, histogram, filters_of_row, head_of_row};
  const bool only_maximum = greedy(filters_of_row);
  const Kept kept = only_maximum ? Kept{{most, first_maximum(sweeps) + 1}, 0, false, 0} : selection.select();
  job.finish(sweeps, kept, only_maximum, random_of_row, {maxima, &largest_of_row, &head_of_row});
}

}  // namespace fastsample::cuda
