// Step load: tokens of a row, widened to float32 (exact for float16 and bfloat16), a vector at a time.
#pragma once

#include "row.h"

#ifndef FASTSAMPLE_INSTRUCTION_SET
#error "include simd_scalar.h, simd_avx2.h or simd_avx512.h first"
#endif

namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET {

using F = Simd::F;
using M = Simd::M;
using U = Simd::U;
constexpr int kWidth = Simd::kWidth;

FASTSAMPLE_INLINE F load_vector(const float* p) {
  return Simd::load(p);
}

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};
FASTSAMPLE_INLINE F load_vector(const BFloat16* p) {
  return Simd::load_bfloat16(reinterpret_cast<const uint16_t*>(p));
}
FASTSAMPLE_INLINE F load_vector(const Float16* p) {
  return Simd::load_float16(reinterpret_cast<const uint16_t*>(p));
}

// Tokens next to each other in memory: rows as models write them, and gathered candidates.
template <class Element>
struct ContiguousRow {
  const Element* data;
  int64_t size;

  FASTSAMPLE_INLINE F load(int64_t i) const { return load_vector(data + i); }

  // Asks for what four vectors from token i on will need one page later. Without, the processor's own prefetch starts
  // anew at each 4 KiB page: reading a row from the third-level cache takes 24 us instead of 21, and less evenly.
  FASTSAMPLE_INLINE void prefetch(int64_t i) const {
    const char* ahead = reinterpret_cast<const char*>(data + i) + 4096;
    for (size_t line = 0; line < 4 * kWidth * sizeof(Element); line += 64) __builtin_prefetch(ahead + line, 0, 2);
  }

  // The last tokens of a row: lanes past the end are -inf, which no step keeps.
  F load_tail(int64_t i, int64_t count) const {
    Element buffer[kWidth] = {};
    memcpy(buffer, data + i, static_cast<size_t>(count) * sizeof(Element));
    return blank_after(load_vector(buffer), count);
  }

  static F blank_after(F x, int64_t count) {
    float lanes[kWidth];
    Simd::store(lanes, x);
    for (int64_t lane = count; lane < kWidth; ++lane) lanes[lane] = -kInfinity;
    return Simd::load(lanes);
  }
};

// Tokens that lie apart, as in a transposed view: collected one by one, so slower, but never copied whole.
struct StridedRow {
  const void* data;
  int64_t stride;
  DType dtype;
  int64_t size;

  F load(int64_t i) const { return load_tail(i, kWidth); }
  void prefetch(int64_t) const {}

  F load_tail(int64_t i, int64_t count) const {
    if (dtype == DType::kFloat32) return collect(static_cast<const float*>(data), i, count);
    if (dtype == DType::kFloat16) return collect(static_cast<const Float16*>(data), i, count);
    return collect(static_cast<const BFloat16*>(data), i, count);
  }

 private:
  template <class Element>
  F collect(const Element* elements, int64_t i, int64_t count) const {
    Element buffer[kWidth] = {};
    for (int64_t lane = 0; lane < count; ++lane) buffer[lane] = elements[(i + lane) * stride];
    return ContiguousRow<Element>::blank_after(load_vector(buffer), count);
  }
};

// Calls body(row) with the row's type: the one place where dtype and stride are told apart.
template <class Body>
void with_row(const RowView& view, const Body& body) {
  if (view.stride != 1 && view.vocab > 1) return body(StridedRow{view.data, view.stride, view.dtype, view.vocab});
  switch (view.dtype) {
    case DType::kFloat32:
      return body(ContiguousRow<float>{static_cast<const float*>(view.data), view.vocab});
    case DType::kFloat16:
      return body(ContiguousRow<Float16>{static_cast<const Float16*>(view.data), view.vocab});
    case DType::kBFloat16:
      return body(ContiguousRow<BFloat16>{static_cast<const BFloat16*>(view.data), view.vocab});
  }
}

template <class Row>
inline float token_at(const Row& row, int64_t i) {
  float lanes[kWidth];
  Simd::store(lanes, row.load_tail(i, 1));
  return lanes[0];
}

// Calls body(vector, index) over tokens [begin, end), which need not be multiples of anything. One call for whole
// vectors and the tail, so that the compiler inlines the body.
template <class Row, class Body>
FASTSAMPLE_INLINE void for_each_vector(const Row& row, int64_t begin, int64_t end, const Body& body) {
  for (int64_t i = begin; i < end; i += kWidth)
    body(__builtin_expect(i + kWidth <= end, 1) ? row.load(i) : row.load_tail(i, end - i), i);
}

// The row's chunks, and the share of them that a part of a team works on.
struct Chunks {
  int64_t size;  // tokens per chunk
  int64_t count;
  int64_t tokens;

  explicit Chunks(int64_t vocab) : tokens(vocab) {
    const int64_t longer = (vocab + kChunk * kMaxChunks - 1) / (kChunk * kMaxChunks);
    size = kChunk * (longer > 1 ? longer : 1);
    count = (vocab + size - 1) / size;
  }
  int64_t begin(int64_t chunk) const { return chunk * size; }
  int64_t end(int64_t chunk) const {
    const int64_t end = (chunk + 1) * size;
    return end < tokens ? end : tokens;
  }
  int64_t first_of_part(int64_t part, int64_t parts) const { return count * part / parts; }
};

}  // namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET
