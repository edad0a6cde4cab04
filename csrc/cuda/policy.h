// How a call is divided over a GPU: the launch table. Chosen by capacity and by counting; none of it has been measured
// yet, since no GPU has run it.
#pragma once

#include <cstddef>

#include "../requests.h"
#include "work.h"

namespace fastsample::cuda {

// Half of what the kernels can have: a top-k row took 22 instructions a token with 512 and 16 with 256 (counted in PTX,
// together with other changes), since what each thread does once a row then counts for twice the tokens.
constexpr int32_t kThreads = 256;
constexpr int32_t kPortableBlocks = 8;       // a larger cluster has to be asked for
constexpr int64_t kStaticShared = 32 << 10;  // more than the kernels declare; a test compares

// Shared memory that one block can have, by compute capability (CUDA programming guide, "technical specifications").
constexpr int64_t shared_memory(int32_t capability) {
  if (capability < 80) return 64 << 10;
  if (capability == 86 || capability == 89 || capability >= 120) return 99 << 10;
  if (capability < 90) return 163 << 10;
  return 227 << 10;
}

constexpr int64_t bytes_per_token(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : 2;
}

// Dynamic shared memory of a block: its share of the row, wherever that starts.
inline int64_t resident_bytes(const Work& work, int32_t blocks, int32_t threads) {
  const int64_t per_vector = 16 / bytes_per_token(work.batch.dtype);
  const int64_t lanes = static_cast<int64_t>(blocks) * threads;
  return vectors_per_lane(per_vector - 1, work.batch.vocab, per_vector, lanes) * threads * 16;
}

// `overlaps` stays off until a GPU has shown what it gains: the kernel waits for its input at its start in any case.
inline Shape choose_shape(const Work& work, const Device& device) {
  const int64_t vectors = work.batch.vocab * bytes_per_token(work.batch.dtype) / 16;
  // Two vectors a thread and more, so that a short row is not spread over threads that find nothing to do.
  int32_t threads = 32;
  while (threads < kThreads && threads * 2 <= vectors) threads *= 2;

  const int64_t largest_share = shared_memory(device.capability) - kStaticShared;
  // Half of what a multiprocessor has, so that one block's loads overlap another's search.
  const int64_t wanted_share = shared_memory(device.capability) / 2 - kStaticShared;
  int32_t blocks = 1;
  if (device.capability >= 90) {
    const int32_t most = device.largest_cluster < kPortableBlocks ? device.largest_cluster : kPortableBlocks;
    const auto too_large = [&](int64_t share) { return resident_bytes(work, blocks, threads) > share; };
    const auto leaves_idle = [&] {
      return work.rows * blocks * 2 <= device.multiprocessors && vectors >= int64_t{2} * blocks * threads;
    };
    while (blocks < most && (too_large(wanted_share) || leaves_idle())) blocks *= 2;
    if (too_large(largest_share) && device.largest_cluster >= kMaxBlocks) blocks = kMaxBlocks;
    const bool resident = !too_large(largest_share);
    if (!resident) blocks = most;
    return {blocks, threads, blocks > 1, resident, false};
  }
  // The last block to arrive does all but the maximum alone, from the second-level cache.
  while (blocks < kMaxBlocks && work.rows * blocks * 2 <= device.multiprocessors &&
         vectors >= int64_t{4} * blocks * threads)
    blocks *= 2;
  return {blocks, threads, false, blocks == 1 && resident_bytes(work, 1, threads) <= largest_share, false};
}

// What a call of sample_full is for the launch table: its row is float32 on the chip, whatever it was.
inline Work sizes_of(const SampleFull& call) {
  Work work{};
  work.batch = call.batch;
  work.batch.dtype = DType::kFloat32;
  work.rows = call.tokens.rows;
  return work;
}

// The launch that finds the kept sets of the rows of another call: their `numbers` (law section 7), and no draw.
inline SampleFull kept_sets(const Batch& batch, const RowIndices& indices, const BatchFilters& filters, int64_t rows,
                            int64_t* numbers) {
  SampleFull call{};
  call.batch = batch;
  call.indices = indices;
  call.filters = filters;
  call.replacement = true;
  call.tokens.rows = rows;
  call.details.numbers = {numbers, kNumbers, 1, kNumbers};
  return call;
}

// How many entries find_edits needs to find each token's last bias: 0 without biases.
inline int64_t bias_entries(const FindEdits& call) {
  return call.adjustments.bias.entries.tokens ? call.rows * call.found.capacity : 0;
}

constexpr int64_t blocks_for(int64_t entries) {
  return (entries + kEntryThreads - 1) / kEntryThreads;
}

// Whether the kernels can run in this shape: what a launch refuses would write out of bounds.
constexpr bool possible(const Shape& shape) {
  const bool counts = shape.blocks >= 1 && shape.blocks <= kMaxBlocks && shape.threads >= 32 &&
                      shape.threads <= kMaxThreads && shape.threads % 32 == 0;
  return counts && (shape.cluster || shape.blocks == 1 || !shape.resident);
}

constexpr bool needs_workspace(const Shape& shape) {
  return !shape.cluster && shape.blocks > 1;
}

// The arrivals, rounded up to 256 bytes, then the maxima.
constexpr size_t arrivals_bytes(const Work& work) {
  return (static_cast<size_t>(work.rows) * sizeof(uint32_t) + 255) / 256 * 256;
}
constexpr size_t workspace_size(const Work& work, const Shape& shape) {
  if (!needs_workspace(shape)) return 0;
  return arrivals_bytes(work) + static_cast<size_t>(work.rows) * static_cast<size_t>(shape.blocks) *
                                    static_cast<size_t>(shape.threads) * sizeof(float);
}
inline Workspace workspace_in(void* memory, const Work& work, const Shape& shape) {
  if (!needs_workspace(shape)) return {nullptr, nullptr};
  char* const bytes = static_cast<char*>(memory);
  return {reinterpret_cast<uint32_t*>(bytes), reinterpret_cast<float*>(bytes + arrivals_bytes(work))};
}

}  // namespace fastsample::cuda
