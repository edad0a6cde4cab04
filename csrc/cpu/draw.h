// Step draw: tokens by inverse transform over integer sums, in index order (law section 4).
#pragma once

#include "cut.h"

namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET {

// Kept tokens with their chunks' sums: the row itself under a cut, or the gathered list (then `index` names its tokens
// and the cut keeps all of it).
template <class Row, class Weight>
struct Survivors {
  const Row& row;
  const uint32_t* index;
  const Chunks& chunks;
  const Weight& weight;
  Cut cut;
  uint64_t* chunk_sum;

  int64_t token(int64_t place) const { return index ? static_cast<int64_t>(index[place]) : place; }

  // The place at which the running sum of kept weights in [begin, end) passes `target`, which it loses on the way.
  int64_t crossing(int64_t begin, int64_t end, uint64_t& target, const Draws& draws, int64_t drawn,
                   uint64_t& drawn_weight) const {
    uint64_t weights[kChunk + kWidth];
    for_each_stretch(cut, begin, end, [&](int64_t first, int64_t last, float least) {
      const F bound = Simd::set(least);
      for_each_vector(row, first, last, [&](F x, int64_t at) {
        Simd::store(weights + (at - begin), Simd::add_where(Simd::greater_equal(x, bound), Simd::zero(), weight(x)));
      });
    });
    if (!draws.replacement)
      for (int64_t i = 0; i < drawn; ++i) remove(draws.tokens[i * draws.tokens_stride], begin, end, weights);
    for (int64_t i = 0; i < end - begin; ++i) {
      if (target < weights[i]) {
        drawn_weight = weights[i];
        return begin + i;
      }
      target -= weights[i];
    }
    return -1;
  }

 private:
  void remove(int64_t taken, int64_t begin, int64_t end, uint64_t* weights) const {
    if (taken < token(begin) || taken > token(end - 1)) return;
    if (!index) {
      weights[taken - begin] = 0;
      return;
    }
    int64_t place = begin, span = end - begin;
    while (span > 1) {  // the last place whose index is at most the token taken
      const int64_t half = span / 2;
      if (token(place + half) <= taken) place += half;
      span -= half;
    }
    if (token(place) == taken) weights[place - begin] = 0;
  }
};

// Returns the mass of all survivors.
template <class Row, class Weight>
inline uint64_t draw(const Survivors<Row, Weight>& kept, const Draws& draws) {
  uint64_t* running = kept.chunk_sum;  // becomes the sum of all chunks so far
  for (int64_t chunk = 1; chunk < kept.chunks.count; ++chunk) running[chunk] += running[chunk - 1];
  const uint64_t all = running[kept.chunks.count - 1];
  uint64_t total = all;
  PhiloxWords words{};
  for (int64_t i = 0; i < draws.count; ++i) {
    if (i % 2 == 0)
      words = philox(draws.random.seed, draws.random.offset, draws.random.stream, static_cast<uint32_t>(i / 2));
    int64_t& out = draws.tokens[i * draws.tokens_stride];
    if (total == 0) {
      out = -1;
      continue;
    }
    uint64_t target = multiply_high(words.word[i % 2], total);
    int64_t chunk = 0, span = kept.chunks.count;
    while (span > 0) {  // the first chunk whose running sum exceeds the target
      const int64_t half = span / 2;
      if (running[chunk + half] <= target) {
        chunk += half + 1;
        span -= half + 1;
      } else {
        span = half;
      }
    }
    if (chunk > 0) target -= running[chunk - 1];
    int64_t place = -1;
    uint64_t weight = 0;
    for (int64_t begin = kept.chunks.begin(chunk); place < 0 && begin < kept.chunks.end(chunk); begin += kChunk) {
      const int64_t end = begin + kChunk < kept.chunks.end(chunk) ? begin + kChunk : kept.chunks.end(chunk);
      place = kept.crossing(begin, end, target, draws, i, weight);
    }
    out = kept.token(place);
    if (draws.replacement) continue;
    total -= weight;
    for (int64_t later = chunk; later < kept.chunks.count; ++later) running[later] -= weight;
  }
  return all;
}

}  // namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET
