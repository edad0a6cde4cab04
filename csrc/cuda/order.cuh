// The order of floats as an order of unsigned integers.
#pragma once

#include "portable.cuh"
#include "work.h"

namespace fastsample::cuda {

__device__ __forceinline__ uint32_t rank_of(float x) {
  return static_cast<uint32_t>(order_key(x)) ^ 0x80000000u;
}
__device__ __forceinline__ float value_of_rank(uint32_t rank) {
  return order_key_float(static_cast<int32_t>(rank ^ 0x80000000u));
}

}  // namespace fastsample::cuda
