// What the host's side of the CUDA backend says, as JSON, for tests/ptx:
//   host layout                                             [offset, size] of whatever a kernel is given
//   host shape CAPABILITY MULTIPROCESSORS DTYPE ROWS VOCAB  [blocks, threads, cluster, resident, overlaps]
//   host shared DTYPE VOCAB BLOCKS THREADS                  bytes of shared memory that a resident row takes in a block
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "cuda/policy.h"

using namespace fastsample;
using namespace fastsample::cuda;

namespace {

#define FIELD(structure, name, field) \
  std::printf("  \"%s.%s\": [%zu, %zu],\n", name, #field, offsetof(structure, field), sizeof(structure::field))

template <class PerRowValue>
void print_per_row(const char* name) {
  FIELD(PerRowValue, name, value);
  FIELD(PerRowValue, name, rows);
  FIELD(PerRowValue, name, stride);
}

// Does not compile when one of the structures has a field more: print_layout() then has to know it.
[[maybe_unused]] void every_field_is_known() {
  [[maybe_unused]] const auto& [value, value_rows, value_stride] = PerRow<float>{};
  [[maybe_unused]] const auto& [data, rows, row_stride, stride, vocab, dtype] = Batch{};
  [[maybe_unused]] const auto& [temperature, top_k, top_p, min_p, order, probabilities] = BatchFilters{};
  [[maybe_unused]] const auto& [seed, offset, stream, stream_per_row] = BatchRandomness{};
  [[maybe_unused]] const auto& [token, token_rows, count, token_row_stride, token_stride] = Tokens{};
  [[maybe_unused]] const auto& [operation, batch, work_rows, indices, indices_stride, filters, randomness, replacement,
                                tokens, wanted, out] = Work{};
  [[maybe_unused]] const auto& [blocks, threads, cluster, resident, overlaps] = Shape{};
  [[maybe_unused]] const auto& [arrivals, maxima] = Workspace{};
  [[maybe_unused]] const auto& [matrix, matrix_row_stride, matrix_stride, columns] = RowsOf<float>{};
  [[maybe_unused]] const auto& [allowed, bits, before, values, words, capacity] = Edits{};
  [[maybe_unused]] const auto& [history, lengths, lengths_stride, counts] = History{};
  [[maybe_unused]] const auto& [logprobs, raw_logprobs, ranks, top_tokens, top_logprobs, numbers, top_of_processed] =
      Details{};
  [[maybe_unused]] const auto& [full_batch, full_indices, full_filters, full_randomness, full_replacement, full_tokens,
                                edits, full_history, details] = SampleFull{};
}

void print_layout() {
  std::printf("{\n");
  print_per_row<PerRow<float>>("PerRowFloat");
  print_per_row<PerRow<int64_t>>("PerRowInt64");
  FIELD(Batch, "Batch", data);
  FIELD(Batch, "Batch", rows);
  FIELD(Batch, "Batch", row_stride);
  FIELD(Batch, "Batch", stride);
  FIELD(Batch, "Batch", vocab);
  FIELD(Batch, "Batch", dtype);
  FIELD(BatchFilters, "BatchFilters", temperature);
  FIELD(BatchFilters, "BatchFilters", top_k);
  FIELD(BatchFilters, "BatchFilters", top_p);
  FIELD(BatchFilters, "BatchFilters", min_p);
  FIELD(BatchFilters, "BatchFilters", order);
  FIELD(BatchFilters, "BatchFilters", probabilities);
  FIELD(BatchRandomness, "BatchRandomness", seed);
  FIELD(BatchRandomness, "BatchRandomness", offset);
  FIELD(BatchRandomness, "BatchRandomness", stream);
  FIELD(BatchRandomness, "BatchRandomness", stream_per_row);
  FIELD(Tokens, "TokenMatrix", data);
  FIELD(Tokens, "TokenMatrix", rows);
  FIELD(Tokens, "TokenMatrix", count);
  FIELD(Tokens, "TokenMatrix", row_stride);
  FIELD(Tokens, "TokenMatrix", stride);
  FIELD(Work, "Work", operation);
  FIELD(Work, "Work", batch);
  FIELD(Work, "Work", rows);
  FIELD(Work, "Work", indices);
  FIELD(Work, "Work", indices_stride);
  FIELD(Work, "Work", filters);
  FIELD(Work, "Work", randomness);
  FIELD(Work, "Work", replacement);
  FIELD(Work, "Work", tokens);
  FIELD(Work, "Work", wanted);
  FIELD(Work, "Work", out);
  FIELD(Shape, "Shape", blocks);
  FIELD(Shape, "Shape", threads);
  FIELD(Shape, "Shape", cluster);
  FIELD(Shape, "Shape", resident);
  FIELD(Shape, "Shape", overlaps);
  FIELD(Workspace, "Workspace", arrivals);
  FIELD(Workspace, "Workspace", maxima);
  FIELD(RowsOf<float>, "RowsOf", data);
  FIELD(RowsOf<float>, "RowsOf", row_stride);
  FIELD(RowsOf<float>, "RowsOf", stride);
  FIELD(RowsOf<float>, "RowsOf", columns);
  FIELD(RowIndices, "RowIndices", data);
  FIELD(RowIndices, "RowIndices", stride);
  FIELD(Edits, "EditsOf", allowed);
  FIELD(Edits, "EditsOf", bits);
  FIELD(Edits, "EditsOf", before);
  FIELD(Edits, "EditsOf", values);
  FIELD(Edits, "EditsOf", words);
  FIELD(Edits, "EditsOf", capacity);
  FIELD(History, "HistoryOf", tokens);
  FIELD(History, "HistoryOf", lengths);
  FIELD(History, "HistoryOf", lengths_stride);
  FIELD(History, "HistoryOf", counts);
  FIELD(Details, "DetailsOf", logprobs);
  FIELD(Details, "DetailsOf", raw_logprobs);
  FIELD(Details, "DetailsOf", ranks);
  FIELD(Details, "DetailsOf", top_tokens);
  FIELD(Details, "DetailsOf", top_logprobs);
  FIELD(Details, "DetailsOf", numbers);
  FIELD(Details, "DetailsOf", top_of_processed);
  FIELD(SampleFull, "SampleFull", batch);
  FIELD(SampleFull, "SampleFull", indices);
  FIELD(SampleFull, "SampleFull", filters);
  FIELD(SampleFull, "SampleFull", randomness);
  FIELD(SampleFull, "SampleFull", replacement);
  FIELD(SampleFull, "SampleFull", tokens);
  FIELD(SampleFull, "SampleFull", edits);
  FIELD(SampleFull, "SampleFull", history);
  FIELD(SampleFull, "SampleFull", details);
  std::printf("  \"SampleFull\": [0, %zu],\n", sizeof(SampleFull));
  std::printf("  \"Work\": [0, %zu], \"Shape\": [0, %zu], \"Workspace\": [0, %zu]\n}\n", sizeof(Work), sizeof(Shape),
              sizeof(Workspace));
}

}  // namespace

int main(int count, char** arguments) {
  const std::string question = count > 1 ? arguments[1] : "layout";
  std::vector<int64_t> numbers;
  for (int i = 2; i < count; ++i) numbers.push_back(std::atoll(arguments[i]));
  Work work = {};
  if (question == "layout") {
    print_layout();
  } else if (question == "shape" && numbers.size() == 5) {
    work.batch.dtype = static_cast<DType>(numbers[2]);
    work.rows = work.batch.rows = numbers[3];
    work.batch.vocab = numbers[4];
    const Shape shape = choose_shape(work, {static_cast<int32_t>(numbers[0]), static_cast<int32_t>(numbers[1])});
    std::printf("[%d, %d, %d, %d, %d]\n", shape.blocks, shape.threads, shape.cluster, shape.resident, shape.overlaps);
  } else if (question == "shared" && numbers.size() == 4) {
    work.batch.dtype = static_cast<DType>(numbers[0]);
    work.batch.vocab = numbers[1];
    std::printf("%lld\n", static_cast<long long>(resident_bytes(work, static_cast<int32_t>(numbers[2]),
                                                                static_cast<int32_t>(numbers[3]))));
  } else {
    return 1;
  }
}
