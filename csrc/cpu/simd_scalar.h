// Plain C++ for any processor: four tokens at a time, in loops that a compiler turns into SSE2 or NEON.
// The interface is the same in simd_avx2.h and simd_avx512.h.
#pragma once

#include "row.h"

namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET {

struct Simd {
  static constexpr int kWidth = 4;
  struct F {
    float lane[kWidth];
  };
  struct M {
    int32_t lane[kWidth];  // -1 for a chosen token, else 0
  };
  struct U {
    uint64_t lane[kWidth];
  };

  FASTSAMPLE_INLINE static F load(const float* p) {
    F x;
    memcpy(&x, p, sizeof(x));
    return x;
  }
  FASTSAMPLE_INLINE static F load_bfloat16(const uint16_t* p) {
    F x;
    for (int i = 0; i < kWidth; ++i) x.lane[i] = bits_float(static_cast<uint32_t>(p[i]) << 16);
    return x;
  }
  FASTSAMPLE_INLINE static F load_float16(const uint16_t* p) {
    F x;
    for (int i = 0; i < kWidth; ++i) x.lane[i] = widen_float16(p[i]);
    return x;
  }
  FASTSAMPLE_INLINE static void store(float* p, F x) { memcpy(p, &x, sizeof(x)); }

  FASTSAMPLE_INLINE static F set(float value) {
    F x;
    for (float& lane : x.lane) lane = value;
    return x;
  }
  FASTSAMPLE_INLINE static F add(F a, F b) {
    for (int i = 0; i < kWidth; ++i) a.lane[i] = a.lane[i] + b.lane[i];
    return a;
  }
  FASTSAMPLE_INLINE static F sub(F a, F b) {
    for (int i = 0; i < kWidth; ++i) a.lane[i] = a.lane[i] - b.lane[i];
    return a;
  }
  FASTSAMPLE_INLINE static F mul(F a, F b) {
    for (int i = 0; i < kWidth; ++i) a.lane[i] = a.lane[i] * b.lane[i];
    return a;
  }
  // b where a is NaN
  FASTSAMPLE_INLINE static F max(F a, F b) {
    for (int i = 0; i < kWidth; ++i) a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
  }
  FASTSAMPLE_INLINE static F min(F a, F b) {
    for (int i = 0; i < kWidth; ++i) a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
  }
  FASTSAMPLE_INLINE static F add_where(M m, F a, F b) {  // a + (m ? b : 0)
    for (int i = 0; i < kWidth; ++i) a.lane[i] += m.lane[i] ? b.lane[i] : 0.0f;
    return a;
  }
  struct Floor {
    F value;
    uint32_t exponent[kWidth];  // floor(x) in the place of a float's exponent
  };
  // Exact for -4096 <= x <= 0, which is all that counts; other values are clamped, since their conversion to an integer
  // would be undefined.
  FASTSAMPLE_INLINE static Floor floor(F x) {
    Floor n;
    for (int i = 0; i < kWidth; ++i) {
      n.value.lane[i] = floor_of(x.lane[i] > -4096.0f ? x.lane[i] : -4096.0f);
      n.exponent[i] = static_cast<uint32_t>(static_cast<int32_t>(n.value.lane[i])) << 23;
    }
    return n;
  }
  // x * 2^n where both are normal numbers
  FASTSAMPLE_INLINE static F scale_exponent(F x, Floor n) {
    for (int i = 0; i < kWidth; ++i) x.lane[i] = bits_float(float_bits(x.lane[i]) + n.exponent[i]);
    return x;
  }
  FASTSAMPLE_INLINE static F select(M m, F a, F b) {
    for (int i = 0; i < kWidth; ++i) a.lane[i] = m.lane[i] ? a.lane[i] : b.lane[i];
    return a;
  }
  FASTSAMPLE_INLINE static float horizontal_max(F x) {
    float most = x.lane[0];
    for (float lane : x.lane) most = lane > most ? lane : most;
    return most;
  }
  FASTSAMPLE_INLINE static float horizontal_min(F x) {
    float least = x.lane[0];
    for (float lane : x.lane) least = lane < least ? lane : least;
    return least;
  }
  FASTSAMPLE_INLINE static float horizontal_sum(F x) {
    float total = 0;
    for (float lane : x.lane) total += lane;
    return total;
  }

  FASTSAMPLE_INLINE static M greater(F a, F b) {
    M m;
    for (int i = 0; i < kWidth; ++i) m.lane[i] = -(a.lane[i] > b.lane[i]);
    return m;
  }
  FASTSAMPLE_INLINE static M greater_equal(F a, F b) {
    M m;
    for (int i = 0; i < kWidth; ++i) m.lane[i] = -(a.lane[i] >= b.lane[i]);
    return m;
  }
  FASTSAMPLE_INLINE static M equal(F a, F b) {
    M m;
    for (int i = 0; i < kWidth; ++i) m.lane[i] = -(a.lane[i] == b.lane[i]);
    return m;
  }
  FASTSAMPLE_INLINE static M unordered(F a, F b) {
    M m;
    for (int i = 0; i < kWidth; ++i) m.lane[i] = -((a.lane[i] != a.lane[i]) | (b.lane[i] != b.lane[i]));
    return m;
  }
  FASTSAMPLE_INLINE static M none() { return M{}; }
  // Bit i chooses token i.
  FASTSAMPLE_INLINE static M chosen(uint32_t bits) {
    M m;
    for (int i = 0; i < kWidth; ++i) m.lane[i] = -static_cast<int32_t>(bits >> i & 1);
    return m;
  }
  FASTSAMPLE_INLINE static M either(M a, M b) {
    for (int i = 0; i < kWidth; ++i) a.lane[i] |= b.lane[i];
    return a;
  }
  FASTSAMPLE_INLINE static M both(M a, M b) {
    for (int i = 0; i < kWidth; ++i) a.lane[i] &= b.lane[i];
    return a;
  }
  FASTSAMPLE_INLINE static M but_not(M a, M b) {
    for (int i = 0; i < kWidth; ++i) a.lane[i] &= ~b.lane[i];
    return a;
  }
  FASTSAMPLE_INLINE static bool any(M m) { return (m.lane[0] | m.lane[1] | m.lane[2] | m.lane[3]) != 0; }
  FASTSAMPLE_INLINE static int count(M m) { return -(m.lane[0] + m.lane[1] + m.lane[2] + m.lane[3]); }
  FASTSAMPLE_INLINE static int first(M m) {
    int i = 0;
    while (!m.lane[i]) ++i;
    return i;
  }

  // floor(y) of 0 <= y <= 2^40: the significand shifted by the exponent, as the law writes it.
  FASTSAMPLE_INLINE static U truncate(F y) {
    U w;
    for (int i = 0; i < kWidth; ++i) {
      const uint32_t bits = float_bits(y.lane[i]);
      const uint64_t significand = (bits & 0x7FFFFFu) | 0x800000u;
      const uint32_t shift = 127 + 40 - (bits >> 23);
      w.lane[i] = shift <= 40 ? (significand << 17) >> shift : 0;
    }
    return w;
  }
  FASTSAMPLE_INLINE static U zero() { return U{}; }
  FASTSAMPLE_INLINE static U add(U a, U b) {
    for (int i = 0; i < kWidth; ++i) a.lane[i] += b.lane[i];
    return a;
  }
  FASTSAMPLE_INLINE static U add_where(M m, U a, U b) {  // a + (m ? b : 0)
    for (int i = 0; i < kWidth; ++i) a.lane[i] += b.lane[i] & static_cast<uint64_t>(static_cast<int64_t>(m.lane[i]));
    return a;
  }
  // floor(a * floor(b) / 2^20) of products below 2^64, for 0 <= b < 2^31
  FASTSAMPLE_INLINE static U scaled_product(U a, F b) {
    for (int i = 0; i < kWidth; ++i) a.lane[i] = a.lane[i] * static_cast<uint64_t>(b.lane[i]) >> 20;
    return a;
  }
  FASTSAMPLE_INLINE static uint64_t sum(U a) { return a.lane[0] + a.lane[1] + a.lane[2] + a.lane[3]; }
  FASTSAMPLE_INLINE static void store(uint64_t* p, U a) { memcpy(p, &a, sizeof(a)); }

  // The chosen tokens and their indices, packed.
  FASTSAMPLE_INLINE static void store_chosen(M m, F x, float* logit, uint32_t first_index, uint32_t* index) {
    for (int i = 0, packed = 0; i < kWidth; ++i)
      if (m.lane[i]) {
        logit[packed] = x.lane[i];
        index[packed++] = first_index + static_cast<uint32_t>(i);
      }
  }
  FASTSAMPLE_INLINE static void store_chosen(M m, F x, float* logit, const uint32_t* from, uint32_t* index) {
    for (int i = 0, packed = 0; i < kWidth; ++i)
      if (m.lane[i]) {
        logit[packed] = x.lane[i];
        index[packed++] = from[i];
      }
  }
};

}  // namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET
