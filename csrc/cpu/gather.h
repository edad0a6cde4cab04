// Step gather: the few tokens that may be kept, with their indices, in index order.
#pragma once

#include "bound.h"

namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET {

// Appends the tokens of a stretch that reach `least`. The caller has made sure that the stretch fits.
template <class Row>
inline void gather_stretch(const Row& row, int64_t begin, int64_t end, float least, Candidates& out) {
  const F bound = Simd::set(least);
  for_each_vector(row, begin, end, [&](F x, int64_t at) {
    const M chosen = Simd::greater_equal(x, bound);
    if (!Simd::any(chosen)) return;
    Simd::store_chosen(chosen, x, out.logit + out.size, static_cast<uint32_t>(at), out.index + out.size);
    out.size += Simd::count(chosen);
  });
}

// All tokens that reach `bound`, except that of those equal to it only the first `ties` are needed: a row of equal
// tokens then costs one chunk and not the vocabulary. Chunks whose maximum is lower are not read.
template <class Row>
inline void gather(const Row& row, const Chunks& chunks, int64_t first, int64_t last, const float* chunk_maximum,
                   float bound, int64_t ties, Candidates& out) {
  out.size = 0;
  out.overflow = false;
  float least = bound;
  int64_t tied = 0;
  for (int64_t chunk = first; chunk < last; ++chunk) {
    if (!(chunk_maximum[chunk] >= least)) continue;
    for (int64_t begin = chunks.begin(chunk); begin < chunks.end(chunk); begin += kChunk) {
      const int64_t end = begin + kChunk < chunks.end(chunk) ? begin + kChunk : chunks.end(chunk);
      if (out.size + kChunk > kCandidateCapacity) {
        out.overflow = true;
        return;
      }
      const int64_t before = out.size;
      gather_stretch(row, begin, end, least, out);
      if (least > bound) continue;
      for (int64_t i = before; i < out.size; ++i) tied += out.logit[i] == bound;
      if (tied >= ties) least = next_above(bound);
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
    memcpy(all.logit + all.size, next.logit, static_cast<size_t>(next.size) * sizeof(float));
    memcpy(all.index + all.size, next.index, static_cast<size_t>(next.size) * sizeof(uint32_t));
    all.size += next.size;
  }
  return all;
}

// One sweep for top_p: the mass of the base set, the mass above the bracket chunk by chunk, and the bracket's tokens.
template <class Row, class Weight>
inline void weigh_and_gather(const Row& row, const Chunks& chunks, int64_t first, int64_t last, const Weight& weight,
                             Cut base, Bracket bracket, const float* chunk_maximum, uint64_t* chunk_sum,
                             PartScratch& part) {
  const F low = Simd::set(bracket.low), high = Simd::set(bracket.high);
  Candidates& out = part.candidates;
  out.size = 0;
  out.overflow = false;
  part.total = part.above = 0;
  for (int64_t chunk = first; chunk < last; ++chunk) {
    chunk_sum[chunk] = 0;
    if (chunk_maximum[chunk] < base.logit || weight.vanishes(chunk_maximum[chunk])) continue;
    if (chunk_maximum[chunk] < bracket.low) {
      part.total += weigh_chunks(row, chunks, chunk, chunk + 1, weight, base, nullptr, nullptr);
      continue;
    }
    if (out.size + chunks.size > kCandidateCapacity) out.overflow = true;
    const bool collect = !out.overflow;
    uint64_t total = 0, above = 0;
    for_each_stretch(base, chunks.begin(chunk), chunks.end(chunk), [&](int64_t begin, int64_t end, float least) {
      const F member = Simd::set(least);
      U sum = Simd::zero(), sum_above = Simd::zero();
      for_each_vector(row, begin, end, [&](F x, int64_t at) {
        const U w = weight(x);
        const M over = Simd::greater(x, high);
        sum = Simd::add_where(Simd::greater_equal(x, member), sum, w);
        sum_above = Simd::add_where(over, sum_above, w);
        const M chosen = Simd::both(Simd::greater_equal(x, low), Simd::both(Simd::greater_equal(high, x),
                                                                             Simd::greater_equal(x, member)));
        if (!collect || !Simd::any(chosen)) return;
        Simd::store_chosen(chosen, x, out.logit + out.size, static_cast<uint32_t>(at), out.index + out.size);
        out.size += Simd::count(chosen);
      });
      total += Simd::sum(sum);
      above += Simd::sum(sum_above);
    });
    part.total += total;
    part.above += above;
    chunk_sum[chunk] = above;
  }
}

}  // namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET
