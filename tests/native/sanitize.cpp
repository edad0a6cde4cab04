// Runs the torch-free CPU kernels over random rows, to be built with the sanitizers: sanitize SEED CASES.
//
// Every buffer is an allocation of exactly its size, so that AddressSanitizer sees a read or a write past its end, and
// working memory starts out different in every run, so that a result which depends on it differs. Each case runs on
// every instruction set of this processor, on one thread and split over several; all results have to be equal.
#include "cases.h"
#include "request_cases.h"

namespace fastsample::cpu {
namespace {

struct Results {
  std::vector<int64_t> tokens;
  std::vector<char> filtered;
  std::vector<float> probs, log_probs;

  bool operator==(const Results& other) const {  // by bytes: a NaN equals itself
    return tokens == other.tokens && filtered == other.filtered && same(probs, other.probs) &&
           same(log_probs, other.log_probs);
  }
  static bool same(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && (a.empty() || memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
  }
};

Results run_row(const Case& c, const Row& row, const std::vector<int64_t>& asked, const Kernels& kernels, int64_t parts,
                unsigned char fill) {
  SeparateScratch scratch(parts, fill);
  const Team team{parts, run_on_threads};
  const RowView view{row.data(), c.stride, c.vocab, c.dtype};
  Results results;
  results.tokens.resize(static_cast<size_t>((c.draws - 1) * c.tokens_stride + 1), -7);
  const Draws draws{{c.seed, c.seed >> 7, static_cast<uint32_t>(c.seed >> 32)},
                    c.replacement,
                    c.draws,
                    results.tokens.data(),
                    c.tokens_stride};
  kernels.sample(view, c.filters, draws, scratch.get(), team);
  if (c.probabilities) return results;
  results.filtered.resize(static_cast<size_t>(c.vocab * row.element_size()));
  kernels.filter_logits(view, c.filters, results.filtered.data(), scratch.get(), team);
  results.probs.resize(static_cast<size_t>(c.vocab));
  kernels.filtered_probs(view, c.filters, results.probs.data(), scratch.get(), team);
  results.log_probs.resize(asked.size());
  kernels.log_probs(view, c.filters, asked.data(), 1, static_cast<int64_t>(asked.size()), results.log_probs.data(),
                    scratch.get(), team);
  return results;
}

// One row by every kernel, whole and split.
void check_row(const Case& c, const std::vector<Named>& kernels, Random& random) {
  const Row row(c, random);
  std::vector<int64_t> asked(static_cast<size_t>(random.below(6)));
  for (int64_t& token : asked) token = random.below(c.vocab + 4) - 2;
  const int64_t chunks = (c.vocab + kChunk - 1) / kChunk;
  Results expected;
  unsigned char fill = 0;
  for (const Named& named : kernels) {
    const int64_t split = 2 + random.below(3);
    for (const int64_t parts : {int64_t{1}, split}) {
      if (parts > chunks) continue;
      fill = static_cast<unsigned char>(fill + 0x55);
      Results results = run_row(c, row, asked, *named.kernels, parts, fill);
      if (expected.tokens.empty()) expected = results;
      if (!(results == expected))
        fail(c, std::string(named.name) + " in " + std::to_string(parts) + " parts differs from scalar in one");
    }
  }
}

// A batch as the torch binding passes it on: rows over threads or each row split, parameters per row, indices.
void check_batch(const Case& c, const std::vector<Named>& kernels, Random& random) {
  const int64_t rows = 1 + random.below(5), outputs = 1 + random.below(5), gap = random.below(3);
  const int64_t size = c.dtype == DType::kFloat32 ? 4 : 2, row_elements = c.vocab + gap;
  std::vector<char> data(static_cast<size_t>(((rows - 1) * row_elements + c.vocab) * size));
  Case contiguous = c;
  contiguous.stride = 1;
  for (int64_t i = 0; i < rows; ++i)
    memcpy(data.data() + i * row_elements * size, Row(contiguous, random).data(), static_cast<size_t>(c.vocab * size));
  const Batch batch{data.data(), rows, row_elements * size, 1, c.vocab, c.dtype};

  std::vector<int64_t> indices(static_cast<size_t>(outputs)), top_k(indices.size()), seeds(indices.size());
  std::vector<float> temperatures(indices.size());
  for (size_t i = 0; i < indices.size(); ++i) {
    const Case other = random_case(random);
    indices[i] = random.below(rows + 2) - 1;
    top_k[i] = other.filters.top_k;
    temperatures[i] = other.filters.temperature;
    seeds[i] = static_cast<int64_t>(other.seed);
  }
  const BatchFilters filters{{0, temperatures.data(), 1},   {0, top_k.data(), 1}, {c.filters.top_p, nullptr, 0},
                             {c.filters.min_p, nullptr, 0}, c.filters.order,      c.probabilities};
  const BatchRandomness randomness{{0, seeds.data(), 1}, {7, nullptr, 0}, {-1, nullptr, 0}, true};

  std::vector<int64_t> expected;
  for (const Named& named : kernels)
    for (const int64_t threads : {1, 3}) {
      cap_instruction_set(static_cast<int64_t>(named.set));
      std::vector<int64_t> tokens(static_cast<size_t>(outputs * c.draws), -7);
      sample(batch, indices.data(), 1, filters, randomness, c.replacement,
             {tokens.data(), outputs, c.draws, c.draws, 1}, {threads, run_on_threads});
      if (expected.empty()) expected = tokens;
      if (tokens != expected) fail(c, std::string("a batch by ") + named.name + " differs from scalar on one thread");
    }

  std::vector<std::vector<int64_t>> drawn(3, std::vector<int64_t>(expected.size(), -7));
  std::vector<std::thread> callers;
  for (std::vector<int64_t>& tokens : drawn)
    callers.emplace_back([&] {
      sample(batch, indices.data(), 1, filters, randomness, c.replacement,
             {tokens.data(), outputs, c.draws, c.draws, 1}, {2, run_on_threads});
    });
  cap_instruction_set(static_cast<int64_t>(kernels.front().set));  // a change in the middle of their calls
  for (std::thread& caller : callers) caller.join();
  for (const std::vector<int64_t>& tokens : drawn)
    if (tokens != expected) fail(c, "a batch of one of several callers differs from that of one alone");
}

}  // namespace
}  // namespace fastsample::cpu

int main(int argc, char** argv) {
  using namespace fastsample::cpu;
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s SEED CASES\n", argv[0]);
    return 2;
  }
  Random random(std::strtoull(argv[1], nullptr, 10));
  const int64_t cases = std::strtoll(argv[2], nullptr, 10);
  const std::vector<Named> kernels = available_kernels();
  check_row(overflowing_bracket(), kernels, random);
  for (int64_t i = 0; i < cases; ++i) {
    const Case c = random_case(random);
    check_row(c, kernels, random);
    check_request(c, kernels, random);
    if (i % 4 == 0) check_batch(c, kernels, random);
    if (i % 4 == 1) check_requests(c, kernels, random);
  }
  std::printf("%lld cases equal on:", static_cast<long long>(cases));
  for (const Named& named : kernels) std::printf(" %s", named.name);
  std::printf("\n");
}
