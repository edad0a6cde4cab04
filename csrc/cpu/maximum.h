// Step maximum: one read of the row gives its maximum, whether it holds a NaN, and each chunk's maximum, by which
// the later steps skip chunks.
#pragma once

#include "load.h"

namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET {

// Four accumulators hide the latency of max; one comparison finds the NaNs of two vectors.
template <bool kRefuseNegative, class Row>
inline Maximum maximum(const Row& row, const Chunks& chunks, int64_t first, int64_t last, float* chunk_maximum) {
  const F lowest = Simd::set(-kInfinity);
  F row_most = lowest;
  M refused = Simd::none();
  for (int64_t chunk = first; chunk < last; ++chunk) {
    const int64_t begin = chunks.begin(chunk), end = chunks.end(chunk);
    F most0 = lowest, most1 = lowest, most2 = lowest, most3 = lowest;
    int64_t i = begin;
    for (; i + 4 * kWidth <= end; i += 4 * kWidth) {
      const F x0 = row.load(i), x1 = row.load(i + kWidth), x2 = row.load(i + 2 * kWidth), x3 = row.load(i + 3 * kWidth);
      row.prefetch(i);
      most0 = Simd::max(x0, most0);
      most1 = Simd::max(x1, most1);
      most2 = Simd::max(x2, most2);
      most3 = Simd::max(x3, most3);
      refused = Simd::either(refused, Simd::either(Simd::unordered(x0, x1), Simd::unordered(x2, x3)));
      if constexpr (kRefuseNegative) {
        const F least = Simd::min(Simd::min(x0, x1), Simd::min(x2, x3));
        refused = Simd::either(refused, Simd::greater(Simd::set(0.0f), least));
      }
    }
    for_each_vector(row, i, end, [&](F x, int64_t at) {
      most0 = Simd::max(x, most0);
      refused = Simd::either(refused, Simd::unordered(x, x));
      if constexpr (kRefuseNegative) {
        // The padding of a tail is -inf and no probability: raise it to 0 before looking for negative ones.
        if (end - at < kWidth) {
          float lanes[kWidth];
          Simd::store(lanes, x);
          for (int64_t lane = end - at; lane < kWidth; ++lane) lanes[lane] = 0.0f;
          x = Simd::load(lanes);
        }
        refused = Simd::either(refused, Simd::greater(Simd::set(0.0f), x));
      }
    });
    const F most = Simd::max(Simd::max(most0, most1), Simd::max(most2, most3));
    chunk_maximum[chunk] = Simd::horizontal_max(most);
    row_most = Simd::max(most, row_most);
  }
  return {Simd::horizontal_max(row_most), Simd::any(refused)};
}

inline Maximum larger(Maximum a, Maximum b) {
  return {a.value > b.value ? a.value : b.value, a.invalid || b.invalid};
}

// The first token equal to the maximum: the greedy choice of law section 1.
template <class Row>
inline int64_t first_maximum(const Row& row, const Chunks& chunks, const float* chunk_maximum, float most) {
  int64_t chunk = 0;
  while (chunk_maximum[chunk] != most) ++chunk;
  const F value = Simd::set(most);
  const int64_t end = chunks.end(chunk);
  for (int64_t i = chunks.begin(chunk);; i += kWidth) {
    const F x = i + kWidth <= end ? row.load(i) : row.load_tail(i, end - i);
    const M found = Simd::equal(x, value);
    if (Simd::any(found)) return i + Simd::first(found);
  }
}

}  // namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET
