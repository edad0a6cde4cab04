// Random rows and calls, and the memory that they run in: every buffer an allocation of exactly its size.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cpu/batch.h"

namespace fastsample::cpu {

// SplitMix64 (Steele et al. 2014): any seed is a good one.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t end) { return static_cast<int64_t>(next() % static_cast<uint64_t>(end)); }
  float uniform() { return static_cast<float>(next() >> 40) * 0x1p-24f; }
  float normal() {  // near enough: a sum of uniforms
    float sum = -6.0f;
    for (int i = 0; i < 12; ++i) sum += uniform();
    return sum;
  }
  template <class T>
  T one_of(const std::vector<T>& choices) {
    return choices[static_cast<size_t>(below(static_cast<int64_t>(choices.size())))];
  }

 private:
  uint64_t state_;
};

constexpr float kNan = __builtin_nanf("");

struct Case {
  int64_t vocab;
  int64_t stride;
  DType dtype;
  int kind;
  bool probabilities;
  Filters filters;
  bool replacement;
  int64_t draws;
  int64_t tokens_stride;
  uint64_t seed;
};

constexpr int kTwoValues = 8, kKinds = 10;

inline float value_of_kind(int kind, int64_t i, int64_t vocab, Random& random) {
  switch (kind) {
    case 0:
      return random.normal();
    case 1:
      return 8.0f * random.normal();
    case 2:  // ties, signed zeros
      return random.one_of<float>({-1.0f, -0.0f, 0.0f, 0.5f, 0.5f});
    case 3:
      return 2.0f;
    case 4:
      return static_cast<float>(i) * 1e-3f;
    case 5:
      return static_cast<float>(vocab - i) * 1e-3f;
    case 6:  // one huge token and a flat tail
      return i == vocab / 3 ? 30.0f : 0.01f * random.uniform();
    case 7:  // most tokens masked
      return random.below(16) == 0 ? random.normal() : -kInfinity;
    case kTwoValues:  // at T = 1 the upper value weighs 0.731 of the row: top_p cuts between two long runs of ties
      return static_cast<float>(random.below(2));
    default:
      return random.one_of<float>({0.0f, -0.0f, 1e-40f, -1e-45f, 0x1p-126f, kFloatMax, -kFloatMax, -kInfinity,
                                   -kInfinity, random.normal(), random.below(64) ? 1.0f : kInfinity,
                                   random.below(512) ? -1.0f : kNan});
  }
}

inline uint16_t float16_bits(float x) {  // rounds toward zero
  const uint32_t bits = float_bits(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return 0x7E00;
  if (magnitude == 0x7F800000u) return static_cast<uint16_t>(sign | 0x7C00u);
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7BFFu);
  if (magnitude >= 0x38800000u) return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u) >> 13));
  return static_cast<uint16_t>(sign | static_cast<uint32_t>(bits_float(magnitude) * 0x1p24f));
}

// A row in an allocation that holds nothing else.
class Row {
 public:
  Row(const Case& c, Random& random) : size_(c.dtype == DType::kFloat32 ? 4 : 2) {
    const int64_t span = (c.vocab - 1) * std::abs(c.stride) + 1;
    bytes_ = std::make_unique<char[]>(static_cast<size_t>(span * size_));
    first_ = c.stride < 0 ? bytes_.get() + (span - 1) * size_ : bytes_.get();
    for (int64_t i = 0; i < c.vocab; ++i) {
      float x = value_of_kind(c.kind, i, c.vocab, random);
      if (c.probabilities && random.below(4096) && x < 0) x = -x;
      char* place = first_ + i * c.stride * size_;
      const uint32_t bits = float_bits(x);
      // A NaN keeps no payload that truncation would turn into an infinity: kNan's is in the upper half.
      const uint16_t half = c.dtype == DType::kFloat16 ? float16_bits(x) : static_cast<uint16_t>(bits >> 16);
      if (c.dtype == DType::kFloat32)
        memcpy(place, &bits, 4);
      else
        memcpy(place, &half, 2);
    }
  }
  const char* data() const { return first_; }
  int64_t element_size() const { return size_; }

 private:
  int64_t size_;
  std::unique_ptr<char[]> bytes_;
  char* first_;
};

// Working memory with every array an allocation of its own, where batch.cpp keeps them in one.
class SeparateScratch {
 public:
  SeparateScratch(int64_t parts, unsigned char fill, int64_t edited_tokens = 0) : fill_(fill) {
    scratch_.edited = edited_tokens > 0 ? array<float>(edited_tokens + kVectorPadding) : nullptr;
    scratch_.raw_chunk_maximum = array<float>(kMaxChunks);
    scratch_.chunk_maximum = array<float>(kMaxChunks);
    scratch_.chunk_sum = array<uint64_t>(kMaxChunks);
    scratch_.sample_logit = array<float>(kSampleCapacity + kVectorPadding);
    scratch_.sample_weight = array<float>(kSampleCapacity + kVectorPadding);
    scratch_.histogram_measure = array<uint64_t>(1 << kHistogramBits);
    scratch_.histogram_count = array<uint32_t>(1 << kHistogramBits);
    scratch_.work = list();
    for (int64_t part = 0; part < parts; ++part) {
      parts_.push_back({});
      parts_.back().candidates = list();
    }
    scratch_.parts = parts_.data();
  }
  RowScratch& get() { return scratch_; }

 private:
  template <class T>
  T* array(int64_t count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    arrays_.push_back(std::make_unique<char[]>(bytes));
    memset(arrays_.back().get(), fill_, bytes);
    return reinterpret_cast<T*>(arrays_.back().get());
  }
  Candidates list() {
    return {array<float>(kCandidateCapacity + kVectorPadding), array<uint32_t>(kCandidateCapacity + kVectorPadding), 0,
            false, false};
  }

  unsigned char fill_;
  std::vector<std::unique_ptr<char[]>> arrays_;
  std::vector<PartScratch> parts_;
  RowScratch scratch_{};
};

inline void run_on_threads(int64_t parts, Team::Body body, const void* context) {
  std::vector<std::thread> threads;
  for (int64_t part = 1; part < parts; ++part) threads.emplace_back(body, context, part);
  body(context, 0);
  for (std::thread& thread : threads) thread.join();
}

struct Named {
  const char* name;
  InstructionSet set;
  const Kernels* kernels;
};

inline std::vector<Named> available_kernels() {
  std::vector<Named> named{{"scalar", InstructionSet::kScalar, &kScalarKernels}};
#if defined(__x86_64__)
  const InstructionSet best = cap_instruction_set(2);
  if (best >= InstructionSet::kAvx2) named.push_back({"avx2", InstructionSet::kAvx2, &kAvx2Kernels});
  if (best >= InstructionSet::kAvx512) named.push_back({"avx512", InstructionSet::kAvx512, &kAvx512Kernels});
#endif
  return named;
}

// Lengths around every boundary that the kernels have: vectors, chunks, the sample, the candidates, a split row.
inline int64_t random_vocab(Random& random) {
  static const std::vector<int64_t> boundaries{
      1, 4, 8, 16, 32, 64, kChunk, 2 * kChunk, 5 * kChunk, kSampleCapacity, kCandidateCapacity, 49152, 131072};
  const int64_t kind = random.below(40);
  if (kind == 0) return 1 + random.below(300000);
  if (kind < 20) return 1 + random.below(700);
  // Long rows are rarer: they take most of the time.
  const int64_t choice = random.below(static_cast<int64_t>(boundaries.size()) + 20);
  const int64_t near = choice < static_cast<int64_t>(boundaries.size()) ? boundaries[static_cast<size_t>(choice)]
                                                                        : 1 + random.below(3000);
  const int64_t vocab = near + random.below(5) - 2;
  return vocab > 1 ? vocab : 1;
}

inline Case random_case(Random& random) {
  Case c{};
  c.vocab = random_vocab(random);
  c.stride = random.one_of<int64_t>({1, 1, 1, 1, 2, 3, -1, 0});
  c.dtype = random.one_of<DType>({DType::kFloat32, DType::kFloat16, DType::kBFloat16});
  c.kind = static_cast<int>(random.below(kKinds));
  c.probabilities = random.below(5) == 0;
  const float some_p = random.uniform(), some_m = random.uniform();
  c.filters = {random.one_of<float>({0.8f, 1.0f, 0.5f, 2.0f, 1e-30f, 1e-40f, 0.0f, kInfinity, -1.0f, kNan}),
               random.one_of<int64_t>({0, 0, -3, 1, 2, 50, c.vocab - 1, c.vocab, c.vocab + 9, 1 + random.below(c.vocab),
                                       int64_t{1} << 40}),
               random.one_of<float>({1.0f, 1.0f, 0.9f, 0.9f, 0.999f, 0.0f, 1e-38f, 1e-45f, some_p, some_p, 1.5f, kNan}),
               random.one_of<float>({0.0f, 0.0f, 0.0f, 0.05f, some_m, 1.0f, 1e-45f, -0.5f, kNan}),
               random.one_of<Order>({Order::kTopKFirst, Order::kMinPFirst, Order::kJoint}),
               c.probabilities};
  if (c.vocab > kCandidateCapacity && random.below(4)) {  // large kept sets, which overflow the candidates
    c.filters.temperature = random.one_of<float>({0.8f, 1.0f, kInfinity});
    c.filters.top_k = random.one_of<int64_t>({0, 0, 50, kCandidateCapacity / 2, kCandidateCapacity + 100});
    c.filters.top_p = random.one_of<float>({1.0f, 0.9f, 0.731f, 0.9999f});
    c.filters.min_p = random.one_of<float>({0.0f, 1e-5f});
  }
  c.replacement = random.below(2) == 0;
  c.draws = 1 + random.below(random.below(8) ? 3 : 40);
  c.tokens_stride = 1 + random.below(3);
  c.seed = random.next();
  return c;
}

// What random cases hardly ever meet: a bracket of top_p that holds more tokens than fit the candidates.
inline Case overflowing_bracket() {
  Case c{};
  c.vocab = kCandidateCapacity + 7235;
  c.stride = 1;
  c.dtype = DType::kFloat32;
  c.kind = kTwoValues;
  c.filters = {1.0f, 0, 0.731f, 0.0f, Order::kTopKFirst, false};
  c.draws = c.tokens_stride = 1;
  return c;
}

[[noreturn]] inline void fail(const Case& c, const std::string& what) {
  std::printf(
      "FAILED: %s\n  vocab %lld, stride %lld, dtype %d, kind %d, probabilities %d, T %a, top_k %lld, top_p %a, min_p "
      "%a, "
      "order %lld, replacement %d, draws %lld\n",
      what.c_str(), static_cast<long long>(c.vocab), static_cast<long long>(c.stride), static_cast<int>(c.dtype),
      c.kind, c.probabilities, static_cast<double>(c.filters.temperature), static_cast<long long>(c.filters.top_k),
      static_cast<double>(c.filters.top_p), static_cast<double>(c.filters.min_p),
      static_cast<long long>(c.filters.order), c.replacement, static_cast<long long>(c.draws));
  std::exit(1);
}

}  // namespace fastsample::cpu
