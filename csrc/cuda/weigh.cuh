// Step weigh: the integer weight of each token (law sections 1 and 5).
#pragma once

#include "portable.cuh"
#include "work.h"

namespace fastsample::cuda {

// Device code may use the value of a constant array's element, but not its address.
template <int kPower>
__device__ __forceinline__ float coefficient() {
  constexpr float value = kPolynomial[kPower];
  return value;
}

struct Weight {
  enum class Kind : uint32_t { kLogits, kInfinite, kProbabilities };

  Kind kind;
  float most;
  float scale0;  // kLogits: c of the law
  float scale1;  // kProbabilities: scale0 * scale1 = 2^(b - 1 - e), which one float could not hold

  __device__ Weight(const Filters& filters, float largest, int64_t vocab) : most(largest), scale0(1), scale1(1) {
    if (filters.probabilities) {
      kind = Kind::kProbabilities;
      const int bits = 64 - __clzll(vocab - 1);  // ceil(log2 V); 0 for one token
      const int weight_bits = 62 - bits < kWeightBits ? 62 - bits : kWeightBits;
      // e = floor(log2 largest), also of a denormal
      const uint32_t pattern = __float_as_uint(largest);
      const int exponent =
          pattern >> 23 ? static_cast<int>(pattern >> 23) - 127 : 31 - __clz(static_cast<int>(pattern)) - 149;
      const int power = weight_bits - 1 - exponent;
      scale0 = __uint_as_float(static_cast<uint32_t>(power / 2 + 127) << 23);
      scale1 = __uint_as_float(static_cast<uint32_t>(power - power / 2 + 127) << 23);
    } else if (largest == kInfinity) {
      kind = Kind::kInfinite;
    } else {
      kind = Kind::kLogits;
      scale0 = exponent_scale(filters.temperature);
    }
  }

  // d of the law. In a row with +inf the infinite tokens have 0 and all others -inf.
  __device__ __forceinline__ float exponent(float x) const {
    if (kind == Kind::kInfinite) return x == kInfinity ? 0.0f : -kInfinity;
    return __fmul_rn(__fsub_rn(x, most), scale0);
  }

  // P(f), and -n as a shift; d from -126 to 0. Rounding down while adding 1.5 * 2^23 leaves floor(d) in the low bits:
  // one instruction at full rate, where a floor and a conversion take two of the slow pipe.
  static __device__ __forceinline__ float power(float d, uint32_t& shift) {
    constexpr float kShifter = 0x1.8p23f;
    const float shifted = __fadd_rd(d, kShifter);
    shift = 0x4B400000u - __float_as_uint(shifted);
    const float f = __fsub_rn(d, __fsub_rn(shifted, kShifter));
    float q = coefficient<5>();
    q = __fadd_rn(__fmul_rn(q, f), coefficient<4>());
    q = __fadd_rn(__fmul_rn(q, f), coefficient<3>());
    q = __fadd_rn(__fmul_rn(q, f), coefficient<2>());
    q = __fadd_rn(__fmul_rn(q, f), coefficient<1>());
    return __fadd_rn(__fmul_rn(q, f), coefficient<0>());
  }

  // Below d = -40 the weight is 0: there, clamped to -41, it is shifted out. A maximum is one slot, a comparison and a
  // selection of 64 bits three.
  static __device__ __forceinline__ uint64_t of_exponent(float d) {
    uint32_t shift;
    const float q = power(fmaxf(d, -41.0f), shift);
    return (static_cast<uint64_t>(__float_as_uint(q) - 0x3F000000u) << 17) >> shift;
  }

  __device__ __forceinline__ uint64_t of_special(float x) const {
    if (kind == Kind::kInfinite) return x == kInfinity ? kLargestWeight : 0;
    return x > 0 ? __float2ull_rz(__fmul_rn(__fmul_rn(x, scale0), scale1)) : 0;
  }

  __device__ __forceinline__ uint64_t operator()(float x) const {
    return kind == Kind::kLogits ? of_exponent(exponent(x)) : of_special(x);
  }

  // What the tokens of a vector for which keeps(i) holds weigh together: the kind is asked once a vector.
  template <int kTokens, class Keeps>
  __device__ __forceinline__ uint64_t sum(const float (&x)[kTokens], const Keeps& keeps) const {
    uint64_t total = 0;
    if (kind == Kind::kLogits) {
#pragma unroll
      for (int i = 0; i < kTokens; ++i) {
        const uint64_t w = of_exponent(__fmul_rn(__fsub_rn(x[i], most), scale0));
        total += keeps(i) ? w : 0;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kTokens; ++i) total += keeps(i) ? of_special(x[i]) : 0;
    }
    return total;
  }
};

}  // namespace fastsample::cuda
