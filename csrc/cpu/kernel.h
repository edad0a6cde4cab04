// The kernels of one instruction set: the law's steps in order, over one row. Load and maximum are in read_row; bound,
// gather, weigh and cut in Selection; then the draw.
#pragma once

#include <type_traits>

#include "draw.h"
#include "maximum.h"
#include "selection.h"

namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET {

inline void invalid_row(const Draws& draws) {
  for (int64_t i = 0; i < draws.count; ++i) draws.tokens[i * draws.tokens_stride] = -1;
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
    if (kept.where == Kept::kInList) {
      const Candidates& candidates = scratch.parts[0].candidates;
      const ContiguousRow<float> list{candidates.logit, candidates.size};
      const Chunks list_chunks(list.size);
      const Cut all{-kFloatMax, list.size};
      weigh_chunks(list, list_chunks, 0, list_chunks.count, weight, all, nullptr, scratch.chunk_sum);
      draw(Survivors<ContiguousRow<float>, std::decay_t<decltype(weight)>>{list, candidates.index, list_chunks, weight,
                                                                           all, scratch.chunk_sum},
           draws);
    } else {
      if (kept.where == Kept::kInRow) selection.weigh_kept(kept.cut);
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
    if (kept.where == Kept::kInList) return body(weight, kept.cut, mass_of(scratch.parts[0].candidates, weight));
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
      const float x = token_at(row, token);
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
