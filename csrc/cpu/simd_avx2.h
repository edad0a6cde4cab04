// Eight tokens at a time. The interface is the same in simd_avx512.h and simd_scalar.h.
#pragma once

#include <immintrin.h>

#include "row.h"

namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET {

// AVX2 has no compress instruction: for each mask, the permutation that packs its lanes.
struct PackTable {
  alignas(32) uint32_t lane[256][8];
  constexpr PackTable() : lane() {
    for (int mask = 0; mask < 256; ++mask) {
      int packed = 0;
      for (int i = 0; i < 8; ++i)
        if (mask >> i & 1) lane[mask][packed++] = static_cast<uint32_t>(i);
    }
  }
};
inline constexpr PackTable kPack;

struct Simd {
  static constexpr int kWidth = 8;
  using F = __m256;
  using M = __m256;  // all bits of a chosen token's lane are set
  struct U {         // one 64-bit integer per token
    __m256i low, high;
  };

  FASTSAMPLE_INLINE static F load(const float* p) { return _mm256_loadu_ps(p); }
  FASTSAMPLE_INLINE static F load_bfloat16(const uint16_t* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  FASTSAMPLE_INLINE static F load_float16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  FASTSAMPLE_INLINE static void store(float* p, F x) { _mm256_storeu_ps(p, x); }

  FASTSAMPLE_INLINE static F set(float x) { return _mm256_set1_ps(x); }
  FASTSAMPLE_INLINE static F add(F a, F b) { return _mm256_add_ps(a, b); }
  FASTSAMPLE_INLINE static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  FASTSAMPLE_INLINE static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  // b where a is NaN
  FASTSAMPLE_INLINE static F max(F a, F b) { return _mm256_max_ps(a, b); }
  FASTSAMPLE_INLINE static F min(F a, F b) { return _mm256_min_ps(a, b); }
  FASTSAMPLE_INLINE static F add_where(M m, F a, F b) {
    return _mm256_add_ps(a, _mm256_and_ps(m, b));
  }  // a + (m ? b : 0)
  struct Floor {
    F value;
    __m256i exponent;  // floor(x) in the place of a float's exponent
  };
  FASTSAMPLE_INLINE static Floor floor(F x) {
    const F n = _mm256_floor_ps(x);
    return {n, _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)};
  }
  // x * 2^n where both are normal numbers
  FASTSAMPLE_INLINE static F scale_exponent(F x, Floor n) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), n.exponent));
  }
  FASTSAMPLE_INLINE static F select(M m, F a, F b) { return _mm256_blendv_ps(b, a, m); }
  FASTSAMPLE_INLINE static float horizontal_max(F x) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
  }
  FASTSAMPLE_INLINE static float horizontal_min(F x) {
    const F zero = _mm256_setzero_ps();
    return -horizontal_max(_mm256_sub_ps(zero, x));
  }
  FASTSAMPLE_INLINE static float horizontal_sum(F x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
  }

  FASTSAMPLE_INLINE static M greater(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
  FASTSAMPLE_INLINE static M greater_equal(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
  FASTSAMPLE_INLINE static M equal(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
  FASTSAMPLE_INLINE static M unordered(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_UNORD_Q); }
  FASTSAMPLE_INLINE static M none() { return _mm256_setzero_ps(); }
  // Bit i chooses token i.
  FASTSAMPLE_INLINE static M chosen(uint32_t bits) {
    const __m256i lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i mine = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lanes);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(mine, lanes));
  }
  FASTSAMPLE_INLINE static M either(M a, M b) { return _mm256_or_ps(a, b); }
  FASTSAMPLE_INLINE static M both(M a, M b) { return _mm256_and_ps(a, b); }
  FASTSAMPLE_INLINE static M but_not(M a, M b) { return _mm256_andnot_ps(b, a); }
  FASTSAMPLE_INLINE static int bits(M m) { return _mm256_movemask_ps(m); }
  FASTSAMPLE_INLINE static bool any(M m) { return bits(m) != 0; }
  FASTSAMPLE_INLINE static int count(M m) { return __builtin_popcount(static_cast<unsigned>(bits(m))); }
  FASTSAMPLE_INLINE static int first(M m) { return __builtin_ctz(static_cast<unsigned>(bits(m))); }

  // floor(y) of 0 <= y <= 2^40: the significand shifted by the exponent, as the law writes it.
  // y below 1 shifts by more than 40 bits, which leaves nothing of the 41.
  FASTSAMPLE_INLINE static U truncate(F y) {
    const __m256i bits = _mm256_castps_si256(y);
    const __m256i significand =
        _mm256_or_si256(_mm256_and_si256(bits, _mm256_set1_epi32(0x7FFFFF)), _mm256_set1_epi32(0x800000));
    const __m256i shift = _mm256_sub_epi32(_mm256_set1_epi32(127 + 40), _mm256_srli_epi32(bits, 23));
    return {shifted(_mm256_castsi256_si128(significand), _mm256_castsi256_si128(shift)),
            shifted(_mm256_extracti128_si256(significand, 1), _mm256_extracti128_si256(shift, 1))};
  }
  FASTSAMPLE_INLINE static U zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  FASTSAMPLE_INLINE static U add(U a, U b) {
    return {_mm256_add_epi64(a.low, b.low), _mm256_add_epi64(a.high, b.high)};
  }
  FASTSAMPLE_INLINE static U add_where(M m, U a, U b) {  // a + (m ? b : 0)
    const __m256i mask = _mm256_castps_si256(m);
    const __m256i low = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(mask));
    const __m256i high = _mm256_cvtepi32_epi64(_mm256_extracti128_si256(mask, 1));
    return {_mm256_add_epi64(a.low, _mm256_and_si256(low, b.low)),
            _mm256_add_epi64(a.high, _mm256_and_si256(high, b.high))};
  }
  // floor(a * floor(b) / 2^20) of products below 2^64, for 0 <= b < 2^31
  FASTSAMPLE_INLINE static U scaled_product(U a, F b) {
    const __m256i factor = _mm256_cvttps_epi32(b);
    return {product(a.low, _mm256_castsi256_si128(factor)), product(a.high, _mm256_extracti128_si256(factor, 1))};
  }
  FASTSAMPLE_INLINE static uint64_t sum(U a) {
    const __m256i half = _mm256_add_epi64(a.low, a.high);
    const __m128i pair = _mm_add_epi64(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    return static_cast<uint64_t>(_mm_cvtsi128_si64(pair)) + static_cast<uint64_t>(_mm_extract_epi64(pair, 1));
  }
  FASTSAMPLE_INLINE static void store(uint64_t* p, U a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 4), a.high);
  }

  // The chosen tokens and their indices, packed; a whole vector is written.
  FASTSAMPLE_INLINE static void store_chosen(M m, F x, float* logit, uint32_t first_index, uint32_t* index) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    pack(m, x, _mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(first_index)), lanes), logit, index);
  }
  FASTSAMPLE_INLINE static void store_chosen(M m, F x, float* logit, const uint32_t* from, uint32_t* index) {
    pack(m, x, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), logit, index);
  }

 private:
  FASTSAMPLE_INLINE static __m256i product(__m256i a, __m128i b) {
    const __m256i factor = _mm256_cvtepu32_epi64(b);
    const __m256i high = _mm256_slli_epi64(_mm256_mul_epu32(_mm256_srli_epi64(a, 32), factor), 32);
    return _mm256_srli_epi64(_mm256_add_epi64(high, _mm256_mul_epu32(a, factor)), 20);
  }
  FASTSAMPLE_INLINE static __m256i shifted(__m128i significand, __m128i shift) {
    return _mm256_srlv_epi64(_mm256_slli_epi64(_mm256_cvtepu32_epi64(significand), 17), _mm256_cvtepu32_epi64(shift));
  }
  FASTSAMPLE_INLINE static void pack(M m, F x, __m256i indices, float* logit, uint32_t* index) {
    const __m256i order = _mm256_load_si256(reinterpret_cast<const __m256i*>(kPack.lane[bits(m)]));
    _mm256_storeu_ps(logit, _mm256_permutevar8x32_ps(x, order));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(index), _mm256_permutevar8x32_epi32(indices, order));
  }
};

}  // namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET
