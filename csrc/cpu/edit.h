// Step edit: a row as law section 0 leaves it, written down once (in float32, in the second-level cache), so that all
// later steps are those of any other row.
#pragma once

#include "maximum.h"

namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET {

// Tokens [begin, end) to `out`, which has room for kVectorPadding more; `begin` is a multiple of 32.
template <class Row>
inline void edit(const Row& row, const RowEdits& edits, int64_t begin, int64_t end, float* out) {
  if (edits.allowed) {
    const F removed = Simd::set(-kInfinity);
    for_each_vector(row, begin, end, [&](F x, int64_t at) {
      const M allowed = Simd::chosen(edits.allowed_word(at >> 5) >> (at & 31));
      Simd::store(out + (at - begin), Simd::select(allowed, x, removed));
    });
  } else {
    for_each_vector(row, begin, end, [&](F x, int64_t at) { Simd::store(out + (at - begin), x); });
  }
  if (!edits.bits) return;
  for (int64_t word = begin >> 5; word << 5 < end; ++word) {
    uint32_t edited = edits.edited_word(word);
    for (int64_t place = edited ? edits.before[word] : 0; edited; edited &= edited - 1, ++place) {
      const int64_t token = (word << 5) + __builtin_ctz(edited);
      if (token >= end) break;
      const int64_t last = edits.capacity - 1;
      out[token - begin] = edits.values[place < 0 ? 0 : place > last ? last : place];
    }
  }
}

// Steps edit and maximum of the part [first, last) of a row's chunks; of the row as it was, too, if `with_raw`.
template <class Row>
inline void edit_part(const Row& row, const RowEdits& edits, bool with_raw, const Chunks& chunks, int64_t first,
                      int64_t last, RowScratch& scratch, PartScratch& part) {
  constexpr int64_t kBlock = 16;  // chunks: 16 KiB, so that what one step has read or written the next finds near
  const ContiguousRow<float> edited{scratch.edited, row.size};
  part.maximum = part.raw_maximum = {-kInfinity, false};
  for (int64_t chunk = first; chunk < last; chunk += kBlock) {
    const int64_t stop = chunk + kBlock < last ? chunk + kBlock : last;
    if (with_raw)
      part.raw_maximum = larger(part.raw_maximum, maximum<false>(row, chunks, chunk, stop, scratch.raw_chunk_maximum));
    edit(row, edits, chunks.begin(chunk), chunks.end(stop - 1), scratch.edited + chunks.begin(chunk));
    part.maximum = larger(part.maximum, maximum<false>(edited, chunks, chunk, stop, scratch.chunk_maximum));
  }
}

}  // namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET
