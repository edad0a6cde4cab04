// The kernels of one instruction set, each over one row.
#pragma once

#include "full.h"
#include "speculative.h"

namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET {

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

template <class Row>
void log_probs_row(const Row& row, const Filters& filters, const int64_t* tokens, int64_t tokens_stride, int64_t count,
                   float* out, RowScratch& scratch, const Team& team) {
  const bool valid = with_kept(row, filters, scratch, team, [&](const auto& weight, Cut cut, uint64_t total) {
    const LogProbability<Row, std::decay_t<decltype(weight)>> log_probability(row, weight, cut, total);
    for (int64_t i = 0; i < count; ++i) out[i] = log_probability(tokens[i * tokens_stride]);
  });
  if (!valid)
    for (int64_t i = 0; i < count; ++i) out[i] = __builtin_nanf("");
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
    sample_full_row,
    kept_tokens_row,
    fixed_probs_at_row,
    sample_residual_row,
};

}  // namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET
