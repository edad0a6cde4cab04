// Draws from rows that requests have edited, with what is said of them, and the kept sets of such rows.
#pragma once

#include "details.h"
#include "edit.h"

namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET {

template <class Row>
void sample_edited_row(const Row& raw, const RowEdits& edits, const Filters& filters, const Draws& draws,
                       const Details& details, RowScratch& scratch, const Team& team) {
  const Chunks chunks(raw.size);
  team.run([&](int64_t part) {
    edit_part(raw, edits, details.of_raw_row(), chunks, chunks.first_of_part(part, team.parts),
              chunks.first_of_part(part + 1, team.parts), scratch, scratch.parts[part]);
  });
  Maximum largest{-kInfinity, false}, raw_largest = largest;
  for (int64_t part = 0; part < team.parts; ++part) {
    largest = larger(largest, scratch.parts[part].maximum);
    raw_largest = larger(raw_largest, scratch.parts[part].raw_maximum);
  }
  if (!valid_filters(filters) || largest.invalid || !(largest.value > -kInfinity)) {
    invalid_row(draws);
    return describe_invalid_row(details, draws.count);
  }
  const ContiguousRow<float> row{scratch.edited, raw.size};
  const Drawn drawn = draw_row(row, chunks, filters, largest.value, draws, scratch, team);
  describe_row(row, chunks, filters, largest.value, drawn, draws, details, scratch, team);
  if (details.of_raw_row())
    describe_raw_row(raw, chunks, raw_largest, scratch.raw_chunk_maximum, 0, draws, details, scratch, team);
}

template <class Row>
void sample_unedited_row(const Row& row, const Filters& filters, const Draws& draws, const Details& details,
                         RowScratch& scratch, const Team& team) {
  const Chunks chunks(row.size);
  float most;
  if (!read_row(row, chunks, filters, scratch, team, most)) {
    invalid_row(draws);
    return describe_invalid_row(details, draws.count);
  }
  const Drawn drawn = draw_row(row, chunks, filters, most, draws, scratch, team);
  const uint64_t everything = describe_row(row, chunks, filters, most, drawn, draws, details, scratch, team);
  if (details.of_raw_row())
    describe_raw_row(row, chunks, {most, false}, scratch.chunk_maximum, filters.temperature == 1 ? everything : 0,
                     draws, details, scratch, team);
}

inline void sample_full_row(const RowView& view, const RowEdits* edits, const Filters& filters, const Draws& draws,
                            const Details& details, RowScratch& scratch, const Team& team) {
  with_row(view, [&](const auto& row) {
    if (edits)
      sample_edited_row(row, *edits, filters, draws, details, scratch, team);
    else
      sample_unedited_row(row, filters, draws, details, scratch, team);
  });
}

inline void kept_tokens_row(const RowView& view, const RowEdits& edits, Cut cut, int64_t begin, int64_t end,
                            int64_t* out, RowScratch& scratch) {
  constexpr int64_t kBlock = 4096;
  static_assert(kBlock + kVectorPadding <= kSampleCapacity && kBlock <= kCandidateCapacity);
  Candidates& found = scratch.work;
  int64_t place = begin;
  with_row(view, [&](const auto& row) {
    for (int64_t first = 0; first < row.size && place < end; first += kBlock) {
      const int64_t last = first + kBlock < row.size ? first + kBlock : row.size;
      found.size = 0;
      // Of tokens in which place 0 is token `origin` of the row.
      const auto gather_kept = [&](const auto& tokens, int64_t origin) {
        for_each_stretch(
            {cut.logit, cut.end - origin}, first - origin, last - origin,
            [&](int64_t from, int64_t to, float least) { gather_stretch(tokens, from, to, least, found); });
        for (int64_t i = 0; i < found.size && place < end; ++i, ++place)
          if (place >= 0) out[place] = origin + static_cast<int64_t>(found.index[i]);
      };
      if (edits.allowed || edits.bits) {
        const EditedRow<std::decay_t<decltype(row)>> edited{row, edits, scratch.sample_logit, first, row.size};
        for_each_vector(edited, first, last, [](F, int64_t) {});
        gather_kept(ContiguousRow<float>{scratch.sample_logit, last - first}, first);
      } else {
        gather_kept(row, 0);
      }
    }
  });
}

}  // namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET
