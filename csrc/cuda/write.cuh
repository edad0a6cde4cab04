// What the operators that return rows write: the kept set as logits, probabilities or log-probabilities (law section
// 5).
#pragma once

#include "sweeps.cuh"

namespace fastsample::cuda {

template <class Element>
__device__ __forceinline__ uint32_t nan_bits();
template <>
__device__ __forceinline__ uint32_t nan_bits<float>() {
  return 0x7FC00000u;
}
template <>
__device__ __forceinline__ uint32_t nan_bits<Float16>() {
  return 0x7E00u;
}
template <>
__device__ __forceinline__ uint32_t nan_bits<BFloat16>() {
  return 0x7FC0u;
}

template <class Element>
__device__ __forceinline__ Element element_of(uint32_t bits) {
  Element element;
  memcpy(&element, &bits, sizeof(element));
  return element;
}

// Calls value(i) for the tokens of a vector and stores them, 16 bytes at a time where they lie so.
template <int kTokens, class Element, class Value>
__device__ __forceinline__ void store_vector(Element* out, uint32_t index, uint32_t vocab, const Value& value) {
  constexpr int kTogether = 16 / sizeof(Element);
  if (index < vocab && vocab - index >= kTokens && reinterpret_cast<uintptr_t>(out + index) % 16 == 0) {
#pragma unroll
    for (int first = 0; first < kTokens; first += kTogether) {
      alignas(16) Element together[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) together[i] = value(first + i);
      uint4 raw;
      memcpy(&raw, together, sizeof(raw));
      *reinterpret_cast<uint4*>(out + index + first) = raw;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kTokens; ++i)
      if (index + i < vocab) out[index + i] = value(i);
  }
}

template <class Element, class Row>
__device__ __forceinline__ void write_filtered_logits(const Sweeps<Row>& sweeps, Cut cut, Element* out) {
  constexpr int kTokens = Row::kTokens;
#pragma unroll 1
  for (uint32_t v = 0; v < sweeps.row.vectors; ++v) {
    const uint4 raw = sweeps.row.raw_vector(v);
    const uint32_t index = sweeps.row.index(v);
    float x[kTokens];
    sweeps.row.widen_vector(raw, x);
    alignas(16) Element element[kTokens];
    memcpy(element, &raw, sizeof(raw));
    store_vector<kTokens>(out, index, sweeps.row.vocab, [&](int i) {
      return cut.keeps(x[i], index + i) ? element[i] : element_of<Element>(padding_bits<Element>());
    });
  }
}

template <class Row>
__device__ __forceinline__ void write_probabilities(const Sweeps<Row>& sweeps, Cut cut, uint64_t total, float* out) {
  constexpr int kTokens = Row::kTokens;
  const float share = __fdiv_rn(1.0f, __fmul_rn(static_cast<float>(total), 0x1p-40f));
  sweeps.row.sweep([&](const float (&x)[kTokens], uint32_t index) {
    store_vector<kTokens>(out, index, sweeps.row.vocab, [&](int i) {
      const float d = sweeps.weight.exponent(x[i]);
      if (!cut.keeps(x[i], index + i) || !(d >= -126.0f)) return 0.0f;
      uint32_t shift;
      const float q = Weight::power(d, shift);
      return __fmul_rn(__uint_as_float(__float_as_uint(q) - (shift << 23)), share);
    });
  });
}

// What the logarithm of Z, in units of the largest weight, takes off every log-probability. In float64, see
// LogProbability in csrc/cpu/kept.h.
__device__ __forceinline__ float log_of_total(uint64_t total) {
  return static_cast<float>(log1p(static_cast<double>(static_cast<float>(total - kLargestWeight)) * 0x1p-40));
}

__device__ __forceinline__ float log_probability(float d, float log_total) {
  constexpr float kLn2 = 0x1.62e430p-1f;
  return d > -kInfinity ? -__fadd_rn(__fmul_rn(-d, kLn2), log_total) : -kInfinity;
}

template <class Element, class Row>
__device__ __forceinline__ void write_log_probabilities(const Sweeps<Row>& sweeps, Cut cut, uint64_t total,
                                                        const Work& work, int64_t row, float* out) {
  const Group& group = sweeps.group;
  const float log_total = log_of_total(total);
  const Element* const logits = reinterpret_cast<const Element*>(work.batch.data + row * work.batch.row_stride);
  const ConstTokens& wanted = work.wanted;
#pragma unroll 1
  for (int64_t i = group.rank * group.threads() + group.thread(); i < wanted.count;
       i += group.blocks * group.threads()) {
    const int64_t token = wanted.data[row * wanted.row_stride + i * wanted.stride];
    if (token < 0 || token >= work.batch.vocab) {
      out[i] = __uint_as_float(nan_bits<float>());
      continue;
    }
    const float x = widen(logits[token * work.batch.stride]);
    const bool kept = cut.keeps(x, static_cast<uint32_t>(token));
    out[i] = kept ? log_probability(sweeps.weight.exponent(x), log_total) : -kInfinity;
  }
}

}  // namespace fastsample::cuda
