// The kernels of one instruction set: the law's steps in order, over one row.
#pragma once

#include "draw.h"
#include "maximum.h"

namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET {

// The kept set of a row.
struct Kept {
  Cut cut;
  bool gathered;    // the first part's candidates are exactly the kept tokens
  bool sums_ready;  // chunk_sum holds the kept mass of each chunk of the row
};

// A row with what its steps share.
template <class Row, class Weight>
struct Selection {
  const Row& row;
  const Chunks& chunks;
  const Filters& filters;
  const Weight& weight;
  float most;
  RowScratch& scratch;
  const Team& team;

  int64_t first(int64_t part) const { return chunks.first_of_part(part, team.parts); }
  Cut everything() const { return {-kFloatMax, row.size}; }
  bool by_k() const { return filters.top_k > 0 && filters.top_k < row.size; }
  bool by_m() const { return filters.min_p > 0; }
  bool by_p() const { return filters.top_p < 1; }

  // Law section 3: does Z_B, of which top_p keeps a share, sum over all tokens?
  bool base_is_everything() const {
    switch (filters.order) {
      case Order::kTopKFirst:
        return !by_k();
      case Order::kMinPFirst:
        return !by_k() && !by_m();
      default:
        return true;
    }
  }

  // Weights never decrease with the logit, so min_p is a bound on logits.
  Cut cut_of_min_p() const {
    const uint64_t least = mass_bound(filters.min_p, weight_of(weight, most));
    return {smallest_reaching(weight, least, most), row.size};
  }

  Candidates& gather_reaching(float bound, int64_t ties) const {
    team.run([&](int64_t part) {
      gather(row, chunks, first(part), first(part + 1), scratch.chunk_maximum, bound, ties,
             scratch.parts[part].candidates);
    });
    return concatenate(scratch, team.parts);
  }

  uint64_t weigh_kept(Cut cut) const {
    team.run([&](int64_t part) {
      scratch.parts[part].total = weigh_chunks(row, chunks, first(part), first(part + 1), weight, cut,
                                               scratch.chunk_maximum, scratch.chunk_sum);
    });
    uint64_t total = 0;
    for (int64_t part = 0; part < team.parts; ++part) total += scratch.parts[part].total;
    return total;
  }

  bool too_many(int64_t k) const { return row.size > kCandidateCapacity && k > kCandidateCapacity / 2; }

  // A logit that at least k tokens reach, and, on most rows, few more.
  float bound_of_top_k() const {
    const int64_t k = filters.top_k;
    if (k <= chunks.count * 3 / 4) return bound_of_chunk_maxima(scratch.chunk_maximum, chunks.count, k, most);
    if (row.size <= kCandidateCapacity || too_many(k)) return -kFloatMax;
    const Sample sample = take_sample(row, everything(), [](F x) { return x; }, scratch);
    const double expected = static_cast<double>(k) / sample.tokens_each;
    const int64_t wanted = static_cast<int64_t>(expected + 4 * __builtin_sqrt(expected) + 4);
    return bound_of_chunk_maxima(sample.logit.data, sample.logit.size, wanted, most);
  }

  // The kept set of law section 3.
  Kept select() const {
    if (!by_k() && !by_m()) {
      if (!by_p()) return {everything(), false, false};
      return select_by_mass(everything());
    }
    const Cut floor = by_m() ? cut_of_min_p() : everything();
    const bool floor_before_top_p = !by_p() || base_is_everything() || filters.order == Order::kMinPFirst;
    float bound = by_k() ? bound_of_top_k() : -kFloatMax;
    if (by_m() && floor_before_top_p && floor.logit > bound) bound = floor.logit;
    if (by_k() && too_many(filters.top_k)) return select_in_row(floor);

    Candidates& candidates = gather_reaching(bound, by_k() ? filters.top_k : row.size);
    const float complete_from = floor_before_top_p ? floor.logit : -kFloatMax;
    const bool missed = by_k() && candidates.size < filters.top_k && bound > complete_from;
    if (candidates.overflow || missed) return select_in_row(floor);
    return select_among(candidates, bound, floor, floor_before_top_p);
  }

  // top_k and min_p left a list: all that follows happens there.
  Kept select_among(Candidates& candidates, float bound, Cut floor, bool floor_before_top_p) const {
    Cut cut = floor_before_top_p ? floor : everything();
    const auto narrow = [&](Cut next) {
      cut = tighter(cut, next);
      keep(candidates, next, scratch.work);
    };
    if (by_k() && candidates.size >= filters.top_k)
      narrow(cut_candidates<Measure::kCount>(candidates, weight, {bound, most}, static_cast<uint64_t>(filters.top_k),
                                             scratch.work));
    if (by_p()) {
      const uint64_t mass = mass_of(candidates, weight);
      const uint64_t base = base_is_everything() ? weigh_kept(everything()) : mass;
      const uint64_t target = mass_bound(filters.top_p, base);
      if (mass >= target)
        narrow(cut_candidates<Measure::kMass>(candidates, weight, {bound, most}, target, scratch.work));
    }
    if (by_m() && !floor_before_top_p) narrow(floor);
    return {cut, true, false};
  }

  // What top_k or min_p keep is too much for a list: cuts of the whole row.
  Kept select_in_row(Cut floor) const {
    Cut top_k = everything();
    if (by_k())
      top_k = exact_cut<Measure::kCount>(row, chunks, weight, everything(), most, static_cast<uint64_t>(filters.top_k),
                                         scratch.chunk_maximum, scratch);
    const Cut both = tighter(top_k, floor);
    if (!by_p()) return {both, false, false};
    const Cut base = base_is_everything() ? everything() : filters.order == Order::kMinPFirst ? both : top_k;
    Kept kept = select_by_mass(base);
    const Cut cut = tighter(kept.cut, both);
    if (cut.logit == kept.cut.logit && cut.end == kept.cut.end) return kept;
    return {cut, false, false};
  }

  // top_p over a base set of the whole row: guess where the cut lies, then in one sweep sum Z and gather that place.
  Kept select_by_mass(Cut base) const {
    if (most == kInfinity) return exact_select(base, mass_bound(filters.top_p, weigh_kept(base)));
    if (row.size < kSampleCapacity) {
      const Kept kept = bracket_select(base, {-kFloatMax, kInfinity});
      if (kept.gathered) return kept;
    }
    const Sample sample = take_sample(row, base, [&](F x) { return weight.estimate(x); }, scratch);
    Head head{0, kInfinity, mass_below(sample, kInfinity)};
    if (base.logit == -kFloatMax && peaked(head.rest)) {
      Candidates& candidates = gather_head(head);
      head.rest = mass_below(sample, head.logit);
      const double known = static_cast<double>(head.mass);
      if (known > static_cast<double>(filters.top_p) * (known + head.rest.mass + 4 * head.rest.deviation)) {
        const uint64_t target = mass_bound(filters.top_p, weigh_kept(base));
        if (head.mass >= target) {
          const Bracket holding{head.logit, most};
          const Cut cut = cut_candidates<Measure::kMass>(candidates, weight, holding, target, scratch.work);
          keep(candidates, cut, scratch.work);
          return {cut, true, false};
        }
      }
    }
    // Three deviations miss once in 400 rows, and a miss costs one more sweep, with eight.
    constexpr double kDeviations[] = {3.0, 8.0};
    for (const double deviations : kDeviations) {
      const Bracket bracket = bracket_of_tail(sample, filters.top_p, head, deviations);
      const Kept kept = bracket_select(base, bracket);
      if (kept.gathered || kept.sums_ready) return kept;
    }
    return exact_select(base, mass_bound(filters.top_p, weigh_kept(base)));
  }

  // Do a few tokens hold much of the mass? The chunk maxima are as many tokens as there are chunks; in a flat row they
  // hold a hundredth, and the sample alone tells enough.
  bool peaked(Estimated all) const {
    const ContiguousRow<float> maxima{scratch.chunk_maximum, chunks.count};
    F sum = Simd::set(0.0f);
    for_each_vector(maxima, 0, maxima.size, [&](F x, int64_t) { sum = Simd::add(sum, weight.estimate(x)); });
    return Simd::horizontal_sum(sum) > 0.1 * all.mass;
  }

  // The row's largest tokens, 128 or a quarter as many as it has chunks, and their mass. On the peaked rows of real
  // models they are often all that top_p keeps.
  Candidates& gather_head(Head& head) const {
    const int64_t size = chunks.count / 4 < 128 ? chunks.count / 4 : 128;
    head.logit = bound_of_chunk_maxima(scratch.chunk_maximum, chunks.count, size, most);
    Candidates& candidates = gather_reaching(head.logit, size);
    if (candidates.overflow) {
      head = {0, kInfinity, {}};
      return candidates;
    }
    if (candidates.ties_left_out) {  // what is above them is complete
      keep(candidates, {head.logit, 0}, scratch.work);
      head.logit = next_above(head.logit);
    }
    head.mass = mass_of(candidates, weight);
    return candidates;
  }

  // Neither gathered nor sums_ready: the cut is outside the bracket, or the bracket holds too much.
  Kept bracket_select(Cut base, Bracket bracket) const {
    const bool ties_only = bracket.low == bracket.high;
    team.run([&](int64_t part) {
      const bool all = base.logit == -kFloatMax && base.end == row.size;
      const auto sweep = all ? weigh_and_gather<true, Row, Weight> : weigh_and_gather<false, Row, Weight>;
      sweep(row, chunks, first(part), first(part + 1), weight, base, bracket, scratch.chunk_maximum, scratch.chunk_sum,
            scratch.parts[part]);
    });
    uint64_t total = 0, above = 0;
    for (int64_t part = 0; part < team.parts; ++part) {
      total += scratch.parts[part].total;
      above += scratch.parts[part].above;
    }
    const uint64_t target = mass_bound(filters.top_p, total);
    const Kept missed{base, false, false};
    if (above >= target) return missed;
    if (ties_only) {
      const uint64_t each = weight_of(weight, bracket.low);
      if (each == 0) return missed;
      const int64_t needed = static_cast<int64_t>((target - above + each - 1) / each);
      const int64_t end =
          end_of_ties(row, chunks, base, bracket.low, needed, each, scratch.chunk_maximum, scratch.chunk_sum);
      return end < 0 ? missed : Kept{{bracket.low, end}, false, true};
    }
    Candidates& candidates = concatenate(scratch, team.parts);
    if (candidates.overflow) return missed;
    const Bracket holding{bracket.low, bracket.high < most ? bracket.high : most};
    const Cut cut = cut_candidates<Measure::kMass>(candidates, weight, holding, target - above, scratch.work);
    if (cut.end < 0) return missed;
    if (bracket.high >= most) {
      keep(candidates, cut, scratch.work);
      return {cut, true, false};
    }
    add_to_chunks(candidates, weight, cut, chunks, scratch.chunk_sum);
    return {cut, false, true};
  }

  Kept exact_select(Cut base, uint64_t target) const {
    return {exact_cut<Measure::kMass>(row, chunks, weight, base, most, target, scratch.chunk_maximum, scratch), false,
            false};
  }
};

inline void invalid_row(const Draws& draws) {
  for (int64_t i = 0; i < draws.count; ++i) draws.tokens[i * draws.tokens_stride] = -1;
}

// Law section 1: what makes a row invalid besides its tokens. Each comparison is false for NaN.
inline bool valid_filters(const Filters& filters) {
  return (filters.probabilities || filters.temperature >= 0) && filters.top_p >= 0 && filters.top_p <= 1 &&
         filters.min_p >= 0 && filters.min_p <= 1;
}

// Step maximum over a team, and whether the row is valid.
template <class Row>
inline bool read_row(const Row& row, const Chunks& chunks, const Filters& filters, RowScratch& scratch,
                     const Team& team, float& most) {
  if (!valid_filters(filters)) return false;
  team.run([&](int64_t part) {
    const int64_t first = chunks.first_of_part(part, team.parts), last = chunks.first_of_part(part + 1, team.parts);
    if (filters.probabilities)
      maximum<true>(row, chunks, first, last, scratch.chunk_maximum, scratch.parts[part]);
    else
      maximum<false>(row, chunks, first, last, scratch.chunk_maximum, scratch.parts[part]);
  });
  most = -kInfinity;
  for (int64_t part = 0; part < team.parts; ++part) {
    if (scratch.parts[part].invalid) return false;
    most = scratch.parts[part].maximum > most ? scratch.parts[part].maximum : most;
  }
  return filters.probabilities ? most > 0 && most < kInfinity : most > -kInfinity;
}

// Only the first maximum is kept: temperature 0, and top_k 1 whatever the other filters.
inline bool greedy(const Filters& filters) {
  return (filters.temperature == 0 && !filters.probabilities) || filters.top_k == 1;
}

// Calls body(weight) with the weights that the row calls for.
template <class Body>
inline void with_weight(const Filters& filters, float most, int64_t vocab, const Body& body) {
  if (filters.probabilities)
    body(SpecialWeight::of_probabilities(most, vocab));
  else if (most == kInfinity)
    body(SpecialWeight::of_infinite());
  else
    body(LogitWeight(most, filters.temperature));
}

template <class Row>
void sample_row(const Row& row, const Filters& filters, const Draws& draws, RowScratch& scratch, const Team& team) {
  const Chunks chunks(row.size);
  float most;
  if (!read_row(row, chunks, filters, scratch, team, most)) return invalid_row(draws);
  if (greedy(filters)) {
    const int64_t token = first_maximum(row, chunks, scratch.chunk_maximum, most);
    for (int64_t i = 0; i < draws.count; ++i)
      draws.tokens[i * draws.tokens_stride] = draws.replacement || i == 0 ? token : -1;
    return;
  }
  with_weight(filters, most, row.size, [&](const auto& weight) {
    const Selection<Row, std::decay_t<decltype(weight)>> selection{row, chunks, filters, weight, most, scratch, team};
    const Kept kept = selection.select();
    if (kept.gathered) {
      const Candidates& candidates = scratch.parts[0].candidates;
      const ContiguousRow<float> list{candidates.logit, candidates.size};
      const Chunks list_chunks(list.size);
      const Cut all{-kFloatMax, list.size};
      weigh_chunks(list, list_chunks, 0, list_chunks.count, weight, all, nullptr, scratch.chunk_sum);
      draw(Survivors<ContiguousRow<float>, std::decay_t<decltype(weight)>>{list, candidates.index, list_chunks, weight,
                                                                           all, scratch.chunk_sum},
           draws);
    } else {
      if (!kept.sums_ready) selection.weigh_kept(kept.cut);
      draw(Survivors<Row, std::decay_t<decltype(weight)>>{row, nullptr, chunks, weight, kept.cut, scratch.chunk_sum},
           draws);
    }
  });
}

// Calls body(weight, cut, total) with the kept set of a valid row, or returns false.
template <class Row, class Body>
bool with_kept(const Row& row, const Filters& filters, RowScratch& scratch, const Team& team, const Body& body) {
  const Chunks chunks(row.size);
  float most;
  if (!read_row(row, chunks, filters, scratch, team, most)) return false;
  with_weight(filters, most, row.size, [&](const auto& weight) {
    if (greedy(filters))
      return body(weight, Cut{most, first_maximum(row, chunks, scratch.chunk_maximum, most) + 1}, kLargestWeight);
    const Selection<Row, std::decay_t<decltype(weight)>> selection{row, chunks, filters, weight, most, scratch, team};
    const Kept kept = selection.select();
    if (kept.gathered) return body(weight, kept.cut, mass_of(scratch.parts[0].candidates, weight));
    body(weight, kept.cut, selection.weigh_kept(kept.cut));
  });
  return true;
}

// Calls body(vector, is_kept, index, count) over the row.
template <class Row, class Body>
void for_each_kept(const Row& row, const Chunks& chunks, Cut cut, const Team& team, const Body& body) {
  team.run([&](int64_t part) {
    const int64_t begin = chunks.begin(chunks.first_of_part(part, team.parts));
    const int64_t end = chunks.end(chunks.first_of_part(part + 1, team.parts) - 1);
    for_each_stretch(cut, begin, end, [&](int64_t first, int64_t last, float least) {
      const F bound = Simd::set(least);
      for_each_vector(row, first, last, [&](F x, int64_t at) {
        body(x, Simd::greater_equal(x, bound), at, last - at < kWidth ? last - at : kWidth);
      });
    });
  });
}

template <class Row, class Element>
void filter_logits_row(const Row& row, const Element* in, int64_t in_stride, Element removed, Element invalid,
                       const Filters& filters, Element* out, RowScratch& scratch, const Team& team) {
  const bool valid = with_kept(row, filters, scratch, team, [&](const auto&, Cut cut, uint64_t) {
    for_each_kept(row, Chunks(row.size), cut, team, [&](F, M kept, int64_t at, int64_t count) {
      float lanes[kWidth];
      Simd::store(lanes, Simd::select(kept, Simd::set(1.0f), Simd::set(0.0f)));
      for (int64_t lane = 0; lane < count; ++lane)
        out[at + lane] = lanes[lane] != 0 ? in[(at + lane) * in_stride] : removed;
    });
  });
  if (!valid)
    for (int64_t i = 0; i < row.size; ++i) out[i] = invalid;
}

// Law section 5: fl(1 / fl(Z * 2^-40)), and the probability of a token from 2^40 * 2^d.
inline float reciprocal_mass(uint64_t total) {
  return 1.0f / (static_cast<float>(total) * 0x1p-40f);
}

FASTSAMPLE_INLINE F scaled_probability(const LogitWeight& weight, F x, M& counts) {
  const F d = weight.exponent(x);
  counts = Simd::greater_equal(d, Simd::set(-126.0f));
  return weight.scaled_power(d);
}
FASTSAMPLE_INLINE F scaled_probability(const SpecialWeight& weight, F x, M& counts) {
  const F y = weight.scaled(x);
  counts = Simd::greater(y, Simd::set(0.0f));
  return y;
}

template <class Row>
void filtered_probs_row(const Row& row, const Filters& filters, float* out, RowScratch& scratch, const Team& team) {
  const bool valid = with_kept(row, filters, scratch, team, [&](const auto& weight, Cut cut, uint64_t total) {
    const F reciprocal = Simd::set(reciprocal_mass(total));
    for_each_kept(row, Chunks(row.size), cut, team, [&](F x, M kept, int64_t at, int64_t count) {
      M counts;
      const F power = Simd::mul(scaled_probability(weight, x, counts), Simd::set(0x1p-40f));
      const F p = Simd::select(Simd::both(kept, counts), Simd::mul(power, reciprocal), Simd::set(0.0f));
      if (count == kWidth) return Simd::store(out + at, p);
      float lanes[kWidth];
      Simd::store(lanes, p);
      memcpy(out + at, lanes, static_cast<size_t>(count) * sizeof(float));
    });
  });
  if (!valid)
    for (int64_t i = 0; i < row.size; ++i) out[i] = __builtin_nanf("");
}

inline float exponent_of(const LogitWeight& weight, float x) {
  return (x - weight.most) * weight.scale;
}
inline float exponent_of(const SpecialWeight&, float x) {
  return x == kInfinity ? 0.0f : -kInfinity;
}

template <class Row>
void log_probs_row(const Row& row, const Filters& filters, const int64_t* tokens, int64_t tokens_stride, int64_t count,
                   float* out, RowScratch& scratch, const Team& team) {
  const bool valid = with_kept(row, filters, scratch, team, [&](const auto& weight, Cut cut, uint64_t total) {
    const float others = static_cast<float>(total - kLargestWeight) * 0x1p-40f;
    const float normaliser = __builtin_log1pf(others);
    constexpr float kLn2 = 0x1.62e430p-1f;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t token = tokens[i * tokens_stride];
      if (token < 0 || token >= row.size) {
        out[i] = __builtin_nanf("");
        continue;
      }
      const float x = row.at(token);
      const float d = exponent_of(weight, x);
      const bool kept = x > cut.logit || (x == cut.logit && token < cut.end);
      out[i] = kept && d > -kInfinity ? -(-d * kLn2 + normaliser) : -kInfinity;
    }
  });
  if (!valid)
    for (int64_t i = 0; i < count; ++i) out[i] = __builtin_nanf("");
}

// Calls body(row) with the row's type: the one place where dtype and stride are told apart.
template <class Body>
void with_row(const RowView& view, const Body& body) {
  if (view.stride != 1 && view.vocab > 1) return body(StridedRow{view.data, view.stride, view.dtype, view.vocab});
  switch (view.dtype) {
    case DType::kFloat32:
      return body(ContiguousRow<float>{static_cast<const float*>(view.data), view.vocab});
    case DType::kFloat16:
      return body(ContiguousRow<Float16>{static_cast<const Float16*>(view.data), view.vocab});
    case DType::kBFloat16:
      return body(ContiguousRow<BFloat16>{static_cast<const BFloat16*>(view.data), view.vocab});
  }
}

constexpr Kernels kKernels = {
    [](const RowView& view, const Filters& filters, const Draws& draws, RowScratch& scratch, const Team& team) {
      with_row(view, [&](const auto& row) { sample_row(row, filters, draws, scratch, team); });
    },
    [](const RowView& view, const Filters& filters, void* out, RowScratch& scratch, const Team& team) {
      with_row(view, [&](const auto& row) {
        const auto filter = [&](auto removed, auto invalid) {
          using Element = decltype(removed);
          filter_logits_row(row, static_cast<const Element*>(view.data), view.stride, removed, invalid, filters,
                            static_cast<Element*>(out), scratch, team);
        };
        if (view.dtype == DType::kFloat32)
          filter(-kInfinity, __builtin_nanf(""));
        else if (view.dtype == DType::kFloat16)
          filter(Float16{0xFC00}, Float16{0x7E00});
        else
          filter(BFloat16{0xFF80}, BFloat16{0x7FC0});
      });
    },
    [](const RowView& view, const Filters& filters, float* out, RowScratch& scratch, const Team& team) {
      with_row(view, [&](const auto& row) { filtered_probs_row(row, filters, out, scratch, team); });
    },
    [](const RowView& view, const Filters& filters, const int64_t* tokens, int64_t tokens_stride, int64_t count,
       float* out, RowScratch& scratch, const Team& team) {
      with_row(view,
               [&](const auto& row) { log_probs_row(row, filters, tokens, tokens_stride, count, out, scratch, team); });
    },
};

}  // namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET
