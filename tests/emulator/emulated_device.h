// What kernels see where csrc/cuda/portable.cuh and nvcc give them a GPU: the same names, on the emulator.
//
// Only what CUDA has is here, with CUDA's types, so that what compiles here compiles with nvcc.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simt.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

#define threadIdx (::simt::running->thread_index)
#define blockIdx (::simt::running->block_index)
#define blockDim (::simt::running->block_size)
#define gridDim (::simt::running->grid_size)

#define SHARED_ARRAY(T, name, count)                                                                   \
  static ::simt::SharedMemory name##_declaration = {sizeof(T) * (count), alignof(T), #name, false, 0}; \
  auto& name = *static_cast<T(*)[count]>(::simt::shared(name##_declaration))
#define SHARED_VARIABLE(T, name)                                                             \
  static ::simt::SharedMemory name##_declaration = {sizeof(T), alignof(T), #name, false, 0}; \
  T& name = *static_cast<T*>(::simt::shared(name##_declaration))
#define SHARED_DYNAMIC(T, name)                                                     \
  static ::simt::SharedMemory name##_declaration = {0, alignof(T), #name, true, 0}; \
  T* const name = static_cast<T*>(::simt::shared(name##_declaration))

struct alignas(16) uint4 {
  unsigned int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned int x, y;
};
inline uint4 make_uint4(unsigned int x, unsigned int y, unsigned int z, unsigned int w) {
  return {x, y, z, w};
}

// --- barriers and fences

inline void __syncthreads(SIMT_CALLER) {
  ::simt::block_barrier(::simt::Vote::kNone, false, site);
}
inline int __syncthreads_count(int predicate, SIMT_CALLER) {
  return ::simt::block_barrier(::simt::Vote::kCount, predicate != 0, site);
}
inline int __syncthreads_or(int predicate, SIMT_CALLER) {
  return ::simt::block_barrier(::simt::Vote::kAny, predicate != 0, site);
}
inline void __syncwarp(unsigned int mask = 0xFFFFFFFFu, SIMT_CALLER) {
  ::simt::warp_operation(::simt::WarpOperation::kSync, mask, 0, 0, 32, site);
}
inline void __threadfence() {
  ::simt::fence();
}

// --- warp operations

namespace simt {

template <class T>
T shuffle(WarpOperation operation, unsigned int mask, T value, unsigned int argument, int width, Site site) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "CUDA shuffles nothing else");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(value));
  bits = warp_operation(operation, mask, bits, argument, static_cast<uint32_t>(width), site);
  memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace simt

template <class T>
T __shfl_sync(unsigned int mask, T value, int lane, int width = 32, SIMT_CALLER) {
  return ::simt::shuffle(::simt::WarpOperation::kShuffle, mask, value, static_cast<unsigned int>(lane), width, site);
}
template <class T>
T __shfl_up_sync(unsigned int mask, T value, unsigned int distance, int width = 32, SIMT_CALLER) {
  return ::simt::shuffle(::simt::WarpOperation::kShuffleUp, mask, value, distance, width, site);
}
template <class T>
T __shfl_down_sync(unsigned int mask, T value, unsigned int distance, int width = 32, SIMT_CALLER) {
  return ::simt::shuffle(::simt::WarpOperation::kShuffleDown, mask, value, distance, width, site);
}
template <class T>
T __shfl_xor_sync(unsigned int mask, T value, int bits, int width = 32, SIMT_CALLER) {
  return ::simt::shuffle(::simt::WarpOperation::kShuffleXor, mask, value, static_cast<unsigned int>(bits), width, site);
}

inline unsigned int __ballot_sync(unsigned int mask, int predicate, SIMT_CALLER) {
  return static_cast<unsigned int>(
      ::simt::warp_operation(::simt::WarpOperation::kBallot, mask, predicate != 0, 0, 32, site));
}
inline int __any_sync(unsigned int mask, int predicate, SIMT_CALLER) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned int mask, int predicate, SIMT_CALLER) {
  return __ballot_sync(mask, predicate, site) == mask;
}

inline unsigned int __reduce_add_sync(unsigned int mask, unsigned int value, SIMT_CALLER) {
  return static_cast<unsigned int>(::simt::warp_operation(::simt::WarpOperation::kAdd, mask, value, 0, 32, site));
}
inline unsigned int __reduce_min_sync(unsigned int mask, unsigned int value, SIMT_CALLER) {
  return static_cast<unsigned int>(::simt::warp_operation(::simt::WarpOperation::kMinimum, mask, value, 0, 32, site));
}
inline unsigned int __reduce_max_sync(unsigned int mask, unsigned int value, SIMT_CALLER) {
  return static_cast<unsigned int>(::simt::warp_operation(::simt::WarpOperation::kMaximum, mask, value, 0, 32, site));
}

// --- atomics, in shared and global memory

#define SIMT_ATOMIC(name, T, operation)                                                                   \
  inline T name(T* address, T value) {                                                                    \
    return static_cast<T>(::simt::atomic(::simt::AtomicOperation::operation, address, sizeof(T), value)); \
  }
SIMT_ATOMIC(atomicAdd, unsigned int, kAdd)
SIMT_ATOMIC(atomicAdd, unsigned long long, kAdd)
SIMT_ATOMIC(atomicMin, unsigned int, kMinimum)
SIMT_ATOMIC(atomicMax, unsigned int, kMaximum)
SIMT_ATOMIC(atomicOr, unsigned int, kOr)
#undef SIMT_ATOMIC

// --- single instructions

inline unsigned int __float_as_uint(float x) {
  unsigned int bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float __uint_as_float(unsigned int bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

// This file is compiled with the law's flags: each operation is rounded on its own.
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}

// a + b rounded down. The sum of two doubles and what its rounding lost (Knuth's TwoSum) are together exact; the float
// below or at both is wanted.
inline float __fadd_rd(float a, float b) {
  const double x = a, y = b, sum = x + y;
  if (sum == 0) return std::signbit(a) || std::signbit(b) ? -0.0f : 0.0f;
  const double y_in_sum = sum - x;
  const double lost = (x - (sum - y_in_sum)) + (y - y_in_sum);
  const float nearest = static_cast<float>(sum);
  const bool above = nearest > sum || (nearest == sum && lost < 0);
  return above ? std::nextafterf(nearest, -HUGE_VALF) : nearest;
}

inline unsigned long long __float2ull_rz(float x) {
  if (x != x) return 0x8000000000000000u;
  if (x <= 0) return 0;
  return x < 0x1p64f ? static_cast<unsigned long long>(x) : 0xFFFFFFFFFFFFFFFFu;
}

inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline int __clz(int x) {
  return x ? __builtin_clz(static_cast<unsigned int>(x)) : 32;
}
inline int __clzll(long long x) {
  return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64;
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __popc(unsigned int x) {
  return __builtin_popcount(x);
}

// --- the names of portable.cuh

namespace fastsample::cuda {

inline uint32_t cluster_rank() {
  return ::simt::running->cluster_rank;
}
inline uint32_t cluster_size() {
  return ::simt::running->cluster_size;
}
inline void cluster_arrive(SIMT_CALLER) {
  ::simt::cluster_arrive(site);
}
inline void cluster_wait(SIMT_CALLER) {
  ::simt::cluster_wait(site);
}
template <class T>
T* cluster_map(T* mine, uint32_t rank, SIMT_CALLER) {
  return static_cast<T*>(::simt::cluster_map(mine, rank, site));
}
inline void wait_for_earlier_kernels() {
  ::simt::wait_for_earlier_kernels();
}

// Of +0.0 and -0.0 either may be the larger: the instruction and its replacement on older devices differ.
inline float maximum_or_nan(float a, float b) {
  return a > b || a != a ? a : b;
}

inline float half_to_float(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3FFu;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  return __uint_as_float(sign | (exponent == 31 ? 0x7F800000u : (exponent + 112) << 23) | fraction << 13);
}

inline uint4 load_once(const uint4* from, SIMT_CALLER) {
  ::simt::check_constant_load(from, sizeof(*from), site);
  return *from;
}
inline uint2 load_once(const uint2* from, SIMT_CALLER) {
  ::simt::check_constant_load(from, sizeof(*from), site);
  return *from;
}

}  // namespace fastsample::cuda
