// The CUDA backend without torch: what the binding calls.
#pragma once

#include <cstddef>

#include "../requests.h"
#include "work.h"

namespace fastsample::cuda {

// How `work` would run on the current device, by its sizes (of a call of sample_full: policy.h, sizes_of). Returns
// null, or the error's text. To be called before launch(): on a device's first call it lets the kernels have what they
// need.
const char* shape_for(const Work& work, Shape& shape);

// Bytes of device memory that launch() needs, in one allocation aligned to 256 bytes; 0 for most calls.
size_t workspace_bytes(const Work& work, const Shape& shape);

// Enqueues the work on `stream` (a cudaStream_t). Returns null, or the error's text; nothing is synchronised.
const char* launch(const Work& work, const Shape& shape, void* workspace, void* stream);
const char* launch(const SampleFull& call, const Shape& shape, void* workspace, void* stream);

// The same for what has a shape of its own. `last_bias`: policy.h, bias_entries; null for none. `numbers`: of the rows,
// as policy.h's kept_sets() has them written.
const char* launch(const FindEdits& call, uint32_t* last_bias, void* stream);
const char* launch(const KeptTokens& call, void* stream);
const char* launch(const RandomWords& call, void* stream);
const char* launch(const FixedProbsAt& call, const int64_t* numbers, void* stream);
const char* launch(const SampleResidual& call, const int64_t* target_numbers, const int64_t* draft_numbers,
                   void* stream);

}  // namespace fastsample::cuda
