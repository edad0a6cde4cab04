// The calls of csrc/requests.h over random rows.
#pragma once

#include <algorithm>

#include "cases.h"

namespace fastsample::cpu {

// Offsets of `lists` lists of `count` entries; now and then one is nonsense.
inline std::vector<int64_t> random_offsets(int64_t lists, int64_t count, Random& random) {
  std::vector<int64_t> offsets(static_cast<size_t>(lists + 1));
  for (int64_t& offset : offsets) offset = random.below(count + 1);
  std::sort(offsets.begin(), offsets.end());
  if (random.below(8) == 0)
    offsets[static_cast<size_t>(random.below(lists + 1))] =
        random.one_of<int64_t>({-1, count + 1, INT64_MIN, INT64_MAX});
  return offsets;
}

inline std::vector<int64_t> random_tokens(int64_t count, int64_t vocab, Random& random) {
  std::vector<int64_t> tokens(static_cast<size_t>(count));
  for (int64_t& token : tokens)
    token = random.below(16) ? random.below(vocab) : random.one_of<int64_t>({-1, vocab, INT64_MIN, INT64_MAX});
  return tokens;
}

inline std::vector<int32_t> random_mask(int64_t words, Random& random) {
  std::vector<int32_t> mask(static_cast<size_t>(words));
  for (int32_t& word : mask) word = static_cast<int32_t>(random.next() | random.next());
  return mask;
}

// Everything that one row is asked for, each array an allocation of its own.
struct Request {
  int64_t words, history_length;
  std::vector<int64_t> prompt, output, bias_tokens, bias_offsets, word_tokens, word_offsets, word_rows, stops,
      stop_offsets;
  std::vector<float> bias;
  std::vector<int32_t> allowed, prompt_mask, counts;
  Penalties penalties;

  Request(const Case& c, Random& random)
      : words((c.vocab + 31) / 32),
        history_length(random.below(22) - 1),
        prompt(random_tokens(random.below(9), c.vocab, random)),
        output(random_tokens(random.below(20), random.below(2) ? c.vocab : 1 + c.vocab / 64, random)),
        bias_tokens(random_tokens(random.below(40), c.vocab, random)),
        bias_offsets(random_offsets(1, size(bias_tokens), random)),
        word_tokens(random_tokens(random.below(9), c.vocab, random)),
        word_offsets(random_offsets(random.below(5), size(word_tokens), random)),
        word_rows(random_offsets(1, size(word_offsets) - 1, random)),
        stops(random_tokens(random.below(4), c.vocab, random)),
        stop_offsets(random_offsets(1, size(stops), random)),
        allowed(random_mask(words, random)),
        penalties{random.one_of<float>({1.0f, 1.3f, 0.5f, 0.0f}), random.one_of<float>({0.0f, 0.5f, kInfinity}),
                  random.one_of<float>({0.0f, -0.25f, kNan})} {
    for (size_t i = 0; i < bias_tokens.size(); ++i) bias.push_back(random.normal());
    if (random.below(4) == 0) prompt_mask = random_mask(words, random);
    if (random.below(4) == 0)
      for (int64_t i = 0; i < c.vocab; ++i) counts.push_back(static_cast<int32_t>(random.below(4)) - 1);
    if (random.below(3) == 0) allowed.clear();
  }

  Adjustments adjustments() const {
    Adjustments given{};
    given.repetition_penalty.value = penalties.repetition;
    given.presence_penalty.value = penalties.presence;
    given.frequency_penalty.value = penalties.frequency;
    given.prompt = {{prompt.data(), 0, 1, size(prompt)}, nullptr, 0};
    given.output = {{output.data(), 0, 1, size(output)}, &history_length, 0};
    if (!prompt_mask.empty()) given.prompt_mask = {prompt_mask.data(), 0, 1, words};
    if (!counts.empty()) given.output_counts = {counts.data(), 0, 1, size(counts)};
    given.bias = {{bias_tokens.data(), size(bias_tokens), 1, bias_offsets.data(), 1}, bias.data(), 1};
    given.bad_words = {{word_tokens.data(), size(word_tokens), 1, word_offsets.data(), 1},
                       size(word_offsets) - 1,
                       word_rows.data(),
                       1,
                       true};
    given.min_tokens.value = 10;
    given.stop_tokens = {stops.data(), size(stops), 1, stop_offsets.data(), 1};
    given.allowed = mask();
    return given;
  }
  RowsOf<const int32_t> mask() const {
    return allowed.empty() ? RowsOf<const int32_t>{} : RowsOf<const int32_t>{allowed.data(), 0, 1, words};
  }
  int64_t most_edits(int64_t vocab) const {
    if (!prompt_mask.empty() || !counts.empty()) return vocab;
    const int64_t most = 1 + size(prompt) + size(output) + size(bias_tokens) + size(word_offsets) - 1 + size(stops);
    return most < vocab ? most : vocab;
  }

 private:
  template <class T>
  static int64_t size(const std::vector<T>& list) {
    return static_cast<int64_t>(list.size());
  }
};

struct RequestResults {
  std::vector<int32_t> bits, before, status;
  std::vector<int64_t> tokens, ranks, top_tokens, numbers, kept, fixed, residual;
  std::vector<float> logprobs, raw_logprobs, top_logprobs;

  bool operator==(const RequestResults& other) const {
    return bits == other.bits && before == other.before && status == other.status && tokens == other.tokens &&
           ranks == other.ranks && top_tokens == other.top_tokens && numbers == other.numbers && kept == other.kept &&
           fixed == other.fixed && residual == other.residual && same(logprobs, other.logprobs) &&
           same(raw_logprobs, other.raw_logprobs) && same(top_logprobs, other.top_logprobs);
  }
  static bool same(const std::vector<float>& a, const std::vector<float>& b) {  // by bytes: a NaN equals itself
    return a.size() == b.size() && (a.empty() || memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
  }
};

inline RequestResults run_request(const Case& c, const RowView& view, const RowView& draft, const Request& request,
                                  const std::vector<int64_t>& asked, int64_t top, const Kernels& kernels, int64_t parts,
                                  unsigned char fill) {
  RequestResults results;
  const auto words = static_cast<size_t>(request.words);
  results.bits.resize(words);
  results.before.resize(words);
  results.status.resize(1);
  std::vector<float> values(static_cast<size_t>(request.most_edits(c.vocab)));
  const auto capacity = static_cast<int64_t>(values.size());
  const Batch batch{static_cast<const char*>(view.data), 1, 0, view.stride, view.vocab, view.dtype};
  find_edits(
      {batch,
       {nullptr, 0},
       1,
       request.adjustments(),
       {results.bits.data(), results.before.data(), values.data(), results.status.data(), request.words, capacity}},
      {1, run_on_threads});
  const Edits edits{request.mask(), results.bits.data(), results.before.data(), values.data(), request.words, capacity};
  const RowEdits row_edits = edits_of_row(edits, 0);

  SeparateScratch scratch(parts, fill, c.vocab);
  const Team team{parts, run_on_threads};
  const auto count = static_cast<size_t>(c.draws);
  results.tokens.resize(count);
  results.ranks.resize(count);
  results.logprobs.resize(count);
  results.raw_logprobs.resize(count);
  results.top_tokens.resize(static_cast<size_t>(top));
  results.top_logprobs.resize(static_cast<size_t>(top));
  results.numbers.resize(kNumbers);
  const Draws draws{
      {c.seed, c.seed >> 7, static_cast<uint32_t>(c.seed >> 32)}, c.replacement, c.draws, results.tokens.data(), 1};
  const Details details{{results.logprobs.data(), 0, 1, c.draws},
                        {results.raw_logprobs.data(), 0, 1, c.draws},
                        {results.ranks.data(), 0, 1, c.draws},
                        {results.top_tokens.data(), 0, 1, top},
                        {results.top_logprobs.data(), 0, 1, top},
                        {results.numbers.data(), 0, 1, kNumbers},
                        c.seed % 3 == 0};
  const bool edited = c.seed % 4 != 0;
  kernels.sample_full(view, edited ? &row_edits : nullptr, c.filters, draws, details, scratch.get(), team);

  results.kept.resize(static_cast<size_t>(results.numbers[5]));
  const Cut cut{bits_float(static_cast<uint32_t>(results.numbers[2])), results.numbers[3]};
  if (results.numbers[0] == 0)
    kernels.kept_tokens(view, edited ? row_edits : RowEdits{}, cut, 0, results.numbers[5], results.kept.data(),
                        scratch.get());

  results.fixed.resize(asked.size());
  kernels.fixed_probs_at(view, c.filters, asked.data(), 1, static_cast<int64_t>(asked.size()), results.fixed.data(),
                         scratch.get(), team);
  results.residual.resize(2);
  Draws emitted{draws.random, true, 1, results.residual.data(), 1};
  kernels.sample_residual(view, c.filters, &draft, c.filters, emitted, scratch.get(), team);
  emitted.tokens = results.residual.data() + 1;
  kernels.sample_residual(view, c.filters, nullptr, c.filters, emitted, scratch.get(), team);
  return results;
}

// A row with everything that can be asked for, by every kernel, whole and split.
inline void check_request(const Case& with_probabilities, const std::vector<Named>& kernels, Random& random) {
  Case c = with_probabilities;
  c.probabilities = c.filters.probabilities = false;
  const Row row(c, random);
  Case other = c;
  other.dtype = DType::kFloat32;
  other.stride = 1;
  const Row draft(other, random);
  const RowView view{row.data(), c.stride, c.vocab, c.dtype}, drafted{draft.data(), 1, c.vocab, DType::kFloat32};
  const Request request(c, random);
  const std::vector<int64_t> asked = random_tokens(random.below(6), c.vocab, random);
  const int64_t top = random.below(kMostTopTokens + 1), split = 2 + random.below(3);
  const int64_t chunks = (c.vocab + kChunk - 1) / kChunk;
  RequestResults expected;
  unsigned char fill = 0;
  for (const Named& named : kernels)
    for (const int64_t parts : {int64_t{1}, split}) {
      if (parts > chunks) continue;
      fill = static_cast<unsigned char>(fill + 0x55);
      RequestResults results = run_request(c, view, drafted, request, asked, top, *named.kernels, parts, fill);
      if (expected.numbers.empty()) expected = results;
      if (!(results == expected))
        fail(c, std::string("a request by ") + named.name + " in " + std::to_string(parts) + " parts differs");
      if (std::count(results.kept.begin(), results.kept.end(), -1) != 0) fail(c, "a kept set is not complete");
    }
}

// Rows of a batch over threads, recorded in their histories; numbers and offsets of kept sets that are nonsense.
inline void check_requests(const Case& c, const std::vector<Named>& kernels, Random& random) {
  Case contiguous = c;
  contiguous.stride = 1;
  contiguous.probabilities = false;
  const Row row(contiguous, random);
  const Batch batch{row.data(), 1, 0, 1, c.vocab, c.dtype};
  const int64_t rows = 1 + random.below(5);
  std::vector<int64_t> indices(static_cast<size_t>(rows));
  for (int64_t& index : indices) index = random.below(8) ? 0 : random.below(3) - 1;
  const std::vector<int32_t> allowed = random_mask((c.vocab + 31) / 32, random);
  const Edits edits{{allowed.data(), 0, 1, static_cast<int64_t>(allowed.size())}, nullptr, nullptr, nullptr, 0, 0};
  BatchFilters filters{};
  filters.temperature.value = 0.9f;
  filters.top_p.value = 0.9f;
  const BatchRandomness randomness{{0, indices.data(), 1}, {7, nullptr, 0}, {1, nullptr, 0}, true};
  std::vector<int64_t> nonsense(static_cast<size_t>(rows * kNumbers)), offsets(static_cast<size_t>(rows + 1));
  for (int64_t i = 0; i < rows * kNumbers; ++i)
    nonsense[static_cast<size_t>(i)] = i % kNumbers == 0 ? 0 : static_cast<int64_t>(random.next());
  for (int64_t& offset : offsets) offset = random.below(4) ? random.below(20) : static_cast<int64_t>(random.next());

  std::vector<int64_t> expected;
  for (const Named& named : kernels)
    for (const int64_t threads : {1, 3}) {
      cap_instruction_set(static_cast<int64_t>(named.set));
      std::vector<int64_t> tokens(static_cast<size_t>(rows)), history(static_cast<size_t>(2 * rows)),
          lengths(static_cast<size_t>(rows)), kept(12), words(static_cast<size_t>(3 * rows));
      std::vector<int32_t> counts(static_cast<size_t>(rows * c.vocab));
      for (int64_t i = 0; i < rows; ++i) lengths[static_cast<size_t>(i)] = i - 1;
      sample_full({batch,
                   {indices.data(), 1},
                   filters,
                   randomness,
                   true,
                   {tokens.data(), rows, 1, 1, 1},
                   edits,
                   {{history.data(), 2, 1, 2}, lengths.data(), 1, {counts.data(), c.vocab, 1, c.vocab}},
                   {}},
                  {threads, run_on_threads});
      if (threads == 1)  // rows whose places overlap are written in any order
        kept_tokens({batch,
                     {indices.data(), 1},
                     rows,
                     edits,
                     {nonsense.data(), kNumbers, 1, kNumbers},
                     offsets.data(),
                     1,
                     kept.data(),
                     12},
                    {threads, run_on_threads});
      random_words({rows, randomness, 0xFFFFFFFFu, 3, words.data()});
      std::vector<int64_t> all = tokens;
      all.insert(all.end(), history.begin(), history.end());
      all.insert(all.end(), lengths.begin(), lengths.end());
      all.insert(all.end(), words.begin(), words.end());
      if (expected.empty()) expected = all;
      if (all != expected) fail(c, std::string("requests by ") + named.name + " differ from scalar on one thread");
    }
}

}  // namespace fastsample::cpu
