// The CUDA backend without torch: what the binding calls.
#pragma once

#include <cstddef>

#include "work.h"

namespace fastsample::cuda {

// How `work` would run on the current device, by its sizes. Returns null, or the error's text. To be called before
// launch(): on a device's first call it lets the kernels have what they need there.
const char* shape_for(const Work& work, Shape& shape);

// Bytes of device memory that launch() needs, in one allocation aligned to 256 bytes; 0 for most calls.
size_t workspace_bytes(const Work& work, const Shape& shape);

// Enqueues the work on `stream` (a cudaStream_t). Returns null, or the error's text; nothing is synchronised.
const char* launch(const Work& work, const Shape& shape, void* workspace, void* stream);

}  // namespace fastsample::cuda
