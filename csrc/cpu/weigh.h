// Step weigh: the integer weight of each token (law sections 1 and 5), sixteen to a vector.
#pragma once

#include "load.h"

namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET {

// Law section 1. The weight floor(2^40 * q * 2^n) is made in float32: coefficients scaled by 2^40 round as the
// unscaled ones do, the power 2^n is exact, and the conversion truncates. 38 us for 128256 tokens where 64-bit shifts
// take 52.
struct LogitWeight {
  float most;
  float scale;

  LogitWeight(float maximum, float temperature) : most(maximum), scale(exponent_scale(temperature)) {}

  FASTSAMPLE_INLINE F exponent(F x) const { return Simd::mul(Simd::sub(x, Simd::set(most)), Simd::set(scale)); }

  // 2^40 * 2^d rounded as the law says, and where it counts. Unrolled by hand: each line is one rounded operation.
  FASTSAMPLE_INLINE F scaled_power(F d) const {
    constexpr float k = 0x1p40f;
    const auto n = Simd::floor(d);
    const F f = Simd::sub(d, n.value);
    F q = Simd::set(kPolynomial[5] * k);
    q = Simd::add(Simd::mul(q, f), Simd::set(kPolynomial[4] * k));
    q = Simd::add(Simd::mul(q, f), Simd::set(kPolynomial[3] * k));
    q = Simd::add(Simd::mul(q, f), Simd::set(kPolynomial[2] * k));
    q = Simd::add(Simd::mul(q, f), Simd::set(kPolynomial[1] * k));
    q = Simd::add(Simd::mul(q, f), Simd::set(kPolynomial[0] * k));
    return Simd::scale_exponent(q, n);
  }

  // 2^40 * 2^d, and less than 1, so a weight of 0, where d is below -40 or NaN. A maximum is cheaper than a mask: below
  // -40 the law's weight is 0, and from -41 to -40 the product stays below 1, since P(f) < 2 for f < 1.
  FASTSAMPLE_INLINE F product(F x) const { return scaled_power(Simd::max(exponent(x), Simd::set(-41.0f))); }

  FASTSAMPLE_INLINE U operator()(F x) const { return Simd::truncate(product(x)); }

  bool vanishes(float x) const { return !((x - most) * scale >= kLowestExponent); }
};

// What is not a finite row of logits: probabilities (law section 5), and a row whose maximum is +inf, in which the
// infinite tokens weigh 2^40 and all others 0 (law section 1).
struct SpecialWeight {
  float most;
  bool infinite;
  float scale0, scale1;  // powers of two whose product is 2^(b - 1 - e); one float could not hold it

  static SpecialWeight of_infinite() { return {kInfinity, true, 1.0f, 1.0f}; }
  static SpecialWeight of_probabilities(float most, int64_t vocab) {
    int bits = 0;
    while ((int64_t{1} << bits) < vocab) ++bits;
    const int weight_bits = 62 - bits < kWeightBits ? 62 - bits : kWeightBits;
    const int exponent = __builtin_ilogbf(most);
    const int power = weight_bits - 1 - exponent;
    const int half = power / 2;
    return {most, false, __builtin_ldexpf(1.0f, half), __builtin_ldexpf(1.0f, power - half)};
  }

  FASTSAMPLE_INLINE F scaled(F x) const {
    if (infinite) return Simd::select(Simd::equal(x, Simd::set(kInfinity)), Simd::set(0x1p40f), Simd::set(0.0f));
    return Simd::mul(Simd::mul(x, Simd::set(scale0)), Simd::set(scale1));
  }

  // The padding of a tail is -inf, hence the maximum.
  FASTSAMPLE_INLINE F product(F x) const { return Simd::max(scaled(x), Simd::set(0.0f)); }
  FASTSAMPLE_INLINE U operator()(F x) const { return Simd::truncate(product(x)); }
  bool vanishes(float x) const { return infinite ? x != kInfinity : !(x * scale0 * scale1 >= 1.0f); }
};

template <class Weight>
inline uint64_t weight_of(const Weight& weight, float x) {
  uint64_t weights[kWidth];
  Simd::store(weights, weight(Simd::set(x)));
  return weights[0];
}

// The smallest logit whose weight reaches `least`: weights never decrease with the logit, so 32 halvings of the
// ordered bit patterns find it, and min_p costs no weight per token.
template <class Weight>
inline float smallest_reaching(const Weight& weight, uint64_t least, float most) {
  int64_t below = order_key(-kInfinity), reaches = order_key(most);
  while (reaches - below > 1) {
    const int64_t middle = below + (reaches - below) / 2;
    if (weight_of(weight, order_key_float(static_cast<int32_t>(middle))) >= least)
      reaches = middle;
    else
      below = middle;
  }
  return order_key_float(static_cast<int32_t>(reaches));
}

// Above +inf comes NaN, which no logit reaches.
inline float next_above(float x) {
  return order_key_float(order_key(x) + 1);
}

// Calls body(begin, end, least) for the one or two stretches of tokens [begin, end) in which a cut keeps exactly the
// logits that are at least `least`: ties at the cut count before cut.end and not from it on.
template <class Body>
FASTSAMPLE_INLINE void for_each_stretch(Cut cut, int64_t begin, int64_t end, const Body& body) {
  while (begin < end) {
    const bool ties_count = begin < cut.end;
    const int64_t stop = ties_count && cut.end < end ? cut.end : end;
    body(begin, stop, ties_count ? cut.logit : next_above(cut.logit));
    begin = stop;
  }
}

// Sums of kept weights, chunk by chunk.
template <class Row, class Weight>
inline uint64_t weigh_chunks(const Row& row, const Chunks& chunks, int64_t first, int64_t last, const Weight& weight,
                             Cut cut, const float* chunk_maximum, uint64_t* chunk_sum) {
  uint64_t total = 0;
  for (int64_t chunk = first; chunk < last; ++chunk) {
    uint64_t sum = 0;
    const bool empty = chunk_maximum && (chunk_maximum[chunk] < cut.logit || weight.vanishes(chunk_maximum[chunk]));
    if (!empty)
      for_each_stretch(cut, chunks.begin(chunk), chunks.end(chunk), [&](int64_t begin, int64_t end, float least) {
        U acc = Simd::zero();
        if (least == -kFloatMax) {  // everything counts: -inf weighs nothing
          for_each_vector(row, begin, end, [&](F x, int64_t) { acc = Simd::add(acc, weight(x)); });
        } else {
          const F bound = Simd::set(least);
          for_each_vector(row, begin, end,
                          [&](F x, int64_t) { acc = Simd::add_where(Simd::greater_equal(x, bound), acc, weight(x)); });
        }
        sum += Simd::sum(acc);
      });
    if (chunk_sum) chunk_sum[chunk] = sum;
    total += sum;
  }
  return total;
}

// The same over a team.
template <class Row, class Weight>
inline uint64_t weigh_row(const Row& row, const Chunks& chunks, const Weight& weight, Cut cut,
                          const float* chunk_maximum, RowScratch& scratch, const Team& team) {
  team.run([&](int64_t part) {
    const int64_t first = chunks.first_of_part(part, team.parts), last = chunks.first_of_part(part + 1, team.parts);
    scratch.parts[part].total = weigh_chunks(row, chunks, first, last, weight, cut, chunk_maximum, scratch.chunk_sum);
  });
  uint64_t total = 0;
  for (int64_t part = 0; part < team.parts; ++part) total += scratch.parts[part].total;
  return total;
}

}  // namespace fastsample::cpu::FASTSAMPLE_INSTRUCTION_SET
