// Step cut: where a prefix of the ranking first reaches a count (top_k) or a mass (top_p), exactly.
#pragma once

#include "gather.h"

namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET {

enum class Measure { kCount, kMass };

// How many candidates have an index below `end`: a cut's end as a place in the list, whose indices rise.
inline int64_t place_of(const Candidates& candidates, int64_t end) {
  int64_t place = 0;
  for (int64_t step = kCandidateCapacity; step > 0; step /= 2)
    if (place + step <= candidates.size && static_cast<int64_t>(candidates.index[place + step - 1]) < end)
      place += step;
  return place;
}

// Drops the candidates that a cut does not keep. Into the other list, because whole vectors are stored.
inline void keep(Candidates& candidates, Cut cut, Candidates& other) {
  const ContiguousRow<float> row{candidates.logit, candidates.size};
  other.size = 0;
  for_each_stretch(
      {cut.logit, place_of(candidates, cut.end)}, 0, candidates.size, [&](int64_t begin, int64_t end, float least) {
        const F bound = Simd::set(least);
        for_each_vector(row, begin, end, [&](F x, int64_t at) {
          const M chosen = Simd::greater_equal(x, bound);
          if (!Simd::any(chosen)) return;
          Simd::store_chosen(chosen, x, other.logit + other.size, candidates.index + at, other.index + other.size);
          other.size += Simd::count(chosen);
        });
      });
  const Candidates kept = other;
  other = candidates;
  candidates = kept;
}

template <class Weight>
inline uint64_t mass_of(const Candidates& candidates, const Weight& weight) {
  const ContiguousRow<float> row{candidates.logit, candidates.size};
  U sum = Simd::zero();
  for_each_vector(row, 0, row.size, [&](F x, int64_t) { sum = Simd::add(sum, weight(x)); });
  return Simd::sum(sum);
}

// Adds the weights of the candidates that a cut keeps to the sums of the row's chunks that they lie in.
template <class Weight>
inline void add_to_chunks(const Candidates& candidates, const Weight& weight, Cut cut, const Chunks& chunks,
                          uint64_t* chunk_sum) {
  const ContiguousRow<float> row{candidates.logit, candidates.size};
  int64_t chunk = 0, chunk_end = chunks.end(0);
  uint64_t sum = 0;
  for_each_stretch({cut.logit, place_of(candidates, cut.end)}, 0, row.size,
                   [&](int64_t begin, int64_t end, float least) {
                     const F bound = Simd::set(least);
                     for_each_vector(row, begin, end, [&](F x, int64_t at) {
                       uint64_t weights[kWidth];
                       Simd::store(weights, Simd::add_where(Simd::greater_equal(x, bound), Simd::zero(), weight(x)));
                       for (int64_t lane = 0; lane < kWidth && at + lane < end; ++lane) {
                         while (static_cast<int64_t>(candidates.index[at + lane]) >= chunk_end) {
                           chunk_sum[chunk] += sum;
                           sum = 0;
                           chunk_end = chunks.end(++chunk);
                         }
                         sum += weights[lane];
                       }
                     });
                   });
  chunk_sum[chunk] += sum;
}

template <Measure kMeasure, class Weight>
inline uint64_t measure_of(const Weight& weight, float x) {
  return kMeasure == Measure::kMass ? weight_of(weight, x) : 1;
}

// The cut among candidates: the shortest prefix of their ranking that measures at least `target`. Where all of them
// together do not, its end is -1. Quickselect by vector compression, which keeps index order, until few enough remain
// to be sorted.
template <Measure kMeasure, class Weight>
inline Cut cut_candidates(const Candidates& all, const Weight& weight, Bracket bracket, uint64_t target,
                          Candidates& work) {
  constexpr int64_t kSortable = 128;
  const float* logit = all.logit;
  const uint32_t* index = all.index;
  int64_t size = all.size;
  float low = bracket.low, high = bracket.high;  // no candidate is outside

  const F lowest = Simd::set(low);
  uint64_t above = 0;
  for (int step = 0; size > kSortable && low < high; ++step) {
    const float middle = between(low, high, step);
    const F bound = Simd::set(middle);
    const ContiguousRow<float> row{logit, size};
    uint64_t upper = 0;
    if (kMeasure == Measure::kMass) {
      U sum = Simd::zero();
      for_each_vector(row, 0, size,
                      [&](F x, int64_t) { sum = Simd::add_where(Simd::greater(x, bound), sum, weight(x)); });
      upper = Simd::sum(sum);
    } else {
      for_each_vector(row, 0, size,
                      [&](F x, int64_t) { upper += static_cast<uint64_t>(Simd::count(Simd::greater(x, bound))); });
    }
    const bool take_upper = above + upper >= target;
    int64_t chosen_size = 0;
    for_each_vector(row, 0, size, [&](F x, int64_t at) {
      // A tail's padding is -inf, below every candidate.
      const M chosen =
          take_upper ? Simd::greater(x, bound) : Simd::but_not(Simd::greater_equal(x, lowest), Simd::greater(x, bound));
      if (!Simd::any(chosen)) return;
      Simd::store_chosen(chosen, x, work.logit + chosen_size, index + at, work.index + chosen_size);
      chosen_size += Simd::count(chosen);
    });
    if (take_upper) {
      low = next_above(middle);
    } else {
      above += upper;
      high = middle;
    }
    logit = work.logit;
    index = work.index;
    size = chosen_size;
  }

  if (size > kSortable) {  // all that remain are equal, and in index order
    const uint64_t each = measure_of<kMeasure>(weight, high);
    if (each == 0 || target - above > each * static_cast<uint64_t>(size)) return {high, -1};
    const int64_t needed = static_cast<int64_t>((target - above + each - 1) / each);
    return {high, static_cast<int64_t>(index[needed - 1]) + 1};
  }
  // Ranked by counting who comes before, which vectorises: the two sorts it replaced were a fifth of a top-k row's
  // time.
  uint64_t keys[kSortable], ranked[kSortable];
  for (int64_t i = 0; i < size; ++i)
    keys[i] = static_cast<uint64_t>(static_cast<uint32_t>(order_key(logit[i])) ^ 0x80000000u) << 32 | ~index[i];
  for (int64_t i = 0; i < size; ++i) {
    uint64_t before = 0;
    for (int64_t j = 0; j < size; ++j) before += keys[j] > keys[i];
    ranked[before] = keys[i];
  }
  Cut cut{high, 0};
  for (int64_t i = 0; i < size && above < target; ++i) {
    cut = {order_key_float(static_cast<int32_t>(static_cast<uint32_t>(ranked[i] >> 32) ^ 0x80000000u)),
           static_cast<int64_t>(~static_cast<uint32_t>(ranked[i])) + 1};
    above += measure_of<kMeasure>(weight, cut.logit);
  }
  if (above < target) cut.end = -1;
  return cut;
}

// The index after the `needed`-th token equal to `value` among a base set, or -1 if there are fewer. Adds those tokens'
// weights to their chunks' sums.
template <class Row>
inline int64_t end_of_ties(const Row& row, const Chunks& chunks, Cut base, float value, int64_t needed, uint64_t each,
                           const float* chunk_maximum, uint64_t* chunk_sum) {
  const F wanted = Simd::set(value);
  const int64_t last = value == base.logit ? base.end : row.size;
  for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
    if (!(chunk_maximum[chunk] >= value) || chunks.begin(chunk) >= last) continue;
    const int64_t end = chunks.end(chunk) < last ? chunks.end(chunk) : last;
    int64_t ties = 0, found = -1;
    for_each_vector(row, chunks.begin(chunk), end, [&](F x, int64_t at) {
      const M equal = Simd::equal(x, wanted);
      const int count = Simd::count(equal);
      if (found < 0 && ties + count >= needed) {
        float lanes[kWidth];
        Simd::store(lanes, x);
        int64_t lane = 0;
        for (int64_t left = needed - ties; left > 0; ++lane) left -= lanes[lane] == value;
        found = at + lane;
      }
      ties += count;
    });
    if (chunk_sum) chunk_sum[chunk] += each * static_cast<uint64_t>(ties < needed ? ties : needed);
    if (found >= 0) return found;
    needed -= ties;
  }
  return -1;
}

// The cut of a whole row with nothing assumed: histograms of the measure over the ordered bit patterns, 11 bits a
// sweep, until the tokens of one bucket fit the candidates or are all equal. What a wrong guess costs, at most 3
// sweeps.
template <Measure kMeasure, class Row, class Weight>
inline Cut exact_cut(const Row& row, const Chunks& chunks, const Weight& weight, Cut base, float most, uint64_t target,
                     const float* chunk_maximum, RowScratch& scratch) {
  int64_t low = order_key(base.logit), high = order_key(most);
  uint64_t above = 0;
  for (;;) {
    int shift = 0;
    while ((high - low) >> shift >> kHistogramBits) ++shift;
    const int64_t buckets = ((high - low) >> shift) + 1;
    memset(scratch.histogram_measure, 0, static_cast<size_t>(buckets) * sizeof(uint64_t));
    memset(scratch.histogram_count, 0, static_cast<size_t>(buckets) * sizeof(uint32_t));
    const F low_value = Simd::set(order_key_float(static_cast<int32_t>(low)));
    const F high_value = Simd::set(order_key_float(static_cast<int32_t>(high)));
    for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
      if (!(chunk_maximum[chunk] >= order_key_float(static_cast<int32_t>(low)))) continue;
      for_each_stretch(base, chunks.begin(chunk), chunks.end(chunk), [&](int64_t begin, int64_t end, float least) {
        for_each_vector(row, begin, end, [&](F x, int64_t) {
          const M inside = Simd::both(Simd::greater_equal(x, low_value), Simd::greater_equal(high_value, x));
          if (!Simd::any(inside)) return;
          float lanes[kWidth];
          uint64_t weights[kWidth];
          Simd::store(lanes, x);
          if (kMeasure == Measure::kMass) Simd::store(weights, weight(x));
          for (int lane = 0; lane < kWidth; ++lane) {
            const int64_t key = order_key(lanes[lane]);
            if (!(lanes[lane] >= least) || key < low || key > high) continue;
            scratch.histogram_measure[(key - low) >> shift] += kMeasure == Measure::kMass ? weights[lane] : 1;
            ++scratch.histogram_count[(key - low) >> shift];
          }
        });
      });
    }
    int64_t bucket = buckets - 1;
    while (bucket > 0 && above + scratch.histogram_measure[bucket] < target)
      above += scratch.histogram_measure[bucket--];
    if (above + scratch.histogram_measure[bucket] < target) return base;  // fewer tokens than top_k asks for
    const int64_t bucket_low = low + (bucket << shift);
    const int64_t bucket_high = bucket_low + (int64_t{1} << shift) - 1;
    low = bucket_low;
    high = bucket_high < high ? bucket_high : high;
    const float low_logit = order_key_float(static_cast<int32_t>(low));
    const float high_logit = order_key_float(static_cast<int32_t>(high));
    if (low == high) {
      const uint64_t each = measure_of<kMeasure>(weight, low_logit);
      const int64_t needed = static_cast<int64_t>((target - above + each - 1) / each);
      return {low_logit, end_of_ties(row, chunks, base, low_logit, needed, each, chunk_maximum, nullptr)};
    }
    if (scratch.histogram_count[bucket] + kVectorPadding <= kCandidateCapacity) {
      Candidates& found = scratch.parts[0].candidates;
      found.size = 0;
      for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
        if (!(chunk_maximum[chunk] >= low_logit)) continue;
        for_each_stretch(base, chunks.begin(chunk), chunks.end(chunk), [&](int64_t begin, int64_t end, float least) {
          const F lower = Simd::set(least > low_logit ? least : low_logit), upper = Simd::set(high_logit);
          for_each_vector(row, begin, end, [&](F x, int64_t at) {
            const M chosen = Simd::both(Simd::greater_equal(x, lower), Simd::greater_equal(upper, x));
            if (!Simd::any(chosen)) return;
            Simd::store_chosen(chosen, x, found.logit + found.size, static_cast<uint32_t>(at),
                               found.index + found.size);
            found.size += Simd::count(chosen);
          });
        });
      }
      return cut_candidates<kMeasure>(found, weight, {low_logit, high_logit}, target - above, scratch.work);
    }
  }
}

}  // namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET
