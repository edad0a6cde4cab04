// What the two files of the emulated kernels' binding share: the memory that a launch touches.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "cuda/policy.h"
#include "simt.h"

namespace fastsample::cuda {

inline size_t span(int64_t rows, int64_t row_stride, int64_t columns, int64_t stride) {
  return rows == 0 || columns == 0 ? 0 : static_cast<size_t>((rows - 1) * row_stride + (columns - 1) * stride + 1);
}

template <class T>
void add(std::vector<simt::Buffer>& buffers, const char* name, const PerRow<T>& parameter, int64_t rows) {
  if (parameter.rows)
    buffers.push_back({parameter.rows, span(1, 0, rows, parameter.stride) * sizeof(T), name, simt::Buffer::kInput});
}

inline std::unique_ptr<void, decltype(&free)> allocate_workspace(size_t bytes) {
  constexpr unsigned char kGarbage = 0xA5;
  void* memory = nullptr;
  if (bytes > 0 && posix_memalign(&memory, 256, bytes) != 0) throw std::bad_alloc();
  if (memory) memset(memory, kGarbage, bytes);
  return {memory, &free};
}

inline simt::Launch launch_of(const Work& work, const Shape& shape, const simt::Schedule& schedule,
                              std::vector<simt::Buffer> buffers) {
  const auto blocks = static_cast<uint32_t>(shape.blocks);
  return {static_cast<uint32_t>(work.rows) * blocks,
          static_cast<uint32_t>(shape.threads),
          shape.cluster ? blocks : 1,
          shape.resident ? static_cast<size_t>(resident_bytes(work, shape.blocks, shape.threads)) : 0,
          needs_workspace(shape) ? 2 * blocks : 1,  // the blocks of two rows at once
          schedule,
          std::move(buffers)};
}

void bind_requests(pybind11::module_& module);

}  // namespace fastsample::cuda
