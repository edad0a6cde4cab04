// Step load: a row's tokens, dealt out to the warps that share it, and kept on the chip where it fits.
#pragma once

#include "portable.cuh"
#include "work.h"

namespace fastsample::cuda {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

__device__ __forceinline__ float widen(float x) {
  return x;
}
__device__ __forceinline__ float widen(Float16 x) {
  return half_to_float(x.bits);
}
__device__ __forceinline__ float widen(BFloat16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}

__device__ __forceinline__ void unpack(const uint4& raw, float (&x)[4]) {
  x[0] = __uint_as_float(raw.x);
  x[1] = __uint_as_float(raw.y);
  x[2] = __uint_as_float(raw.z);
  x[3] = __uint_as_float(raw.w);
}

template <class Element>
__device__ __forceinline__ void unpack(const uint4& raw, float (&x)[8]) {
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = widen(Element{static_cast<uint16_t>(words[i])});
    x[2 * i + 1] = widen(Element{static_cast<uint16_t>(words[i] >> 16)});
  }
}

// What stands in a vector where the row has no token: -inf, which no filter keeps and no sum counts.
template <class Element>
__device__ __forceinline__ uint32_t padding_bits();
template <>
__device__ __forceinline__ uint32_t padding_bits<float>() {
  return 0xFF800000u;
}
template <>
__device__ __forceinline__ uint32_t padding_bits<Float16>() {
  return 0xFC00u;
}
template <>
__device__ __forceinline__ uint32_t padding_bits<BFloat16>() {
  return 0xFF80u;
}

__device__ __forceinline__ uint32_t bits_of(float x) {
  return __float_as_uint(x);
}
__device__ __forceinline__ uint32_t bits_of(Float16 x) {
  return x.bits;
}
__device__ __forceinline__ uint32_t bits_of(BFloat16 x) {
  return x.bits;
}

// A row as one lane sees it. The row is cut into vectors of 16 aligned bytes; since a row may start anywhere, its first
// vector begins `lead` tokens before it. Each warp has one contiguous stretch of vectors and deals it out lane by lane,
// so that a warp's loads are coalesced and index order is: warp, then v, then lane, then place in the vector.
template <class Element, bool kResident>
struct Row {
  static constexpr int kTokens = 16 / sizeof(Element);  // per vector
  static constexpr bool kStays = kResident;

  const Element* data;
  int64_t stride;
  uint32_t vocab;
  uint32_t lead;
  uint32_t first;    // the number of this lane's first vector; vector v is number first + 32 v
  uint32_t vectors;  // per lane, the same for all lanes
  uint4* on_chip;    // resident: vector v of this lane is on_chip[32 v]

  // The stretch of warp number `part` of `parts`, which is warp `warp` of its block; `memory` is the block's.
  __device__ Row(const Batch& batch, int64_t row, uint32_t part, uint32_t parts, uint32_t warp, uint32_t lane,
                 uint4* memory)
      : data(reinterpret_cast<const Element*>(batch.data + row * batch.row_stride)),
        stride(batch.stride),
        vocab(static_cast<uint32_t>(batch.vocab)),
        lead(batch.stride == 1 ? static_cast<uint32_t>(reinterpret_cast<uintptr_t>(data) % 16 / sizeof(Element)) : 0) {
    vectors = static_cast<uint32_t>(vectors_per_lane(lead, vocab, kTokens, int64_t{parts} * 32));
    first = part * vectors * 32 + lane;
    on_chip = memory + warp * vectors * 32 + lane;
  }

  // The index of the vector's first token. Below 0 it wraps round, so that `index < vocab` holds for tokens only.
  __device__ __forceinline__ uint32_t index(uint32_t v) const { return (first + v * 32) * kTokens - lead; }

  // Whether a vector that begins at this index holds nothing but tokens: below 0, the index is too large for that.
  __device__ __forceinline__ bool whole(uint32_t begin) const {
    return begin < (vocab >= kTokens ? vocab - kTokens + 1 : 0);
  }

  // Vector v, token by token.
  __device__ __forceinline__ uint4 pick(uint32_t v) const {
    constexpr int kBits = 8 * sizeof(Element), kPerWord = 32 / kBits;
    uint32_t words[4];
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      words[word] = 0;
#pragma unroll
      for (int place = 0; place < kPerWord; ++place) {
        const uint32_t token = index(v) + word * kPerWord + place;
        const uint32_t bits =
            token < vocab ? bits_of(data[static_cast<int64_t>(token) * stride]) : padding_bits<Element>();
        words[word] |= bits << (place * kBits % 32);
      }
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }

  __device__ __forceinline__ void widen_vector(const uint4& raw, float (&x)[kTokens]) const {
    if constexpr (sizeof(Element) == 4)
      unpack(raw, x);
    else
      unpack<Element>(raw, x);
  }

  // Reads the row once and calls body(x, index) for each vector, with the index `vocab` for one that is empty; a
  // resident row stays in shared memory from here on. Eight loads in flight per thread: with 512 threads on a
  // multiprocessor that is 64 KiB, where 4.8 TB/s at a latency of 0.8 us need 29. The vectors at the row's ends are
  // first taken for empty, so that those loads wait for nothing.
  template <class Body>
  __device__ __forceinline__ void load(const Body& body) {
    constexpr uint32_t kInFlight = 8;
    const uint32_t nothing = padding_bits<Element>() * (sizeof(Element) == 2 ? 0x10001u : 1u);
    const auto take = [&](uint32_t v, uint32_t index, const uint4& raw) {
      if (kResident) on_chip[v * 32] = raw;
      float x[kTokens];
      widen_vector(raw, x);
      body(x, index);
    };
    if (stride != 1) {
#pragma unroll 1
      for (uint32_t v = 0; v < vectors; ++v) take(v, index(v), pick(v));
      return;
    }
    const uint4* const aligned = reinterpret_cast<const uint4*>(data - lead) + first;
#pragma unroll 1
    for (uint32_t begin = 0; begin < vectors; begin += kInFlight) {
      const uint32_t at = index(begin);
      const uint4* const from = aligned + begin * 32;
      uint4 raw[kInFlight];
#pragma unroll
      for (uint32_t i = 0; i < kInFlight; ++i) {
        raw[i] = make_uint4(nothing, nothing, nothing, nothing);
        if (begin + i < vectors && whole(at + i * 32 * kTokens)) raw[i] = load_once(from + i * 32);
      }
#pragma unroll
      for (uint32_t i = 0; i < kInFlight; ++i)
        if (begin + i < vectors) {
          const uint32_t index = at + i * 32 * kTokens;
          take(begin + i, whole(index) ? index : vocab, raw[i]);
        }
    }
    const uint32_t last = (lead + vocab - 1) / kTokens, v = (last - first) / 32;
    if (first == 0 && !whole(index(0))) take(0, index(0), pick(0));
    if (last >= first && (last - first) % 32 == 0 && v < vectors && !whole(index(v))) take(v, index(v), pick(v));
  }

  __device__ __forceinline__ uint4 raw_vector(uint32_t v) const {
    if (kResident) return on_chip[v * 32];
    const uint32_t begin = index(v);
    return stride == 1 && whole(begin) ? *reinterpret_cast<const uint4*>(data + begin) : pick(v);
  }

  __device__ __forceinline__ void vector(uint32_t v, float (&x)[kTokens]) const { widen_vector(raw_vector(v), x); }

  // Takes a token of this warp's stretch out of a resident row.
  __device__ __forceinline__ void remove(uint32_t token, uint32_t lane) const {
    const uint32_t place = token + lead - (first - lane) * kTokens;
    Element* const tokens = reinterpret_cast<Element*>(on_chip - lane);
    const uint32_t nothing = padding_bits<Element>();
    memcpy(tokens + place, &nothing, sizeof(Element));
  }

  // One sweep over the lane's tokens after the first: body(x, index) for every `step`-th vector.
  template <class Body>
  __device__ __forceinline__ void sweep(const Body& body, uint32_t step = 1) const {
    const uint4* from = on_chip;
    uint32_t at = index(0);
#pragma unroll 1
    for (uint32_t v = 0; v < vectors; v += step) {
      float x[kTokens];
      widen_vector(kResident ? *from : raw_vector(v), x);
      body(x, at);
      from += 32 * step;
      at += 32 * step * kTokens;
    }
  }
};

}  // namespace fastsample::cuda
