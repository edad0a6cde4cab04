// Which tokens a row keeps (law section 3): steps bound, gather, weigh and cut, in the cheapest order that is exact.
#pragma once

#include "cut.h"

namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET {

// The kept set of a row.
struct Kept {
  enum Where {
    kInList,         // the first part's candidates are exactly the kept tokens
    kInRow,          // the cut says which they are
    kInRowWithSums,  // and chunk_sum holds their mass in each chunk
  };
  Cut cut;
  Where where;
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
  mutable uint64_t mass_of_everything = 0;  // once it has been summed

  int64_t first(int64_t part) const { return chunks.first_of_part(part, team.parts); }
  Cut everything() const { return {-kFloatMax, row.size}; }
  bool is_everything(Cut cut) const { return cut.logit == -kFloatMax && cut.end == row.size; }
  bool has_top_k() const { return fastsample::has_top_k(filters, row.size); }
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
    const uint64_t total = weigh_row(row, chunks, weight, cut, scratch.chunk_maximum, scratch, team);
    if (is_everything(cut)) mass_of_everything = total;
    return total;
  }

  // What the chunks of a row with sums weigh together.
  uint64_t sum_of_chunks() const {
    uint64_t total = 0;
    for (int64_t chunk = 0; chunk < chunks.count; ++chunk) total += scratch.chunk_sum[chunk];
    return total;
  }

  bool too_many(int64_t k) const { return row.size > kCandidateCapacity && k > kCandidateCapacity / 2; }

  // A logit that at least k tokens reach, and, on most rows, few more.
  float bound_of_top_k() const {
    const int64_t k = filters.top_k;
    if (k <= chunks.count * 3 / 4) return value_reached_by(scratch.chunk_maximum, chunks.count, k, most);
    if (row.size <= kCandidateCapacity || too_many(k)) return -kFloatMax;
    const Sample sample = take_sample(row, scratch);
    const double expected = static_cast<double>(k) / sample.tokens_each;
    const int64_t wanted = static_cast<int64_t>(expected + 4 * __builtin_sqrt(expected) + 4);
    return value_reached_by(sample.logit.data, sample.logit.size, wanted, most);
  }

  // The kept set of law section 3.
  Kept select() const {
    if (!has_top_k() && !has_min_p(filters)) {
      if (!has_top_p(filters)) return {everything(), Kept::kInRow};
      return select_by_mass(everything());
    }
    const Cut min_p = has_min_p(filters) ? cut_of_min_p() : everything();
    // What min_p removes may be left out of the list, unless top_p's base set contains it.
    const bool min_p_first =
        !has_top_p(filters) || base_is_everything(filters, row.size) || filters.order == Order::kMinPFirst;
    const float needed_from = min_p_first ? min_p.logit : -kFloatMax;
    float bound = has_top_k() ? bound_of_top_k() : -kFloatMax;
    if (needed_from > bound) bound = needed_from;
    if (has_top_k() && too_many(filters.top_k)) return select_in_row(min_p);

    Candidates& candidates = gather_reaching(bound, has_top_k() ? filters.top_k : row.size);
    // A bound guessed from a sample may have been too high.
    const bool missed = has_top_k() && candidates.size < filters.top_k && bound > needed_from;
    if (candidates.overflow || missed) return select_in_row(min_p);
    return select_among(candidates, bound, min_p, min_p_first);
  }

  // top_k and min_p left a list: all that follows happens there.
  Kept select_among(Candidates& candidates, float bound, Cut min_p, bool min_p_first) const {
    Cut cut = min_p_first ? min_p : everything();
    const auto narrow = [&](Cut next) {
      cut = tighter(cut, next);
      keep(candidates, next, scratch.work);
    };
    const Bracket list{bound, most};
    if (has_top_k() && candidates.size >= filters.top_k)
      narrow(cut_candidates<Measure::kCount>(candidates, weight, list, static_cast<uint64_t>(filters.top_k),
                                             scratch.work));
    if (has_top_p(filters)) {
      const uint64_t mass = mass_of(candidates, weight);
      const uint64_t base = base_is_everything(filters, row.size) ? weigh_kept(everything()) : mass;
      const uint64_t target = mass_bound(filters.top_p, base);
      if (mass >= target) narrow(cut_candidates<Measure::kMass>(candidates, weight, list, target, scratch.work));
    }
    if (has_min_p(filters) && !min_p_first) narrow(min_p);
    return {cut, Kept::kInList};
  }

  // What top_k or min_p keep is too much for a list: cuts of the whole row.
  Kept select_in_row(Cut min_p) const {
    Cut top_k = everything();
    if (has_top_k())
      top_k = exact_cut<Measure::kCount>(row, chunks, weight, everything(), most, static_cast<uint64_t>(filters.top_k),
                                         scratch.chunk_maximum, scratch);
    const Cut both = tighter(top_k, min_p);
    if (!has_top_p(filters)) return {both, Kept::kInRow};
    const Cut base = base_is_everything(filters, row.size) ? everything()
                     : filters.order == Order::kMinPFirst  ? both
                                                           : top_k;
    const Kept kept = select_by_mass(base);
    const Cut cut = tighter(kept.cut, both);
    if (cut.logit == kept.cut.logit && cut.end == kept.cut.end) return kept;
    return {cut, Kept::kInRow};
  }

  // top_p over a base set of the whole row: guess where the cut lies, then in one sweep sum Z and gather that place.
  Kept select_by_mass(Cut base) const {
    if (most == kInfinity) return exact_select(base, mass_bound(filters.top_p, weigh_kept(base)));
    Kept kept;
    uint64_t target;
    if (row.size < kShortRow) {  // all of it fits the list, so nothing can be missed
      bracket_select(base, {-kFloatMax, kInfinity}, kept, target);
      return kept;
    }
    const Sample sample = take_sample(row, scratch);
    weigh_sample(sample, base, weight, scratch);
    Head head{0, kInfinity, mass_below(sample, kInfinity)};
    if (base.logit == -kFloatMax && peaked(head.rest)) {
      Candidates& candidates = gather_head(head);
      head.rest = mass_below(sample, head.logit);
      const double known = static_cast<double>(head.mass);
      if (known > static_cast<double>(filters.top_p) * (known + head.rest.mass + 4 * head.rest.deviation)) {
        target = mass_bound(filters.top_p, weigh_kept(base));
        if (head.mass >= target) {
          const Bracket holding{head.logit, most};
          const Cut cut = cut_candidates<Measure::kMass>(candidates, weight, holding, target, scratch.work);
          keep(candidates, cut, scratch.work);
          return {cut, Kept::kInList};
        }
      }
    }
    // Three deviations of a normal estimate miss once in 400; the next guess, with eight, costs one more sweep.
    Bracket tried{kInfinity, kInfinity};
    constexpr double kDeviations[] = {3.0, 8.0};
    for (const double deviations : kDeviations) {
      const Bracket bracket = bracket_of_tail(sample, filters.top_p, head, deviations);
      if (bracket.low == tried.low && bracket.high == tried.high) break;
      if (bracket_select(base, bracket, kept, target)) return kept;
      tried = bracket;
    }
    return exact_select(base, target);
  }

  // Do a few tokens hold much of the mass? The chunk maxima are as many tokens as there are chunks; in a flat row they
  // hold little, and the sample alone tells enough.
  bool peaked(Estimated all) const {
    const ContiguousRow<float> maxima{scratch.chunk_maximum, chunks.count};
    F sum = Simd::set(0.0f);
    for_each_vector(maxima, 0, maxima.size, [&](F x, int64_t) { sum = Simd::add(sum, weight.product(x)); });
    return Simd::horizontal_sum(sum) > 0.1 * all.mass;
  }

  // The row's largest tokens and their mass: 128, or a quarter as many as the row has chunks. On the peaked rows of
  // real models they are often all that top_p keeps. Of tokens tied at the end up to 4096 come along; more are left to
  // the sample, which sees so many.
  Candidates& gather_head(Head& head) const {
    const int64_t size = chunks.count / 4 < 128 ? chunks.count / 4 : 128;
    head.logit = value_reached_by(scratch.chunk_maximum, chunks.count, size, most);
    Candidates& candidates = gather_reaching(head.logit, 4096);
    if (candidates.overflow) {
      head.logit = kInfinity;
      return candidates;
    }
    if (candidates.ties_left_out) {
      keep(candidates, {head.logit, 0}, scratch.work);
      head.logit = next_above(head.logit);
    }
    head.mass = mass_of(candidates, weight);
    return candidates;
  }

  // The cut of top_p, if it is inside the bracket and the bracket's tokens fit the list; in any case the mass to reach.
  bool bracket_select(Cut base, Bracket bracket, Kept& kept, uint64_t& target) const {
    const bool all = is_everything(base);
    team.run([&](int64_t part) {
      const auto sweep = all ? weigh_and_gather<true, Row, Weight> : weigh_and_gather<false, Row, Weight>;
      sweep(row, chunks, first(part), first(part + 1), weight, base, bracket, scratch.chunk_maximum, scratch.chunk_sum,
            scratch.parts[part]);
    });
    uint64_t total = 0, above = 0;
    for (int64_t part = 0; part < team.parts; ++part) {
      total += scratch.parts[part].total;
      above += scratch.parts[part].above;
    }
    if (all) mass_of_everything = total;
    target = mass_bound(filters.top_p, total);
    if (above >= target) return false;
    if (bracket.low == bracket.high) {  // one value: its tokens are counted, not gathered
      const uint64_t each = weight_of(weight, bracket.low);
      if (each == 0) return false;
      const int64_t needed = static_cast<int64_t>((target - above + each - 1) / each);
      const int64_t end =
          end_of_ties(row, chunks, base, bracket.low, needed, each, scratch.chunk_maximum, scratch.chunk_sum);
      kept = {{bracket.low, end}, Kept::kInRowWithSums};
      return end >= 0;
    }
    Candidates& candidates = concatenate(scratch, team.parts);
    if (candidates.overflow) return false;
    const Bracket holding{bracket.low, bracket.high < most ? bracket.high : most};
    const Cut cut = cut_candidates<Measure::kMass>(candidates, weight, holding, target - above, scratch.work);
    if (cut.end < 0) return false;
    if (bracket.high >= most) {
      keep(candidates, cut, scratch.work);
      kept = {cut, Kept::kInList};
    } else {
      add_to_chunks(candidates, weight, cut, chunks, scratch.chunk_sum);
      kept = {cut, Kept::kInRowWithSums};
    }
    return true;
  }

  Kept exact_select(Cut base, uint64_t target) const {
    return {exact_cut<Measure::kMass>(row, chunks, weight, base, most, target, scratch.chunk_maximum, scratch),
            Kept::kInRow};
  }
};

}  // namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET
