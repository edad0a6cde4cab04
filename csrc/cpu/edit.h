// Step edit: a row as law section 0 leaves it. Its first reader, step maximum, writes it down, in float32 and near (the
// 501 KiB of 128256 tokens stay in the second-level cache), so that the later steps are those of any other row. With
// AVX-512 that step takes 20 us instead of 12, and 31 instead of 20 where the row comes from the third-level cache.
#pragma once

#include "maximum.h"

namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET {

// To be read at places that are multiples of kWidth. Token i is written to out[i - from], and padding after the last.
template <class Row>
struct EditedRow {
  const Row& row;
  const RowEdits& edits;
  float* out;
  int64_t from;
  int64_t size;

  FASTSAMPLE_INLINE F load(int64_t i) const { return edited(row.load(i), i, kWidth); }
  F load_tail(int64_t i, int64_t count) const { return edited(row.load_tail(i, count), i, count); }
  FASTSAMPLE_INLINE void prefetch(int64_t i) const { row.prefetch(i); }

 private:
  FASTSAMPLE_INLINE F edited(F x, int64_t i, int64_t count) const {
    const int64_t word = i >> 5;
    const int shift = static_cast<int>(i & 31);
    if (edits.allowed) x = Simd::select(Simd::chosen(edits.allowed_word(word) >> shift), x, Simd::set(-kInfinity));
    if (edits.bits) {
      const uint32_t all = static_cast<uint32_t>(edits.bits[word]);
      const uint32_t mine = all >> shift & ((1u << count) - 1);
      if (__builtin_expect(mine != 0, 0))
        x = replaced(x, mine, edits.before[word] + bits_below(all, static_cast<uint32_t>(shift)));
    }
    Simd::store(out + (i - from), x);
    return x;
  }

  F replaced(F x, uint32_t lanes_to_replace, int64_t place) const {
    float lanes[kWidth];
    Simd::store(lanes, x);
    const int64_t last = edits.capacity - 1;
    for (; lanes_to_replace; lanes_to_replace &= lanes_to_replace - 1, ++place)
      lanes[__builtin_ctz(lanes_to_replace)] = edits.values[place < 0 ? 0 : place > last ? last : place];
    return Simd::load(lanes);
  }
};

// Steps edit and maximum of the part [first, last) of a row's chunks; of the row as it was, too, if `with_raw`.
template <class Row>
inline void edit_part(const Row& row, const RowEdits& edits, bool with_raw, const Chunks& chunks, int64_t first,
                      int64_t last, RowScratch& scratch, PartScratch& part) {
  constexpr int64_t kBlock = 16;  // chunks: 16 KiB, so that the second reader finds near what the first has read
  const EditedRow<Row> edited{row, edits, scratch.edited, 0, row.size};
  part.maximum = part.raw_maximum = {-kInfinity, false};
  for (int64_t chunk = first; chunk < last; chunk += kBlock) {
    const int64_t stop = chunk + kBlock < last ? chunk + kBlock : last;
    if (with_raw)
      part.raw_maximum = larger(part.raw_maximum, maximum<false>(row, chunks, chunk, stop, scratch.raw_chunk_maximum));
    part.maximum = larger(part.maximum, maximum<false>(edited, chunks, chunk, stop, scratch.chunk_maximum));
  }
}

}  // namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET
