// What is said of a row and its draws (law section 7).
#pragma once

#include "load_edited.cuh"
#include "row.cuh"
#include "write.cuh"

namespace fastsample::cuda {

// One value in all the places of a row of the result; by one block.
template <class T>
__device__ __forceinline__ void fill(const Group& group, const RowsOf<T>& out, int64_t row, T value) {
  if (out.data)
#pragma unroll 1
    for (int64_t i = group.thread(); i < out.columns; i += group.threads()) out.row(row)[i * out.stride] = value;
}

__device__ __forceinline__ void describe_invalid_top(const Group& group, const Details& details, int64_t row) {
  fill(group, details.top_tokens, row, int64_t{-1});
  fill(group, details.top_logprobs, row, __uint_as_float(nan_bits<float>()));
}

__device__ __forceinline__ void describe_invalid_raw_row(const Group& group, const Details& details, int64_t row) {
  const float nan = __uint_as_float(nan_bits<float>());
  fill(group, details.raw_logprobs, row, nan);
  fill(group, details.ranks, row, int64_t{0});
  if (details.has_top(false)) describe_invalid_top(group, details, row);
}

__device__ __forceinline__ void describe_invalid_row(const Group& group, const Details& details, int64_t row) {
  describe_invalid_raw_row(group, details, row);
  if (details.has_top(true)) describe_invalid_top(group, details, row);
  fill(group, details.logprobs, row, __uint_as_float(nan_bits<float>()));
  fill(group, details.numbers, row, int64_t{0});
  if (details.numbers.data && group.thread() == 0) *details.numbers.row(row) = 1;  // the thread that wrote 0 there
}

// Before the draws, which may take tokens out of the row.
template <class Row>
__device__ __forceinline__ void write_numbers(const Sweeps<Row>& sweeps, Cut cut, float temperature,
                                              const RowsOf<int64_t>& numbers, int64_t row) {
  Group& group = sweeps.group;
  const Weight& weight = sweeps.weight;
  uint64_t mass = 0, size = 0, entropy = 0, last = ~uint64_t{0};
  if (sweeps.reach >= cut.logit)
    sweeps.row.sweep([&](const float (&x)[Row::kTokens], uint32_t index) {
#pragma unroll
      for (int i = 0; i < Row::kTokens; ++i) {
        if (!cut.keeps(x[i], index + i)) continue;
        const uint64_t weighs = weight(x[i]), place = place_in_ranking(x[i], index + i);
        mass += weighs;
        ++size;
        entropy += weighs * __float2ull_rz(__fmul_rn(-weight.exponent(x[i]), 0x1p20f)) >> 20;
        last = place < last ? place : last;
      }
    });
  mass = group.sum(mass);
  size = group.sum(size);
  entropy = group.sum(entropy);
  last = group.minimum(last);
  const uint64_t whole_mass = temperature == 0 ? kLargestWeight : sweeps.mass(everything());
  if (!group.leads() || group.thread() != 0) return;
  const auto bits = [](float x) { return static_cast<int64_t>(static_cast<int32_t>(__float_as_uint(x))); };
  const int64_t said[kNumbers] = {0,
                                  bits(weight.most),
                                  bits(logit_of(last)),
                                  int64_t{index_of(last)} + 1,
                                  static_cast<int64_t>(mass),
                                  static_cast<int64_t>(size),
                                  static_cast<int64_t>(entropy),
                                  static_cast<int64_t>(whole_mass)};
#pragma unroll
  for (int i = 0; i < kNumbers; ++i) numbers.row(row)[i * numbers.stride] = said[i];
}

// The first tokens in rank with their log-probabilities, of those that a cut keeps.
struct Top {
  const Details& details;
  int64_t row;

  __device__ uint32_t wanted() const { return static_cast<uint32_t>(details.top_tokens.columns); }

  __device__ __forceinline__ void write_token(const Weight& weight, uint32_t number, uint64_t place,
                                              float log_total) const {
    const RowsOf<int64_t>& out = details.top_tokens;
    const RowsOf<float>& logprobs = details.top_logprobs;
    out.row(row)[number * out.stride] = place ? int64_t{index_of(place)} : -1;
    logprobs.row(row)[number * logprobs.stride] =
        place ? log_probability(weight.exponent(logit_of(place)), log_total) : -kInfinity;
  }

  // In the leading block, from its list once that is ranked: what has a place at or above `last`.
  __device__ __forceinline__ void write_list(const Group& group, const Weight& weight, const List& list, uint32_t size,
                                             uint64_t last, float log_total) const {
#pragma unroll 1
    for (uint32_t i = group.thread(); i < wanted(); i += group.threads()) write_token(weight, i, 0, log_total);
    __syncthreads();
#pragma unroll 1
    for (uint32_t i = group.thread(); i < size; i += group.threads())
      if (list.place[i] >= last && list.count_before[i] < wanted())
        write_token(weight, list.count_before[i], list.place[i], log_total);
  }

  // From the row. `bound`: at least as many of its tokens as are asked for reach it, or all that are above -inf.
  __device__ __forceinline__ void write(const Sweeps<RowAgain>& sweeps, Cut cut, float bound, float log_total) const {
    Group& group = sweeps.group;
    const List& list = sweeps.list;
    const uint32_t size = gather(group, sweeps.row, sweeps.reach, cut, bound, kInfinity, list);
    if (size > kListSize) return write_one_by_one(sweeps, cut, log_total);
    if (!group.leads()) return;
    rank_list(group, sweeps.weight, size, list);
    write_list(group, sweeps.weight, list, size, 0, log_total);
  }

 private:
  // Where ties or one part of the row leave too many for the list: a sweep for each.
  __device__ __forceinline__ void write_one_by_one(const Sweeps<RowAgain>& sweeps, Cut cut, float log_total) const {
    Group& group = sweeps.group;
    uint64_t previous = ~uint64_t{0};
#pragma unroll 1
    for (uint32_t number = 0; number < wanted(); ++number) {
      uint64_t next = 0;
      sweeps.row.sweep([&](const float (&x)[RowAgain::kTokens], uint32_t index) {
#pragma unroll
        for (int i = 0; i < RowAgain::kTokens; ++i) {
          const uint64_t place = place_in_ranking(x[i], index + i);
          if (cut.keeps(x[i], index + i) && place < previous && place > next) next = place;
        }
      });
      next = ~group.minimum(~next);
      if (group.leads() && group.thread() == 0) write_token(sweeps.weight, number, next, log_total);
      previous = next;
    }
  }
};

// Steps maximum and bound once more.
struct Head {
  float reach;  // of this lane
  float most;
  float bound;  // which at least as many tokens reach as were asked for, or all that are above -inf
};

// After a barrier of the group since the draws.
__device__ __forceinline__ Head head_of(Group& group, const RowAgain& row, uint32_t tokens,
                                        const MaximumMemory& memory) {
  float reach = -kInfinity;
  row.sweep([&](const float (&x)[RowAgain::kTokens], uint32_t) {
#pragma unroll
    for (int i = 0; i < RowAgain::kTokens; ++i) reach = maximum_or_nan(reach, x[i]);
  });
  if (reach != reach) reach = __uint_as_float(nan_bits<float>());
  const uint32_t count = share_maxima(group, reach, kFewMaxima, memory.maxima);
  if (group.warp == 0) {
    const uint32_t rank = largest_of(memory.maxima, count, group.lane);
    const float bound = tokens ? bound_of_count(memory.maxima, count, rank, tokens, group.lane) : 0;
    if (group.lane == 0) {
      *memory.largest = value_of_rank(rank);
      *memory.head = bound;
    }
  }
  __syncthreads();
  return {reach, *memory.largest, *memory.head};
}

// What is said of a row's draws as it was before its edits, by all blocks that share it.
struct RawDetails {
  const Sweeps<RowAgain>& sweeps;
  const Details& details;
  const Tokens& tokens;
  int64_t row;

  __device__ int64_t drawn(int64_t draw) const { return tokens.data[row * tokens.row_stride + draw * tokens.stride]; }

  __device__ __forceinline__ void write_logprobs(float log_total) const {
    const Group& group = sweeps.group;
    const RowsOf<float>& out = details.raw_logprobs;
#pragma unroll 1
    for (int64_t draw = group.thread(); draw < tokens.count; draw += group.threads()) {
      const int64_t token = drawn(draw);
      out.row(row)[draw * out.stride] =
          token < 0 ? __uint_as_float(nan_bits<float>())
                    : log_probability(sweeps.weight.exponent(sweeps.row.token(token)), log_total);
    }
  }

  __device__ __forceinline__ void write_ranks() const {
    Group& group = sweeps.group;
    const RowsOf<int64_t>& out = details.ranks;
#pragma unroll 1
    for (int64_t draw = 0; draw < tokens.count; ++draw) {
      const int64_t token = drawn(draw);
      uint64_t rank = 0;
      if (token >= 0) {
        const Cut before{sweeps.row.token(token), static_cast<uint32_t>(token)};
        rank = group.sum(sweeps.lane_measure(Measure::kCount, before)) + 1;
      }
      if (group.leads() && group.thread() == 0) out.row(row)[draw * out.stride] = static_cast<int64_t>(rank);
    }
  }
};

// After a barrier of the group since the draws, as the next.
__device__ __forceinline__ void describe_raw_row(Group& group, const RowAgain& raw, const List& list,
                                                 const MaximumMemory& memory, const Details& details,
                                                 const Tokens& tokens, int64_t row) {
  const Top top{details, row};
  const uint32_t wanted = details.has_top(false) ? top.wanted() : 0;
  const Head head = head_of(group, raw, wanted, memory);
  if (!valid_maximum(head.most, false)) {
    if (group.leads()) describe_invalid_raw_row(group, details, row);
    return;
  }
  const Weight weight({1.0f, 0, 1.0f, 0.0f, Order::kTopKFirst, false}, head.most, raw.vocab);
  const Sweeps<RowAgain> sweeps{group, raw, weight, head.reach, list};
  const RawDetails of_raw{sweeps, details, tokens, row};
  const float log_total = details.raw_logprobs.data || wanted ? log_of_total(sweeps.mass(everything())) : 0;
  if (details.raw_logprobs.data && group.leads()) of_raw.write_logprobs(log_total);
  if (details.ranks.data) of_raw.write_ranks();
  if (wanted) top.write(sweeps, everything(), head.bound, log_total);
}

// `total`: Z of what was kept, in the leading block.
__device__ __forceinline__ void describe_top_of_processed(Group& group, const RowAgain& processed, const Weight& weight,
                                                          const List& list, const MaximumMemory& memory,
                                                          const Kept& kept, uint64_t total, const Details& details,
                                                          int64_t row) {
  const Top top{details, row};
  const float log_total = log_of_total(total);
  if (kept.in_list) {
    if (group.leads()) top.write_list(group, weight, list, kept.size, kept.last, log_total);
    return;
  }
  const Head head = head_of(group, processed, top.wanted(), memory);
  const Sweeps<RowAgain> sweeps{group, processed, weight, head.reach, list};
  top.write(sweeps, kept.cut, head.bound, log_total);
}

}  // namespace fastsample::cuda
