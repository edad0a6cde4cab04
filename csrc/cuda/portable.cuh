// The few spellings that differ between nvcc and the CPU emulator of tests/emulator, which has this file's names of its
// own: shared memory, thread-block clusters, and single instructions that CUDA C++ has no function for.
#pragma once

#if defined(FASTSAMPLE_EMULATOR)
#include "emulated_device.h"
#else

#include <cuda_runtime.h>

#include <cstdint>

#define SHARED_ARRAY(T, name, count) __shared__ T name[count]
#define SHARED_VARIABLE(T, name) __shared__ T name
// The memory whose size the launch chooses, aligned to 16 bytes.
#define SHARED_DYNAMIC(T, name)                           \
  extern __shared__ __align__(16) uint8_t name##_bytes[]; \
  T* const name = reinterpret_cast<T*>(name##_bytes)

namespace fastsample::cuda {

// Clusters exist from sm_90 on. Below it, a block is a cluster of one.
#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ uint32_t cluster_size() {
  uint32_t size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The address in block `rank` of what has the address `mine` in this block's shared memory.
template <class T>
__device__ __forceinline__ T* cluster_map(T* mine, uint32_t rank) {
  uint64_t theirs;
  asm("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(reinterpret_cast<uint64_t>(mine)), "r"(rank));
  return reinterpret_cast<T*>(theirs);
}
// In a launch that may start before the kernel ahead of it in the stream has ended: waits for that end. Else nothing.
__device__ __forceinline__ void wait_for_earlier_kernels() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
#else
__device__ __forceinline__ uint32_t cluster_rank() {
  return 0;
}
__device__ __forceinline__ uint32_t cluster_size() {
  return 1;
}
__device__ __forceinline__ void cluster_arrive() {}
__device__ __forceinline__ void cluster_wait() {
  __syncthreads();
}
template <class T>
__device__ __forceinline__ T* cluster_map(T* mine, uint32_t) {
  return mine;
}
__device__ __forceinline__ void wait_for_earlier_kernels() {}
#endif

// The larger number, or NaN if either is: one instruction from sm_80 on, where fmaxf would drop the NaN.
__device__ __forceinline__ float maximum_or_nan(float a, float b) {
#if __CUDA_ARCH__ >= 800
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
#else
  return a > b || a != a ? a : b;
#endif
}

__device__ __forceinline__ float half_to_float(uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}

// 16 or 8 bytes that nobody reads again: they pass the first-level cache by.
__device__ __forceinline__ uint4 load_once(const uint4* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}
__device__ __forceinline__ uint2 load_once(const uint2* from) {
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(from));
  return v;
}

}  // namespace fastsample::cuda
#endif
