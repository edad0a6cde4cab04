// How a call's rows are worked on. For batch.cpp and requests.cpp, which are the calls.
#pragma once

#include <algorithm>

#include "batch.h"

namespace fastsample::cpu {

// By the instruction set in force.
const Kernels& kernels();

// Of the calling thread, for rows that are cut into `parts` and edited rows of so many tokens.
RowScratch& thread_scratch(int64_t parts, int64_t edited_tokens);

// Rows over threads; where there are fewer rows than threads, each row's chunks over threads, unless a row is so
// short that starting the threads costs more than it saves. `edited`: rows are edited, for which the scratch has to
// have room.
template <class Body>
void for_each_row(int64_t rows, int64_t vocab, bool edited, const Threads& threads, const Body& body) {
  constexpr int64_t kShortestSplit = 32768;
  if (rows == 0) return;
  const IeeeArithmetic arithmetic;
  if (rows >= threads.count || vocab < kShortestSplit) {
    const int64_t parts = std::min(rows, threads.count);
    const Team alone{1, nullptr};
    const Team over_rows{parts, threads.run};
    over_rows.run([&](int64_t part) {
      RowScratch& scratch = thread_scratch(1, edited ? vocab : 0);
      for (int64_t row = rows * part / parts; row < rows * (part + 1) / parts; ++row) body(row, scratch, alone);
    });
    return;
  }
  const int64_t parts = std::min(threads.count, vocab / (kShortestSplit / 4));
  RowScratch& scratch = thread_scratch(parts, edited ? vocab : 0);
  const Team together{parts, threads.run};
  for (int64_t row = 0; row < rows; ++row) body(row, scratch, together);
}

}  // namespace fastsample::cpu
