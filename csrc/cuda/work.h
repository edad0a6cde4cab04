// What one launch of the CUDA kernels is given, and how the host asks for it. No torch, no CUDA headers.
#pragma once

#include "../batch.h"

namespace fastsample::cuda {

enum class Operation : int32_t { kSample, kFilterLogits, kFilteredProbs, kLogProbs };

// One call, in device pointers. Passed to the kernel by value.
struct Work {
  Operation operation;
  Batch batch;
  int64_t rows;            // output rows; without indices those of the batch
  const int64_t* indices;  // null, or for each output row its row of the batch
  int64_t indices_stride;
  BatchFilters filters;
  BatchRandomness randomness;  // kSample
  bool replacement;            // kSample
  Tokens tokens;               // kSample: drawn
  ConstTokens wanted;          // kLogProbs: asked for
  void* out;                   // kFilterLogits: logits' dtype [rows, vocab]; kFilteredProbs: float [rows, vocab];
                               // kLogProbs: float [rows, wanted.count]; contiguous
};

constexpr int32_t kMaxThreads = 512;     // of a block
constexpr uint32_t kRowThreads = 512;    // of the kernels that always give a row one block
constexpr uint32_t kEntryThreads = 256;  // of the kernels with a thread for each number that they write
constexpr int32_t kMaxBlocks = 16;       // that share a row

// How a row is divided (chosen in policy.h): `blocks` blocks of `threads` threads share it.
struct Shape {
  int32_t blocks;
  int32_t threads;
  bool cluster;   // the blocks are one thread-block cluster; else, where there are several, the last to arrive finishes
  bool resident;  // the row stays in shared memory; else it is read again in each sweep
  bool overlaps;  // may start while the kernel ahead of it in the stream ends (programmatic dependent launch)
};

// Vectors of 16 bytes, `per_vector` tokens each, that each lane has of a row whose first vector begins `lead` tokens
// before it.
FASTSAMPLE_FUNCTION int64_t vectors_per_lane(int64_t lead, int64_t vocab, int64_t per_vector, int64_t lanes) {
  const int64_t vectors = (lead + vocab + per_vector - 1) / per_vector;
  return (vectors + lanes - 1) / lanes;
}

// The memory that blocks without a cluster leave their findings in: zero bytes where they do not need any.
struct Workspace {
  uint32_t* arrivals;  // [rows], zeroed before the launch
  float* maxima;       // [rows, blocks, threads]
};

// The device that a shape is chosen for.
struct Device {
  int32_t capability;  // 90 for sm_90
  int32_t multiprocessors;
  int32_t largest_cluster = 8;  // in blocks that fill a multiprocessor each; 1 without clusters
};

}  // namespace fastsample::cuda
