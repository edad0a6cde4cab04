// The kernel of the operators that know a row by its logits and filters alone: sample, filter_logits, filtered_probs
// and log_probs.
#pragma once

#include "row.cuh"
#include "write.cuh"

namespace fastsample::cuda {

// An output row of a call: how its logits are read, and what is written to it.
template <class Element, bool kResident>
struct Output {
  using Row = cuda::Row<Element, kResident>;
  using Slice = cuda::Row<Element, false>;

  const Work& call;
  int64_t row;

  __device__ int64_t source() const { return call.indices ? call.indices[row * call.indices_stride] : row; }

  template <class AnyRow>
  __device__ __forceinline__ AnyRow read(int64_t of, uint32_t part, uint32_t parts, uint32_t warp, uint32_t lane,
                                         uint4* memory) const {
    return AnyRow(call.batch, of, part, parts, warp, lane, memory);
  }

  __device__ bool draws() const { return call.operation == Operation::kSample; }

  __device__ Draws draws_with(const Random& random) const {
    const Tokens& tokens = call.tokens;
    return {random, call.replacement, tokens.count, tokens.data + row * tokens.row_stride, tokens.stride};
  }

  template <class T>
  __device__ T* values(int64_t count) const {
    return static_cast<T*>(call.out) + row * count;
  }

  // What an invalid row gives: -1, or NaN.
  __device__ void write_invalid(const Group& group) const {
    const auto fill = [&](auto* out, int64_t count, auto value) {
#pragma unroll 1
      for (int64_t i = group.rank * group.threads() + group.thread(); i < count; i += group.blocks * group.threads())
        out[i] = value;
    };
    if (call.operation == Operation::kSample) {
      if (group.leads()) draws_with(Random()).fill(group, 0, -1);
    } else if (call.operation == Operation::kFilterLogits) {
      fill(values<Element>(call.batch.vocab), call.batch.vocab, element_of<Element>(nan_bits<Element>()));
    } else {
      const int64_t count = call.operation == Operation::kLogProbs ? call.wanted.count : call.batch.vocab;
      fill(values<float>(count), count, __uint_as_float(nan_bits<float>()));
    }
  }

  __device__ __forceinline__ void finish(const Sweeps<Row>& sweeps, const Kept& kept, bool only_maximum,
                                         const Random& random, const MaximumMemory&) const {
    if (call.operation == Operation::kSample) {
      sample_row(sweeps, kept, only_maximum, draws_with(random));
      return;
    }
    const Cut cut = cut_of(sweeps.group, kept);
    const int64_t vocab = call.batch.vocab;
    if (call.operation == Operation::kFilterLogits) return write_filtered_logits(sweeps, cut, values<Element>(vocab));
    const uint64_t total = sweeps.mass(cut);
    if (call.operation == Operation::kFilteredProbs)
      write_probabilities(sweeps, cut, total, values<float>(vocab));
    else
      write_log_probabilities<Element>(sweeps, cut, total, call, row, values<float>(call.wanted.count));
  }
};

template <class Element, bool kResident>
__global__ void __launch_bounds__(kMaxThreads, 1)
    row_kernel(const __grid_constant__ Work work, const __grid_constant__ Shape shape,
               const __grid_constant__ Workspace workspace) {
  run_row(Output<Element, kResident>{work, blockIdx.x / static_cast<uint32_t>(shape.blocks)}, shape, workspace);
}

}  // namespace fastsample::cuda
