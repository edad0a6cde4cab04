// Step load of a request: a row as law section 0 leaves it. The edits are applied as the row is read, in place of a
// pass of their own.
//
// One kernel serves all dtypes: on the chip the row is float32 whatever it was, so that what follows the load is
// compiled once, and an edit, which is float32, has room in a row of 16-bit logits.
#pragma once

#include "../requests.h"
#include "load.cuh"

namespace fastsample::cuda {

constexpr int kTokensOfVector = 4;

// What a row's edits say of four neighbouring tokens.
struct EditedVector {
  uint32_t allowed;  // a bit a token
  uint32_t edited;
  const float* values;  // of those edited
};

__device__ __forceinline__ EditedVector edits_of_vector(const RowEdits& edits, uint32_t begin) {
  const uint32_t word = begin / 32, bit = begin % 32;
  uint32_t allowed = edits.allowed_word(word) >> bit, edited = 0;
  const float* values = nullptr;
  if (edits.bits) {
    const uint32_t bits = edits.edited_word(word);
    edited = bits >> bit;
    values = edits.values + edits.before[word] + bits_below(bits, bit);
  }
  if (bit > 32 - kTokensOfVector) {  // the row does not begin with a vector: some lie in two words
    allowed |= edits.allowed_word(word + 1) << (32 - bit);
    edited |= edits.edited_word(word + 1) << (32 - bit);
  }
  return {allowed, edited, values};
}

// A row where it lies, dealt out like Row, but in vectors of four tokens of any dtype.
struct RowInMemory {
  static constexpr int kTokens = kTokensOfVector;

  const char* data;
  int64_t stride;
  DType dtype;
  uint32_t vocab;
  uint32_t lead;
  uint32_t first;
  uint32_t vectors;

  __device__ RowInMemory(const Batch& batch, int64_t row, uint32_t part, uint32_t parts, uint32_t lane)
      : data(batch.data + row * batch.row_stride),
        stride(batch.stride),
        dtype(batch.dtype),
        vocab(static_cast<uint32_t>(batch.vocab)) {
    const uint32_t bytes = dtype == DType::kFloat32 ? 4 : 2;
    lead = stride == 1 ? static_cast<uint32_t>(reinterpret_cast<uintptr_t>(data) / bytes % kTokens) : 0;
    vectors = static_cast<uint32_t>(vectors_per_lane(lead, vocab, kTokens, int64_t{parts} * 32));
    first = part * vectors * 32 + lane;
  }

  // The index of the vector's first token. Below 0 it wraps round, so that `index < vocab` holds for tokens only.
  __device__ __forceinline__ uint32_t index(uint32_t v) const { return (first + v * 32) * kTokens - lead; }

  __device__ __forceinline__ bool whole(uint32_t begin) const {
    return begin < (vocab >= kTokens ? vocab - kTokens + 1 : 0);
  }

  __device__ __forceinline__ float widen_half(uint32_t bits) const {
    return dtype == DType::kFloat16 ? half_to_float(static_cast<uint16_t>(bits)) : __uint_as_float(bits << 16);
  }

  __device__ __forceinline__ float token(int64_t index) const {
    if (dtype == DType::kFloat32) return reinterpret_cast<const float*>(data)[index * stride];
    return widen_half(reinterpret_cast<const uint16_t*>(data)[index * stride]);
  }

  __device__ __forceinline__ void unpack_halves(const uint2& raw, float (&x)[kTokens]) const {
    x[0] = widen_half(raw.x & 0xFFFFu);
    x[1] = widen_half(raw.x >> 16);
    x[2] = widen_half(raw.y & 0xFFFFu);
    x[3] = widen_half(raw.y >> 16);
  }

  // Four tokens from `begin` on, which are in the row.
  __device__ __forceinline__ void read_whole(uint32_t begin, float (&x)[kTokens]) const {
    if (dtype == DType::kFloat32)
      unpack(*reinterpret_cast<const uint4*>(data + static_cast<int64_t>(begin) * 4), x);
    else
      unpack_halves(*reinterpret_cast<const uint2*>(data + static_cast<int64_t>(begin) * 2), x);
  }

  // Vector v, with its edits if there are any; -inf where the row has no token.
  __device__ __forceinline__ void read(uint32_t v, const RowEdits* edits, float (&x)[kTokens]) const {
    const uint32_t begin = index(v);
    if (stride == 1 && whole(begin)) {
      read_whole(begin, x);
      if (edits && (edits->bits || edits->allowed)) apply(edits_of_vector(*edits, begin), x);
      return;
    }
#pragma unroll
    for (int i = 0; i < kTokens; ++i) x[i] = begin + i < vocab ? logit(begin + i, edits) : -kInfinity;
  }

  __device__ __forceinline__ float logit(int64_t index, const RowEdits* edits) const {
    return edits ? (*edits)(token(index), index) : token(index);
  }

  __device__ __forceinline__ static void apply(const EditedVector& said, float (&x)[kTokens]) {
#pragma unroll
    for (uint32_t i = 0; i < kTokens; ++i)
      if (said.edited >> i & 1)
        x[i] = said.values[bits_below(said.edited, i)];
      else if (!(said.allowed >> i & 1))
        x[i] = -kInfinity;
  }
};

template <bool kResident>
struct EditedRow : RowInMemory {
  static constexpr bool kStays = kResident;

  const RowEdits& edits;  // in shared memory: five addresses more would not fit the registers
  float* on_chip;         // resident: vector v of this lane is on_chip[128 v] to on_chip[128 v + 3]

  __device__ EditedRow(const Batch& batch, int64_t row, const RowEdits& of_row, uint32_t part, uint32_t parts,
                       uint32_t warp, uint32_t lane, uint4* memory)
      : RowInMemory(batch, row, part, parts, lane), edits(of_row) {
    on_chip = reinterpret_cast<float*>(memory + warp * vectors * 32 + lane);
  }

  __device__ __forceinline__ uint4* place(uint32_t v) const { return reinterpret_cast<uint4*>(on_chip) + v * 32; }

  // As Row::load. What the edits say of a vector is asked for together with the vector, and the values of all in flight
  // before one of them is looked at: each of the two would else be waited for vector by vector.
  template <class Body>
  __device__ __forceinline__ void load(const Body& body) {
    if (stride != 1) {
#pragma unroll 1
      for (uint32_t v = 0; v < vectors; ++v) load_edge(v, body);
    } else if (dtype == DType::kFloat32) {
      load_whole<uint4>(body, [](const uint4& raw, float (&x)[kTokens]) { unpack(raw, x); });
    } else {
      load_whole<uint2>(body, [&](const uint2& raw, float (&x)[kTokens]) { unpack_halves(raw, x); });
    }
  }

  __device__ __forceinline__ void vector(uint32_t v, float (&x)[kTokens]) const {
    if (kResident) return unpack(*place(v), x);
    read(v, &edits, x);
  }

  // Takes a token of this warp's stretch out of a resident row.
  __device__ __forceinline__ void remove(uint32_t token, uint32_t lane) const {
    (on_chip - lane * kTokens)[token + lead - (first - lane) * kTokens] = -kInfinity;
  }

  template <class Body>
  __device__ __forceinline__ void sweep(const Body& body, uint32_t step = 1) const {
#pragma unroll 1
    for (uint32_t v = 0; v < vectors; v += step) {
      float x[kTokens];
      vector(v, x);
      body(x, index(v));
    }
  }

 private:
  template <class Body>
  __device__ __forceinline__ void take(uint32_t v, uint32_t index, const float (&x)[kTokens], const Body& body) {
    if (kResident)
      *place(v) =
          make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3]));
    body(x, index);
  }

  template <class Body>
  __device__ __forceinline__ void load_edge(uint32_t v, const Body& body) {
    float x[kTokens];
    read(v, &edits, x);
    take(v, index(v), x, body);
  }

  template <class Vector, class Body, class Unpack>
  __device__ __forceinline__ void load_whole(const Body& body, const Unpack& unpack_vector) {
    constexpr uint32_t kInFlight = sizeof(Vector) == 16 ? 4 : 5;
    constexpr uint32_t kBytes = sizeof(Vector) / kTokens;
    const Vector* const aligned = reinterpret_cast<const Vector*>(data - lead * kBytes) + first;
    const bool edited = edits.bits || edits.allowed;
#pragma unroll 1
    for (uint32_t begin = 0; begin < vectors; begin += kInFlight) {
      const uint32_t at = index(begin);
      const auto here = [&](uint32_t i) { return begin + i < vectors && whole(at + i * 32 * kTokens); };
      Vector raw[kInFlight];
      EditedVector said[kInFlight];
      float x[kInFlight][kTokens];
#pragma unroll
      for (uint32_t i = 0; i < kInFlight; ++i)
        if (here(i)) raw[i] = load_once(aligned + (begin + i) * 32);
      if (edited) {
#pragma unroll
        for (uint32_t i = 0; i < kInFlight; ++i)
          if (here(i)) said[i] = edits_of_vector(edits, at + i * 32 * kTokens);
      }
#pragma unroll
      for (uint32_t i = 0; i < kInFlight; ++i) {
#pragma unroll
        for (int token = 0; token < kTokens; ++token) x[i][token] = -kInfinity;
        if (here(i)) unpack_vector(raw[i], x[i]);
      }
      if (edited) {
#pragma unroll
        for (uint32_t i = 0; i < kInFlight; ++i)
          if (here(i)) apply(said[i], x[i]);
      }
#pragma unroll
      for (uint32_t i = 0; i < kInFlight; ++i)
        if (begin + i < vectors) take(begin + i, here(i) ? at + i * 32 * kTokens : vocab, x[i], body);
    }
    const uint32_t last = (lead + vocab - 1) / kTokens, v = (last - first) / 32;
    if (first == 0 && !whole(index(0))) load_edge(0, body);
    if (last >= first && (last - first) % 32 == 0 && v < vectors && !whole(index(v))) load_edge(v, body);
  }
};

// A row once more: from the chip where it is still there, else read again, with its edits or before them.
struct RowAgain : RowInMemory {
  const RowEdits* edits;  // or null
  const uint4* on_chip;   // vector v of this lane is on_chip[32 v]; or null

  __device__ RowAgain(const RowInMemory& row, const RowEdits* of_row, const uint4* held)
      : RowInMemory(row), edits(of_row), on_chip(held) {}

  __device__ __forceinline__ void vector(uint32_t v, float (&x)[kTokens]) const {
    if (on_chip) return unpack(on_chip[v * 32], x);
    read(v, edits, x);
  }

  template <class Body>
  __device__ __forceinline__ void sweep(const Body& body, uint32_t step = 1) const {
#pragma unroll 1
    for (uint32_t v = 0; v < vectors; v += step) {
      float x[kTokens];
      vector(v, x);
      body(x, index(v));
    }
  }
};

}  // namespace fastsample::cuda
