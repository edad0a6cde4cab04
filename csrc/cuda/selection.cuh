// Which tokens a row keeps (law section 3): steps bound, gather, weigh and cut, in the cheapest order that is exact.
#pragma once

#include "cut.cuh"

namespace fastsample::cuda {

// Up to three quarters of the maxima may be asked for: the rest is spent where one part of the row holds several of the
// largest tokens.
constexpr uint32_t kLargestBoundedK = kMaxima / 4 * 3;
constexpr uint32_t kFewK = kFewMaxima / 4;
// On the peaked rows of real models the first 128 tokens are often all that top_p keeps.
constexpr uint32_t kHead = 128;

// How many of a row's largest tokens to look for, by a bound; 0 for none.
__device__ __forceinline__ uint32_t tokens_to_bound(const Filters& filters, uint32_t vocab) {
  if (greedy(filters)) return 0;
  if (has_top_k(filters, vocab)) return filters.top_k <= kLargestBoundedK ? static_cast<uint32_t>(filters.top_k) : 0;
  return has_top_p(filters) && base_is_everything(filters, vocab) ? kHead : 0;
}

// The kept set of a row. Where `in_list`, it is what the leading block's list has a place at or above `last`.
struct Kept {
  Cut cut;
  uint64_t last;
  bool in_list;
  uint32_t size;  // of the list
};

template <class Row>
struct Selection {
  const Sweeps<Row>& sweeps;
  const Histogram& histogram;
  const Filters& filters;
  float head;  // what top_k keeps is at or above it; or where to look for what top_p keeps

  __device__ bool has_top_k() const { return fastsample::has_top_k(filters, sweeps.row.vocab); }
  __device__ bool has_min_p() const { return fastsample::has_min_p(filters); }
  __device__ bool has_top_p() const { return fastsample::has_top_p(filters); }
  __device__ bool base_is_everything() const { return fastsample::base_is_everything(filters, sweeps.row.vocab); }

  // The kept set, the same in every thread, but for `last`, which only the leading block knows.
  __device__ __forceinline__ Kept select() const {
    Group& group = sweeps.group;
    if (!has_top_k() && !has_min_p() && !has_top_p()) return in_row(everything());
    const bool whole = has_top_p() && base_is_everything();
    const uint64_t whole_mass = whole ? sweeps.mass(everything()) : 0;
    uint64_t least_weight = 1;
    float lightest = -kFloatMax;  // what min_p keeps is at or above it
    if (has_min_p()) {
      least_weight = mass_bound(filters.min_p, sweeps.weight(sweeps.weight.most));
      lightest = bound_of_weight(sweeps.weight, least_weight, group.lane);
    }
    if (!has_top_k() || filters.top_k <= kListSize) {
      // Without top_k the head may hold less mass than top_p keeps, unless min_p keeps no more than the head anyway.
      const bool complete = has_top_k() || !whole || lightest >= head;
      const float bound = has_top_k() ? head : complete ? lightest : head;
      const uint32_t size = gather(group, sweeps.row, sweeps.reach, everything(), bound, kInfinity, sweeps.list);
      if (size <= kListSize) {
        uint64_t last = group.leads() ? last_kept(size, least_weight, whole_mass, complete) : 0;
        if (!complete) last = group.tell(group.leads() && group.thread() == 0 ? last : 0);
        if (complete || last != 0) return {everything(), last, true, size};
      }
    }
    return in_row(cut_of_row(has_top_k() ? head : -kFloatMax, lightest, whole_mass));
  }

 private:
  __device__ Kept in_row(Cut cut) const { return {cut, 0, false, 0}; }

  // In the leading block: the place of the last token kept, or 0 where the list does not hold enough mass to know.
  __device__ uint64_t last_kept(uint32_t size, uint64_t least_weight, uint64_t whole_mass, bool complete) const {
    Group& group = sweeps.group;
    const List& list = sweeps.list;
    rank_list(group, sweeps.weight, size, list);
    const auto within_k = [&](uint32_t i) { return !has_top_k() || list.count_before[i] < filters.top_k; };
    const auto heavy = [&](uint32_t i) { return !has_min_p() || list.weight[i] >= least_weight; };

    uint64_t target = ~uint64_t{0};
    if (has_top_p()) {
      uint64_t base = whole_mass;
      if (!base_is_everything()) {
        uint64_t mass = 0;
#pragma unroll 1
        for (uint32_t i = group.thread(); i < size; i += group.threads())
          if (within_k(i) && (filters.order == Order::kTopKFirst || heavy(i))) mass += list.weight[i];
        base = group.sum_in_block(mass);
      }
      target = mass_bound(filters.top_p, base);
      if (!complete) {
        uint64_t mass = 0;
#pragma unroll 1
        for (uint32_t i = group.thread(); i < size; i += group.threads()) mass += list.weight[i];
        if (group.sum_in_block(mass) < target) return 0;
      }
    }
    // The kept tokens are a prefix of the ranking, so how many there are says which.
    uint64_t kept = 0;
    const auto keeps = [&](uint32_t i) { return within_k(i) && heavy(i) && list.mass_before[i] < target; };
#pragma unroll 1
    for (uint32_t i = group.thread(); i < size; i += group.threads()) kept += keeps(i);
    kept = group.sum_in_block(kept);
    uint64_t last = 0;
#pragma unroll 1
    for (uint32_t i = group.thread(); i < size; i += group.threads())
      if (list.count_before[i] + 1 == kept) last = list.place[i];
    return group.sum_in_block(last);
  }

  // For what is too much for the list: cuts of the whole row, first top_k's, which is at or above `bound`, then
  // top_p's.
  __device__ __forceinline__ Cut cut_of_row(float bound, float lightest, uint64_t whole_mass) const {
    const Cut min_p = {lightest, everything().end};
    Cut base = everything(), kept = min_p;
    if (!has_top_k() && filters.order == Order::kMinPFirst) base = min_p;
#pragma unroll 1
    for (int filter = has_top_k() ? 0 : 1; filter < (has_top_p() ? 2 : 1); ++filter) {
      const Measure measure = filter == 0 ? Measure::kCount : Measure::kMass;
      uint64_t target = static_cast<uint64_t>(filters.top_k);
      float share = static_cast<float>(target) / static_cast<float>(sweeps.row.vocab);
      if (measure == Measure::kMass) {
        target = mass_bound(filters.top_p, base_is_everything() ? whole_mass : sweeps.mass(base));
        share = filters.top_p;
      }
      const Cut cut =
          Cutting<Row>{sweeps, histogram, measure, base, target}.cut(filter == 0 ? bound : -kFloatMax, share);
      kept = tighter(kept, cut);
      if (filters.order != Order::kJoint) base = filters.order == Order::kMinPFirst ? kept : cut;
    }
    return kept;
  }
};

}  // namespace fastsample::cuda
