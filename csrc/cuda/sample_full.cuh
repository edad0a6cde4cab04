// The kernel of sample_full: draws from a row that a request has edited, records them, and says of them what is asked
// for.
#pragma once

#include "details.cuh"

namespace fastsample::cuda {

template <bool kResident>
struct FullOutput {
  using Row = EditedRow<kResident>;
  using Slice = EditedRow<false>;

  const SampleFull& call;
  int64_t row;
  const RowEdits& edits;

  __device__ int64_t source() const { return call.indices[row]; }

  template <class AnyRow>
  __device__ __forceinline__ AnyRow read(int64_t of, uint32_t part, uint32_t parts, uint32_t warp, uint32_t lane,
                                         uint4* memory) const {
    return AnyRow(call.batch, of, edits, part, parts, warp, lane, memory);
  }

  __device__ bool draws() const { return call.tokens.count > 0; }

  __device__ Draws draws_with(const Random& random) const {
    const Tokens& tokens = call.tokens;
    // One draw is the same without replacement, and leaves the row as it was.
    return {random, call.replacement || tokens.count == 1, tokens.count, tokens.data + row * tokens.row_stride,
            tokens.stride};
  }

  __device__ void write_invalid(const Group& group) const {
    if (!group.leads()) return;
    draws_with(Random()).fill(group, 0, -1);
    describe_invalid_row(group, call.details, row);
  }

  __device__ __forceinline__ void finish(const Sweeps<Row>& sweeps, const Kept& kept, bool only_maximum,
                                         const Random& random, const MaximumMemory& memory) const {
    Group& group = sweeps.group;
    const Details& details = call.details;
    if (details.numbers.data)
      write_numbers(sweeps, cut_of(group, kept), call.filters[row].temperature, details.numbers, row);
    const Draws drawn = draws_with(random);
    const bool of_raw = details.of_raw_row(), top_of_processed = details.has_top(true);
    // Without draws of a greedy row there is nothing to write to.
    const bool sums = draws() || (top_of_processed && !only_maximum);
    const uint64_t total = sums ? sample_row(sweeps, kept, only_maximum, drawn) : kLargestWeight;
    if (!of_raw && !top_of_processed && !details.logprobs.data && !call.history) return;
    // Any block may have drawn, and the row's offset may lie in the history: each has read it before this.
    group.sync();
    if (details.logprobs.data && group.leads()) write_logprobs(sweeps, drawn, total);
    const uint4* const held = Row::kStays && drawn.replacement ? sweeps.row.place(0) : nullptr;
    if (top_of_processed)
      describe_top_of_processed(group, RowAgain(sweeps.row, &edits, held), sweeps.weight, sweeps.list, memory, kept,
                                total, details, row);
    if (of_raw)
      describe_raw_row(group, RowAgain(sweeps.row, nullptr, call.edits ? nullptr : held), sweeps.list, memory, details,
                       call.tokens, row);
    if (draws() && group.leads() && group.thread() == 0) call.history.record(row, drawn.tokens[0]);
  }

 private:
  __device__ __forceinline__ void write_logprobs(const Sweeps<Row>& sweeps, const Draws& drawn, uint64_t total) const {
    const Group& group = sweeps.group;
    const RowsOf<float>& out = call.details.logprobs;
    const float log_total = log_of_total(total);
#pragma unroll 1
    for (int64_t draw = group.thread(); draw < drawn.count; draw += group.threads()) {
      const int64_t token = drawn.tokens[draw * drawn.stride];
      float logprob = __uint_as_float(nan_bits<float>());
      if (token >= 0)
        logprob = log_probability(sweeps.weight.exponent(sweeps.row.edits(sweeps.row.token(token), token)), log_total);
      out.row(row)[draw * out.stride] = logprob;
    }
  }
};

template <bool kResident>
__global__ void __launch_bounds__(kMaxThreads, 1)
    sample_full_kernel(const __grid_constant__ SampleFull call, const __grid_constant__ Shape shape,
                       const __grid_constant__ Workspace workspace) {
  SHARED_VARIABLE(RowEdits, edits);
  const int64_t row = blockIdx.x / static_cast<uint32_t>(shape.blocks);
  if (threadIdx.x == 0) edits = edits_of_row(call.edits, row);
  __syncthreads();
  run_row(FullOutput<kResident>{call, row, edits}, shape, workspace);
}

}  // namespace fastsample::cuda
