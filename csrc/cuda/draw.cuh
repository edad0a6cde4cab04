// Step draw: tokens by inverse transform over integer sums, in index order (law section 4).
#pragma once

#include "selection.cuh"

namespace fastsample::cuda {

// The random words of a row. Most calls draw once: the first two are there from the start.
struct Random {
  RandomStream stream;
  PhiloxWords first;

  __device__ Random() {}
  __device__ explicit Random(const RandomStream& of_row) : stream(of_row), first(words(0)) {}

  __device__ __forceinline__ PhiloxWords words(uint32_t pair) const {
    return philox(stream.seed, stream.offset, stream.stream, pair);
  }
  __device__ __forceinline__ uint64_t word(int64_t draw) const {
    const PhiloxWords pair = draw < 2 ? first : words(static_cast<uint32_t>(draw / 2));
    return draw % 2 ? pair.word[1] : pair.word[0];
  }
};

// One row's draws: where their random words come from, and where they go.
struct Draws {
  const Random& random;
  bool replacement;
  int64_t count;
  int64_t* tokens;
  int64_t stride;

  __device__ __forceinline__ void write(int64_t draw, int64_t token) const { tokens[draw * stride] = token; }

  // The same in place of every draw from `first` on; by one block.
  __device__ __forceinline__ void fill(const Group& group, int64_t first, int64_t token) const {
#pragma unroll 1
    for (int64_t draw = first + group.thread(); draw < count; draw += group.threads()) write(draw, token);
  }
};

// In the leading block, from its list: every token knows the interval of the running sum that draws it. Returns Z.
__device__ __forceinline__ uint64_t draw_from_list(Group& group, const List& list, uint32_t size, uint64_t last,
                                                   const Draws& draws) {
#pragma unroll 1
  for (uint32_t i = group.thread(); i < size; i += group.threads())
    if (list.place[i] < last) list.weight[i] = 0;
  __syncthreads();
  uint64_t total = 0;
#pragma unroll 1
  for (uint32_t i = group.thread(); i < size; i += group.threads()) {
    total += list.weight[i];
    uint64_t before = 0;
#pragma unroll 8
    for (uint32_t j = 0; j < size; ++j) {
      const uint64_t weighs = list.weight[j];
      before += index_of(list.place[j]) < index_of(list.place[i]) ? weighs : 0;
    }
    list.mass_before[i] = before;  // from here on in index order
  }
  total = group.sum_in_block(total);
  const uint64_t before_draws = total;
#pragma unroll 1
  for (int64_t draw = 0; draw < draws.count; ++draw) {
    if (total == 0) {
      draws.fill(group, draw, -1);
      break;
    }
    const uint64_t target = multiply_high(draws.random.word(draw), total);
    uint64_t taken = 0;
#pragma unroll 1
    for (uint32_t i = group.thread(); i < size; i += group.threads()) {
      if (target < list.mass_before[i] || target - list.mass_before[i] >= list.weight[i]) continue;
      draws.write(draw, index_of(list.place[i]));
      taken = list.weight[i];
      if (!draws.replacement) list.weight[i] = 0;
    }
    if (draws.replacement) continue;
    taken = group.sum_in_block(taken);
#pragma unroll 1
    for (uint32_t i = group.thread(); i < size; i += group.threads())
      if (list.mass_before[i] > target) list.mass_before[i] -= taken;
    total -= taken;
  }
  return before_draws;
}

// From the row: every warp knows the interval of the running sum that its tokens have, and looks for the draws in it.
// Returns Z.
template <class Row>
__device__ __forceinline__ uint64_t draw_from_row(const Sweeps<Row>& sweeps, Cut cut, const Draws& draws) {
  Group& group = sweeps.group;
  const uint64_t lane_mass = sweeps.lane_measure(Measure::kMass, cut);
  uint64_t mine = warp_sum(lane_mass), before;
  uint64_t total = group.sum(lane_mass, before);
  const uint64_t before_draws = total;
  int64_t drawn = 0;  // how many draws of a row that is not resident have to be left out

  const auto kept_weight = [&](float x, uint32_t index) -> uint64_t {
    if (!cut.keeps(x, index)) return 0;
#pragma unroll 1
    for (int64_t draw = 0; draw < drawn; ++draw)
      if (draws.tokens[draw * draws.stride] == index) return 0;
    return sweeps.weight(x);
  };

  // Draws that do not depend on each other are looked for 32 at a time.
  const int64_t together = draws.replacement ? 32 : 1;
#pragma unroll 1
  for (int64_t first = 0; first < draws.count; first += together) {
    if (total == 0) {
      if (group.leads()) draws.fill(group, first, -1);
      break;
    }
    const int64_t draw = first + (draws.replacement ? group.lane : 0);
    const uint64_t target = draw < draws.count ? multiply_high(draws.random.word(draw), total) : 0;
    const bool here = draw < draws.count && target >= before && target - before < mine;
    uint32_t found = __ballot_sync(kAllLanes, here) & (draws.replacement ? kAllLanes : 1u);
    uint64_t taken = 0;
    while (found) {
      const int lane = __ffs(static_cast<int>(found)) - 1;
      found &= found - 1;
      const uint64_t inside = __shfl_sync(kAllLanes, target - before, lane);
      const uint32_t token = sweeps.locate(inside, kept_weight, taken);
      __syncwarp();  // all lanes have read what lane 0 may take out; the shuffles before order no memory
      if (group.lane == 0) {
        draws.write(first + lane, token);
        if (Row::kStays && !draws.replacement) sweeps.row.remove(token, group.lane);
      }
    }
    if (draws.replacement) continue;
    if (!Row::kStays) ++drawn;
    mine -= taken;
    taken = group.tell(group.lane == 0 ? taken : 0);
    if (target < before) before -= taken;
    total -= taken;
  }
  return before_draws;
}

}  // namespace fastsample::cuda
