// What no sampler can be faster than, measured in the same run: one read of the logits' bytes, and an empty launch.
// Compiled by floor.py into a small shared library; no torch.
#include <cuda_runtime.h>

#include <cstdint>

namespace {

constexpr int kLoadsInFlight = 8;

__device__ __forceinline__ uint4 load_once(const uint4* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

__global__ void read_kernel(const uint4* data, int64_t count, uint32_t* sink) {
  const int64_t threads = int64_t{gridDim.x} * blockDim.x;
  int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  uint32_t mixed = 0;
  for (; i + (kLoadsInFlight - 1) * threads < count; i += kLoadsInFlight * threads) {
    uint4 v[kLoadsInFlight];
#pragma unroll
    for (int j = 0; j < kLoadsInFlight; ++j) v[j] = load_once(data + i + j * threads);
#pragma unroll
    for (int j = 0; j < kLoadsInFlight; ++j) mixed ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  for (; i < count; i += threads) {
    const uint4 v = load_once(data + i);
    mixed ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  // Nearly never true, but the compiler cannot know, so the loads stay.
  if (mixed == 0x9E3779B9u) *sink = mixed;
}

__global__ void empty_kernel() {}

}  // namespace

// Reads `count` times 16 bytes. Returns a cudaError_t, as the next function does.
extern "C" int floor_read(const void* data, int64_t count, void* sink, int blocks, int threads, void* stream) {
  read_kernel<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(static_cast<const uint4*>(data), count,
                                                                         static_cast<uint32_t*>(sink));
  return cudaGetLastError();
}

extern "C" int floor_launch(int blocks, int threads, void* stream) {
  empty_kernel<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>();
  return cudaGetLastError();
}
