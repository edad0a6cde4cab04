// Fixed-point probabilities and what is drawn from their differences (law section 8).
#pragma once

#include "kept.h"

namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET {

using Wide = unsigned __int128;

// p^ of a row: (w_i * floor(2^102 / Z)) >> 62 over a cut, else 0.
struct FixedProbabilities {
  RowView view;
  Filters filters;
  float most;
  Cut cut;
  Wide reciprocal;  // beyond 64 bits only for probabilities of more than 2^22 tokens

  // Finds the kept set; false where the row is invalid.
  bool find(const RowView& row_view, const Filters& row_filters, RowScratch& scratch, const Team& team) {
    view = row_view;
    filters = row_filters;
    bool valid = false;
    with_row(view, [&](const auto& row) {
      valid = with_kept(row, filters, scratch, team, [&](const auto& weight, Cut kept, uint64_t total) {
        most = weight.most;
        cut = kept;
        reciprocal = (static_cast<Wide>(1) << 102) / total;
      });
    });
    return valid;
  }

  uint64_t of_weight(uint64_t weight) const {
    // One multiplication where two would double the time of a residual.
    if (__builtin_expect(reciprocal >> 64 == 0, 1))
      return multiply_high(weight << 2, static_cast<uint64_t>(reciprocal));
    return static_cast<uint64_t>(weight * reciprocal >> 62);
  }

  uint64_t at(int64_t token) const {
    uint64_t fixed;
    write(token, token + 1, &fixed);
    return fixed;
  }

  // Those of tokens [begin, end).
  void write(int64_t begin, int64_t end, uint64_t* out) const {
    with_row(view, [&](const auto& row) {
      with_weight(filters, most, row.size, [&](const auto& weight) {
        for_each_stretch(cut, begin, end, [&](int64_t first, int64_t last, float least) {
          const F bound = Simd::set(least);
          for_each_vector(row, first, last, [&](F x, int64_t at) {
            const int64_t count = last - at < kWidth ? last - at : kWidth;
            const M kept = Simd::greater_equal(x, bound);
            uint64_t weights[kWidth];
            const bool any = Simd::any(kept);
            if (any) Simd::store(weights, Simd::add_where(kept, Simd::zero(), weight(x)));
            for (int64_t lane = 0; lane < count; ++lane) out[at + lane - begin] = any ? of_weight(weights[lane]) : 0;
          });
        });
      });
    });
  }
};

inline void fixed_probs_at_row(const RowView& view, const Filters& filters, const int64_t* tokens,
                               int64_t tokens_stride, int64_t count, int64_t* out, RowScratch& scratch,
                               const Team& team) {
  FixedProbabilities fixed;
  const bool valid = fixed.find(view, filters, scratch, team);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t token = tokens[i * tokens_stride];
    out[i] = valid && token >= 0 && token < view.vocab ? static_cast<int64_t>(fixed.at(token)) : -1;
  }
}

// u = max(p^ - q^, 0), or p^ alone.
struct Residual {
  const FixedProbabilities& target;
  const FixedProbabilities* draft;

  // Those of tokens [begin, end), at most kChunk.
  void write(int64_t begin, int64_t end, uint64_t* out) const {
    target.write(begin, end, out);
    uint64_t any = 0;
    for (int64_t i = 0; i < end - begin; ++i) any |= out[i];
    if (!draft || any == 0) return;
    uint64_t drafted[kChunk];
    draft->write(begin, end, drafted);
    for (int64_t i = 0; i < end - begin; ++i) out[i] = out[i] > drafted[i] ? out[i] - drafted[i] : 0;
  }

  // The token drawn by a word of the random stream, or -1 where there is nothing to draw. `scratch` holds the
  // maxima of the target's chunks.
  int64_t draw(uint64_t word, RowScratch& scratch, const Team& team) const {
    const Chunks chunks(target.view.vocab);
    team.run([&](int64_t part) {
      const int64_t last = chunks.first_of_part(part + 1, team.parts);
      uint64_t total = 0;
      for (int64_t chunk = chunks.first_of_part(part, team.parts); chunk < last; ++chunk) {
        uint64_t sum = 0;
        if (scratch.chunk_maximum[chunk] >= target.cut.logit)
          for_each_block(chunks, chunk, [&](int64_t, int64_t count, const uint64_t* masses) {
            for (int64_t i = 0; i < count; ++i) sum += masses[i];
            return true;
          });
        scratch.chunk_sum[chunk] = sum;
        total += sum;
      }
      scratch.parts[part].total = total;
    });
    uint64_t total = 0;
    for (int64_t part = 0; part < team.parts; ++part) total += scratch.parts[part].total;
    if (total == 0) return -1;
    uint64_t left = multiply_high(word, total);
    int64_t chunk = 0, token = -1;
    for (; left >= scratch.chunk_sum[chunk]; ++chunk) left -= scratch.chunk_sum[chunk];
    for_each_block(chunks, chunk, [&](int64_t begin, int64_t count, const uint64_t* masses) {
      for (int64_t i = 0; i < count; ++i) {
        if (left < masses[i]) {
          token = begin + i;
          return false;
        }
        left -= masses[i];
      }
      return true;
    });
    return token;
  }

 private:
  // Calls body(first token, count, masses) over a chunk, in blocks of kChunk, until it returns false.
  template <class Body>
  void for_each_block(const Chunks& chunks, int64_t chunk, const Body& body) const {
    uint64_t masses[kChunk];
    for (int64_t begin = chunks.begin(chunk); begin < chunks.end(chunk); begin += kChunk) {
      const int64_t end = begin + kChunk < chunks.end(chunk) ? begin + kChunk : chunks.end(chunk);
      write(begin, end, masses);
      if (!body(begin, end - begin, masses)) return;
    }
  }
};

inline void sample_residual_row(const RowView& target, const Filters& target_filters, const RowView* draft,
                                const Filters& draft_filters, const Draws& draws, RowScratch& scratch,
                                const Team& team) {
  FixedProbabilities p, q;
  if (!draft || !q.find(*draft, draft_filters, scratch, team))
    return with_row(target, [&](const auto& row) { sample_row(row, target_filters, draws, scratch, team); });
  if (!p.find(target, target_filters, scratch, team)) return invalid_row(draws);
  const uint64_t word = philox(draws.random.seed, draws.random.offset, draws.random.stream, 0).word[0];
  const int64_t token = Residual{p, &q}.draw(word, scratch, team);
  *draws.tokens = token >= 0 ? token : Residual{p, nullptr}.draw(word, scratch, team);
}

}  // namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET
