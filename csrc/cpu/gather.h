// Step gather: the few tokens that may be kept, with their indices, in index order.
#pragma once

#include "bound.h"

namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET {

// Appends the tokens of a stretch that reach `least`. The caller has made sure that the stretch fits.
template <class Row>
inline void gather_stretch(const Row& row, int64_t begin, int64_t end, float least, Candidates& out) {
  const F bound = Simd::set(least);
  float* logit = out.logit;
  uint32_t* index = out.index;
  int64_t size = out.size;
  for_each_vector(row, begin, end, [&](F x, int64_t at) {
    const M chosen = Simd::greater_equal(x, bound);
    if (!Simd::any(chosen)) return;
    Simd::store_chosen(chosen, x, logit + size, static_cast<uint32_t>(at), index + size);
    size += Simd::count(chosen);
  });
  out.size = size;
}

// All tokens that reach `bound`, except that of those equal to it only the first `ties` are needed: a row of equal
// tokens then costs one chunk and not the vocabulary. Chunks whose maximum is lower are not read.
template <class Row>
inline void gather(const Row& row, const Chunks& chunks, int64_t first, int64_t last, const float* chunk_maximum,
                   float bound, int64_t ties, Candidates& out) {
  out.size = 0;
  out.overflow = false;
  out.ties_left_out = false;
  float least = bound;
  int64_t tied = 0, counted = 0;
  for (int64_t chunk = first; chunk < last; ++chunk) {
    if (!(chunk_maximum[chunk] >= least)) continue;
    for (int64_t begin = chunks.begin(chunk); begin < chunks.end(chunk); begin += kChunk) {
      const int64_t end = begin + kChunk < chunks.end(chunk) ? begin + kChunk : chunks.end(chunk);
      if (out.size + kChunk > kCandidateCapacity) {
        out.overflow = true;
        return;
      }
      gather_stretch(row, begin, end, least, out);
      if (out.ties_left_out || out.size < ties) continue;
      for (; counted < out.size; ++counted) tied += out.logit[counted] == bound;
      if (tied >= ties) {
        least = next_above(bound);
        out.ties_left_out = true;
      }
    }
  }
}

// Puts the parts' lists after each other, in the first one's place.
inline Candidates& concatenate(RowScratch& scratch, int64_t parts) {
  Candidates& all = scratch.parts[0].candidates;
  for (int64_t part = 1; part < parts; ++part) {
    const Candidates& next = scratch.parts[part].candidates;
    if (all.overflow || next.overflow || all.size + next.size > kCandidateCapacity) {
      all.overflow = true;
      return all;
    }
    all.ties_left_out = all.ties_left_out || next.ties_left_out;
    memcpy(all.logit + all.size, next.logit, static_cast<size_t>(next.size) * sizeof(float));
    memcpy(all.index + all.size, next.index, static_cast<size_t>(next.size) * sizeof(uint32_t));
    all.size += next.size;
  }
  return all;
}

// One sweep for top_p: the mass of the base set, the mass above the bracket chunk by chunk, and the bracket's tokens.
// On flat rows nearly every vector holds some of those, so what is done per vector counts: with a base of everything
// (kAll) membership is not tested.
template <bool kAll, class Row, class Weight>
inline void weigh_and_gather(const Row& row, const Chunks& chunks, int64_t first, int64_t last, const Weight& weight,
                             Cut base, Bracket bracket, const float* chunk_maximum, uint64_t* chunk_sum,
                             PartScratch& part) {
  const F low = Simd::set(bracket.low), high = Simd::set(bracket.high);
  Candidates out = part.candidates;
  out.size = 0;
  out.overflow = false;
  uint64_t row_total = 0, row_above = 0;
  for (int64_t chunk = first; chunk < last; ++chunk) {
    chunk_sum[chunk] = 0;
    if (chunk_maximum[chunk] < base.logit || weight.vanishes(chunk_maximum[chunk])) continue;
    if (chunk_maximum[chunk] < bracket.low) {
      row_total += weigh_chunks(row, chunks, chunk, chunk + 1, weight, base, nullptr, nullptr);
      continue;
    }
    // A bracket of one value is counted afterwards: all its tokens are equal.
    if (out.size + chunks.size > kCandidateCapacity) out.overflow = true;
    const bool collect = !out.overflow && bracket.low < bracket.high;
    uint64_t chunk_above = 0;
    for_each_stretch(base, chunks.begin(chunk), chunks.end(chunk), [&](int64_t begin, int64_t end, float least) {
      const F member = Simd::set(least);
      U sum = Simd::zero(), above = Simd::zero();
      int64_t size = out.size;
      for_each_vector(row, begin, end, [&](F x, int64_t at) {
        const U w = weight(x);
        const M over = Simd::greater(x, high);
        M from_low = Simd::greater_equal(x, low);
        if constexpr (kAll) {
          sum = Simd::add(sum, w);
        } else {
          const M in_base = Simd::greater_equal(x, member);
          sum = Simd::add_where(in_base, sum, w);
          from_low = Simd::both(from_low, in_base);
        }
        above = Simd::add_where(over, above, w);
        // Not only where a vector has some: on flat rows two of three do, and the branch is mispredicted too
        // often (with the cheaper sums of add_to_chunks, 134 us a row became 123).
        const M chosen = Simd::but_not(from_low, over);
        if (!collect) return;
        Simd::store_chosen(chosen, x, out.logit + size, static_cast<uint32_t>(at), out.index + size);
        size += Simd::count(chosen);
      });
      out.size = size;
      row_total += Simd::sum(sum);
      chunk_above += Simd::sum(above);
    });
    row_above += chunk_above;
    chunk_sum[chunk] = chunk_above;
  }
  part.candidates = out;
  part.total = row_total;
  part.above = row_above;
}

}  // namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET
