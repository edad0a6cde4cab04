// The sampling law (docs/law.md) one number at a time: its constants, and what one row or draw computes.
// No torch, no CUDA headers, no vector code: host and device kernels and the tests all share it.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define FASTSAMPLE_FUNCTION __host__ __device__ inline
#else
// Always inlined: a copy that the compiler kept in a file built for AVX-512 could be the one linked for all files.
#define FASTSAMPLE_FUNCTION inline __attribute__((always_inline))
#endif

// Left to itself gcc 12 calls the weight of a vector as a function, through memory (seen in a profile). Inlining also
// keeps functions that several instruction sets share out of the linker's choice.
#define FASTSAMPLE_INLINE inline __attribute__((always_inline))

namespace fastsample {

enum class Order : int64_t { kTopKFirst = 0, kMinPFirst = 1, kJoint = 2 };

// Law section 1. The polynomial 2^f on [0, 1], constant term first.
constexpr float kLog2E = 0x1.715476p+0f;
constexpr float kPolynomial[6] = {0x1.0p+0f,      0x1.62e4c8p-1f, 0x1.ebd8a0p-3f,
                                  0x1.c94440p-5f, 0x1.269df0p-7f, 0x1.eca6f0p-10f};
constexpr int kWeightBits = 40;            // the largest weight of a row of logits is 2^40
constexpr float kLowestExponent = -40.0f;  // below it every weight is 0
constexpr uint64_t kLargestWeight = uint64_t{1} << kWeightBits;
constexpr float kFloatMax = 0x1.fffffep+127f;
constexpr float kInfinity = __builtin_inff();

FASTSAMPLE_FUNCTION uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}

FASTSAMPLE_FUNCTION float bits_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

// c of the law. One correctly rounded division; a denormal temperature gives inf and -0.0 gives -inf, hence the rest.
FASTSAMPLE_FUNCTION float exponent_scale(float temperature) {
#if defined(__CUDA_ARCH__)
  const float scale = __fdiv_rn(kLog2E, temperature);  // whatever nvcc is told of precision
#else
  const float scale = kLog2E / temperature;
#endif
  return temperature != 0 && scale < kFloatMax ? scale : kFloatMax;
}

// floor(d) for -2^22 < d <= 0 without the libm call that baseline x86-64 makes of floorf.
FASTSAMPLE_FUNCTION float floor_of(float d) {
  const float truncated = static_cast<float>(static_cast<int32_t>(d));
  return truncated > d ? truncated - 1.0f : truncated;
}

// Law section 2 as an integer order of floats: larger float, larger key, neighbours one apart, -0.0 and +0.0 both 0.
// (Without the folding, halving an interval that ends at zero would never end.)
FASTSAMPLE_FUNCTION int32_t order_key(float x) {
  const int32_t bits = static_cast<int32_t>(float_bits(x));
  return bits >= 0 ? bits : INT32_MIN - bits;
}

FASTSAMPLE_FUNCTION float order_key_float(int32_t key) {
  return bits_float(static_cast<uint32_t>(key >= 0 ? key : INT32_MIN - key));
}

// floor(a * b / 2^64)
FASTSAMPLE_FUNCTION uint64_t multiply_high(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(a, b);
#else
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
#endif
}

// Law section 3: max(1, ceil(fraction * total)) for 0 <= fraction <= 1, exact.
// A float32 is an integer below 2^24 over a power of two, so the product has at most 24 + 62 bits.
FASTSAMPLE_FUNCTION uint64_t mass_bound(float fraction, uint64_t total) {
  if (fraction < 0x1p-62f) return 1;
  const uint32_t bits = float_bits(fraction);
  const int shift = 150 - static_cast<int>(bits >> 23);  // fraction = significand / 2^shift, 23 <= shift <= 86
  const uint64_t significand = (bits & 0x7FFFFFu) | 0x800000u;
  unsigned __int128 product = static_cast<unsigned __int128>(significand) * total;
  product += (static_cast<unsigned __int128>(1) << shift) - 1;
  const uint64_t bound = static_cast<uint64_t>(product >> shift);
  return bound > 1 ? bound : 1;
}

// Law section 4: Philox4x32-10 (Salmon et al. 2011).
struct PhiloxWords {
  uint64_t word[2];  // draws 2i and 2i + 1
};

FASTSAMPLE_FUNCTION PhiloxWords philox(uint64_t seed, uint64_t offset, uint32_t stream, uint32_t draw_pair) {
  uint32_t counter[4] = {static_cast<uint32_t>(offset), static_cast<uint32_t>(offset >> 32), stream, draw_pair};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter[2];
    const uint32_t next0 = static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0];
    const uint32_t next2 = static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1];
    counter[0] = next0;
    counter[1] = static_cast<uint32_t>(product1);
    counter[2] = next2;
    counter[3] = static_cast<uint32_t>(product0);
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return {
      {counter[0] | (static_cast<uint64_t>(counter[1]) << 32), counter[2] | (static_cast<uint64_t>(counter[3]) << 32)}};
}

}  // namespace fastsample
