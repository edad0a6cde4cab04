// One row by the steps of the law: load, maximum, bound, gather, weigh, cut, draw. A row is one block's, or shared by
// the blocks of a cluster, or, where there are no clusters, read by several blocks of which the last to arrive goes on.
#pragma once

#include "draw.cuh"
#include "write.cuh"

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

// The row of a result: what an output row of `work` is written to.
struct Output {
  const Work& work;
  int64_t row;

  __device__ Draws draws(const Random& random) const {
    const Tokens& tokens = work.tokens;
    return {random, work.replacement, tokens.count, tokens.data + row * tokens.row_stride, tokens.stride};
  }
  template <class T>
  __device__ T* values(int64_t count) const {
    return static_cast<T*>(work.out) + row * count;
  }

  // What an invalid row gives: -1, or NaN.
  template <class Element>
  __device__ void write_invalid(const Group& group) const {
    const auto fill = [&](auto* out, int64_t count, auto value) {
#pragma unroll 1
      for (int64_t i = group.rank * group.threads() + group.thread(); i < count; i += group.blocks * group.threads())
        out[i] = value;
    };
    if (work.operation == Operation::kSample) {
      if (group.leads()) draws(Random()).fill(group, 0, -1);
    } else if (work.operation == Operation::kFilterLogits) {
      fill(values<Element>(work.batch.vocab), work.batch.vocab, element_of<Element>(nan_bits<Element>()));
    } else {
      const int64_t count = work.operation == Operation::kLogProbs ? work.wanted.count : work.batch.vocab;
      fill(values<float>(count), count, __uint_as_float(nan_bits<float>()));
    }
  }
};

template <class Row>
__device__ __forceinline__ void sample_row(const Sweeps<Row>& sweeps, const Kept& kept, bool only_maximum,
                                           const Draws& draws) {
  Group& group = sweeps.group;
  if (only_maximum) {
    if (!group.leads()) return;
    draws.fill(group, draws.replacement ? 0 : 1, draws.replacement ? static_cast<int64_t>(kept.cut.end) - 1 : -1);
    if (group.thread() == 0) draws.write(0, static_cast<int64_t>(kept.cut.end) - 1);
  } else if (!kept.in_list) {
    draw_from_row(sweeps, kept.cut, draws);
  } else if (group.leads()) {
    draw_from_list(group, sweeps.list, kept.size, kept.last, draws);
  }
}

template <class Element, class Row>
__device__ __forceinline__ void write_row(const Sweeps<Row>& sweeps, const Kept& kept, const Output& output) {
  Group& group = sweeps.group;
  Cut cut = kept.cut;
  if (kept.in_list) {
    const uint64_t last = group.tell(group.leads() && group.thread() == 0 ? kept.last : 0);
    cut = {logit_of(last), index_of(last) + 1};
  }
  const Work& work = output.work;
  const int64_t vocab = work.batch.vocab;
  if (work.operation == Operation::kFilterLogits)
    return write_filtered_logits(sweeps, cut, output.values<Element>(vocab));
  const uint64_t total = sweeps.mass(cut);
  if (work.operation == Operation::kFilteredProbs)
    write_probabilities(sweeps, cut, total, output.values<float>(vocab));
  else
    write_log_probabilities<Element>(sweeps, cut, total, work, output.row, output.values<float>(work.wanted.count));
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

template <class Element, bool kResident>
__global__ void __launch_bounds__(kMaxThreads, 1)
    row_kernel(const __grid_constant__ Work work, const __grid_constant__ Shape shape,
               const __grid_constant__ Workspace workspace) {
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
  const Output output{work, blockIdx.x / blocks};
  const Filters filters = work.filters[output.row];
  const int64_t source = work.indices ? work.indices[output.row * work.indices_stride] : output.row;
  if (!(source >= 0 && source < work.batch.rows && valid_filters(filters))) {
    if (!alone || blockIdx.x % blocks == 0) output.write_invalid<Element>(group);
    return;
  }
  if (!alone) cluster_arrive();  // waited for once the row is loaded: then all blocks run and can be written to

  float largest, reach;
  Row<Element, kResident> row(work.batch, source, group.number(), group.blocks * warps, warp, lane, row_memory);
  if (kResident || !alone || blocks == 1) {
    largest = load_and_maximum(row, filters.probabilities);
    reach = largest;
  } else {
    const uint32_t part = blockIdx.x % blocks;
    Row<Element, false> slice(work.batch, source, part * warps + warp, blocks * warps, warp, lane, row_memory);
    float* const maxima_of_row = workspace.maxima + output.row * blocks * blockDim.x + threadIdx.x;
    maxima_of_row[part * blockDim.x] = load_and_maximum(slice, filters.probabilities);
    if (!last_to_arrive(workspace.arrivals + output.row, blocks, &arrived)) return;
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
    if (work.operation == Operation::kSample) random_of_row = Random(work.randomness[output.row]);
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
  if (!valid_maximum(most, work.filters.probabilities)) return output.write_invalid<Element>(group);

  const Weight weight(filters_of_row, most, work.batch.vocab);
  const Sweeps<Row<Element, kResident>> sweeps{
      group, row, weight, reach, {&gathered_size, gathered, place, weights, mass_before, count_before}};
  const Histogram histogram{bucket_count, bucket_mass, merged_count, merged_measured};
  const Selection<Row<Element, kResident>> selection{sweeps, histogram, filters_of_row, head_of_row};
  const bool only_maximum = greedy(filters_of_row);
  const Kept kept = only_maximum ? Kept{{most, first_maximum(sweeps) + 1}, 0, false, 0} : selection.select();
  if (work.operation == Operation::kSample)
    sample_row(sweeps, kept, only_maximum, output.draws(random_of_row));
  else
    write_row<Element>(sweeps, kept, output);
}

}  // namespace fastsample::cuda
