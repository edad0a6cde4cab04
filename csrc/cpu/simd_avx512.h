// Sixteen tokens at a time. The interface is the same in simd_avx2.h and simd_scalar.h.
#pragma once

#include <immintrin.h>

#include "row.h"

namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET {

struct Simd {
  static constexpr int kWidth = 16;
  using F = __m512;
  using M = __mmask16;
  struct U {  // one 64-bit integer per token
    __m512i low, high;
  };

  FASTSAMPLE_INLINE static F load(const float* p) { return _mm512_loadu_ps(p); }
  FASTSAMPLE_INLINE static F load_bfloat16(const uint16_t* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  FASTSAMPLE_INLINE static F load_float16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  FASTSAMPLE_INLINE static void store(float* p, F x) { _mm512_storeu_ps(p, x); }

  FASTSAMPLE_INLINE static F set(float x) { return _mm512_set1_ps(x); }
  FASTSAMPLE_INLINE static F add(F a, F b) { return _mm512_add_ps(a, b); }
  FASTSAMPLE_INLINE static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  FASTSAMPLE_INLINE static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  // b where a is NaN
  FASTSAMPLE_INLINE static F max(F a, F b) { return _mm512_max_ps(a, b); }
  FASTSAMPLE_INLINE static F min(F a, F b) { return _mm512_min_ps(a, b); }
  FASTSAMPLE_INLINE static F add_where(M m, F a, F b) { return _mm512_mask_add_ps(a, m, a, b); }  // a + (m ? b : 0)
  // floor(x) of -2^22 < x <= 0 without vrndscaleps and vscalefps (equally fast where it was measured): rounded down,
  // the sum with 1.5 * 2^23 holds floor(x) in its low bits.
  struct Floor {
    F value;
    __m512i exponent;  // floor(x) in the place of a float's exponent
  };
  FASTSAMPLE_INLINE static Floor floor(F x) {
    const F magic = _mm512_set1_ps(0x1.8p23f);
    const F sum = _mm512_add_round_ps(x, magic, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    return {_mm512_sub_ps(sum, magic), _mm512_slli_epi32(_mm512_castps_si512(sum), 23)};
  }
  // x * 2^n where both are normal numbers
  FASTSAMPLE_INLINE static F scale_exponent(F x, Floor n) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), n.exponent));
  }
  FASTSAMPLE_INLINE static F select(M m, F a, F b) { return _mm512_mask_blend_ps(m, b, a); }
  FASTSAMPLE_INLINE static float horizontal_max(F x) { return _mm512_reduce_max_ps(x); }
  FASTSAMPLE_INLINE static float horizontal_min(F x) { return _mm512_reduce_min_ps(x); }
  FASTSAMPLE_INLINE static float horizontal_sum(F x) { return _mm512_reduce_add_ps(x); }

  FASTSAMPLE_INLINE static M greater(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  FASTSAMPLE_INLINE static M greater_equal(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  FASTSAMPLE_INLINE static M equal(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  FASTSAMPLE_INLINE static M unordered(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q); }
  FASTSAMPLE_INLINE static M none() { return 0; }
  // Bit i chooses token i.
  FASTSAMPLE_INLINE static M chosen(uint32_t bits) { return static_cast<M>(bits); }
  FASTSAMPLE_INLINE static M either(M a, M b) { return _kor_mask16(a, b); }
  FASTSAMPLE_INLINE static M both(M a, M b) { return _kand_mask16(a, b); }
  FASTSAMPLE_INLINE static M but_not(M a, M b) { return _kandn_mask16(b, a); }
  FASTSAMPLE_INLINE static bool any(M m) { return m != 0; }
  FASTSAMPLE_INLINE static int count(M m) { return __builtin_popcount(m); }
  FASTSAMPLE_INLINE static int first(M m) { return __builtin_ctz(m); }

  // floor(y) of 0 <= y <= 2^40
  FASTSAMPLE_INLINE static U truncate(F y) {
    return {_mm512_cvttps_epu64(_mm512_castps512_ps256(y)), _mm512_cvttps_epu64(_mm512_extractf32x8_ps(y, 1))};
  }
  FASTSAMPLE_INLINE static U zero() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }
  FASTSAMPLE_INLINE static U add(U a, U b) {
    return {_mm512_add_epi64(a.low, b.low), _mm512_add_epi64(a.high, b.high)};
  }
  FASTSAMPLE_INLINE static U add_where(M m, U a, U b) {  // a + (m ? b : 0)
    return {_mm512_mask_add_epi64(a.low, static_cast<__mmask8>(m), a.low, b.low),
            _mm512_mask_add_epi64(a.high, static_cast<__mmask8>(m >> 8), a.high, b.high)};
  }
  // floor(a * floor(b) / 2^20) of products below 2^64, for 0 <= b < 2^31
  FASTSAMPLE_INLINE static U scaled_product(U a, F b) {
    const __m512i factor = _mm512_cvttps_epi32(b);
    return {product(a.low, _mm512_castsi512_si256(factor)), product(a.high, _mm512_extracti32x8_epi32(factor, 1))};
  }
  FASTSAMPLE_INLINE static uint64_t sum(U a) {
    return static_cast<uint64_t>(_mm512_reduce_add_epi64(_mm512_add_epi64(a.low, a.high)));
  }
  FASTSAMPLE_INLINE static void store(uint64_t* p, U a) {
    _mm512_storeu_si512(p, a.low);
    _mm512_storeu_si512(p + 8, a.high);
  }

  // The chosen tokens and their indices, packed; a whole vector is written. (vcompressps to memory is slow on some
  // processors, so the packing is done in registers.)
  FASTSAMPLE_INLINE static void store_chosen(M m, F x, float* logit, uint32_t first_index, uint32_t* index) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i indices = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first_index)), lanes);
    _mm512_storeu_ps(logit, _mm512_maskz_compress_ps(m, x));
    _mm512_storeu_si512(index, _mm512_maskz_compress_epi32(m, indices));
  }
  FASTSAMPLE_INLINE static void store_chosen(M m, F x, float* logit, const uint32_t* from, uint32_t* index) {
    const __m512i indices = _mm512_loadu_si512(from);
    _mm512_storeu_ps(logit, _mm512_maskz_compress_ps(m, x));
    _mm512_storeu_si512(index, _mm512_maskz_compress_epi32(m, indices));
  }

 private:
  FASTSAMPLE_INLINE static __m512i product(__m512i a, __m256i b) {
    const __m512i factor = _mm512_cvtepu32_epi64(b);
    const __m512i high = _mm512_slli_epi64(_mm512_mul_epu32(_mm512_srli_epi64(a, 32), factor), 32);
    return _mm512_srli_epi64(_mm512_add_epi64(high, _mm512_mul_epu32(a, factor)), 20);
  }
};

}  // namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET
