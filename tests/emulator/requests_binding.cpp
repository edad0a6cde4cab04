// The calls of csrc/requests.h on the emulator, for tests/emulated.py: each arrives as one list of the fields of its
// struct and of theirs, in order; pointers are numbers.
#include <type_traits>

#include "binding.h"
#include "cpu/arithmetic.h"
#include "cuda/policy.h"
#include "rows.h"

namespace fastsample::cuda {
namespace {

using fastsample::cuda::add;
using simt::Buffer;
using Buffers = std::vector<Buffer>;

// Takes the fields out of the list, one after the other.
class Fields {
 public:
  explicit Fields(const pybind11::list& list) : list_(list) {}

  template <class T>
  T next() {
    return list_[next_++].cast<T>();
  }
  template <class T>
  T* pointer() {
    return reinterpret_cast<T*>(next<uintptr_t>());
  }

  template <class T>
  PerRow<T> per_row() {
    using Number = std::conditional_t<std::is_floating_point_v<T>, double, int64_t>;
    const auto value = static_cast<T>(next<Number>());
    const auto* const rows = pointer<const T>();
    return {value, rows, next<int64_t>()};
  }
  Batch batch() {
    const auto* const data = pointer<const char>();
    const auto rows = next<int64_t>(), row_stride = next<int64_t>(), stride = next<int64_t>(), vocab = next<int64_t>();
    return {data, rows, row_stride, stride, vocab, static_cast<DType>(next<int32_t>())};
  }
  RowIndices indices() {
    const auto* const data = pointer<const int64_t>();
    return {data, next<int64_t>()};
  }
  BatchFilters filters() {
    const auto temperature = per_row<float>();
    const auto top_k = per_row<int64_t>();
    const auto top_p = per_row<float>(), min_p = per_row<float>();
    const auto order = static_cast<Order>(next<int64_t>());
    return {temperature, top_k, top_p, min_p, order, next<bool>()};
  }
  BatchRandomness randomness() {
    const auto seed = per_row<int64_t>(), offset = per_row<int64_t>(), stream = per_row<int64_t>();
    return {seed, offset, stream, next<bool>()};
  }
  template <class Integer>
  TokenMatrix<Integer> tokens() {
    auto* const data = pointer<Integer>();
    const auto rows = next<int64_t>(), count = next<int64_t>(), row_stride = next<int64_t>();
    return {data, rows, count, row_stride, next<int64_t>()};
  }
  template <class T>
  RowsOf<T> rows_of() {
    auto* const data = pointer<T>();
    const auto row_stride = next<int64_t>(), stride = next<int64_t>();
    return {data, row_stride, stride, next<int64_t>()};
  }
  Edits edits() {
    const auto allowed = rows_of<const int32_t>();
    const auto* const bits = pointer<const int32_t>();
    const auto* const before = pointer<const int32_t>();
    const auto* const values = pointer<const float>();
    const auto words = next<int64_t>();
    return {allowed, bits, before, values, words, next<int64_t>()};
  }
  Csr lists() {
    const auto* const tokens = pointer<const int64_t>();
    const auto count = next<int64_t>(), stride = next<int64_t>();
    const auto* const offsets = pointer<const int64_t>();
    return {tokens, count, stride, offsets, next<int64_t>()};
  }
  Histories histories() {
    const auto tokens = rows_of<const int64_t>();
    const auto* const lengths = pointer<const int64_t>();
    return {tokens, lengths, next<int64_t>()};
  }
  Adjustments adjustments() {
    const auto repetition = per_row<float>(), presence = per_row<float>(), frequency = per_row<float>();
    const auto prompt = histories(), output = histories();
    const auto prompt_mask = rows_of<const int32_t>(), output_counts = rows_of<const int32_t>();
    const auto biased = lists();
    const auto* const bias = pointer<const float>();
    const auto bias_stride = next<int64_t>();
    const auto words = lists();
    const auto number = next<int64_t>();
    const auto* const word_rows = pointer<const int64_t>();
    const auto word_rows_stride = next<int64_t>();
    const auto in_prompt = next<bool>();
    const auto min_tokens = per_row<int64_t>();
    const auto stop_tokens = lists();
    return {repetition,
            presence,
            frequency,
            prompt,
            output,
            prompt_mask,
            output_counts,
            {biased, bias, bias_stride},
            {words, number, word_rows, word_rows_stride, in_prompt},
            min_tokens,
            stop_tokens,
            rows_of<const int32_t>()};
  }
  FoundEdits found() {
    auto* const bits = pointer<int32_t>();
    auto* const before = pointer<int32_t>();
    auto* const values = pointer<float>();
    auto* const status = pointer<int32_t>();
    const auto words = next<int64_t>();
    return {bits, before, values, status, words, next<int64_t>()};
  }
  History history() {
    const auto tokens = rows_of<int64_t>();
    auto* const lengths = pointer<int64_t>();
    const auto stride = next<int64_t>();
    return {tokens, lengths, stride, rows_of<int32_t>()};
  }
  Details details() {
    const auto logprobs = rows_of<float>(), raw_logprobs = rows_of<float>();
    const auto ranks = rows_of<int64_t>(), top_tokens = rows_of<int64_t>();
    const auto top_logprobs = rows_of<float>();
    const auto numbers = rows_of<int64_t>();
    return {logprobs, raw_logprobs, ranks, top_tokens, top_logprobs, numbers, next<bool>()};
  }

 private:
  const pybind11::list& list_;
  size_t next_ = 0;
};

// --- the memory that a launch touches; what it writes first, since an input may be the same memory

template <class T>
void add(Buffers& buffers, const char* name, const RowsOf<T>& matrix, int64_t rows, Buffer::Access access) {
  if (matrix.data)
    buffers.push_back(
        {matrix.data, span(rows, matrix.row_stride, matrix.columns, matrix.stride) * sizeof(T), name, access});
}

template <class T>
void add(Buffers& buffers, const char* name, T* data, int64_t count, Buffer::Access access, int64_t stride = 1) {
  if (data) buffers.push_back({data, span(1, 0, count, stride) * sizeof(T), name, access});
}

void add(Buffers& buffers, const Batch& batch) {
  const int64_t element = bytes_per_token(batch.dtype);
  const size_t elements = span(batch.rows, batch.row_stride / element, batch.vocab, batch.stride);
  buffers.push_back({batch.data, elements * static_cast<size_t>(element), "logits", Buffer::kInput});
}

void add(Buffers& buffers, const Workspace& workspace, const Shape& shape, int64_t rows) {
  if (!needs_workspace(shape)) return;
  add(buffers, "arrivals", workspace.arrivals, rows, Buffer::kZeroed);
  add(buffers, "maxima", workspace.maxima, rows * shape.blocks * shape.threads, Buffer::kOutput);
}

Buffers buffers_of(const SampleFull& call, const Shape& shape, const Workspace& workspace) {
  const int64_t rows = call.tokens.rows;
  const Tokens& tokens = call.tokens;
  const Details& details = call.details;
  Buffers buffers;
  buffers.push_back(
      {tokens.data, span(rows, tokens.row_stride, tokens.count, tokens.stride) * 8, "tokens", Buffer::kOutput});
  add(buffers, "history", call.history.tokens, rows, Buffer::kZeroed);
  add(buffers, "history's lengths", call.history.lengths, rows, Buffer::kZeroed, call.history.lengths_stride);
  add(buffers, "counts", call.history.counts, rows, Buffer::kZeroed);
  add(buffers, "log-probabilities", details.logprobs, rows, Buffer::kOutput);
  add(buffers, "raw log-probabilities", details.raw_logprobs, rows, Buffer::kOutput);
  add(buffers, "ranks", details.ranks, rows, Buffer::kOutput);
  add(buffers, "top tokens", details.top_tokens, rows, Buffer::kOutput);
  add(buffers, "top log-probabilities", details.top_logprobs, rows, Buffer::kOutput);
  add(buffers, "numbers", details.numbers, rows, Buffer::kOutput);
  add(buffers, workspace, shape, rows);
  add(buffers, call.batch);
  add(buffers, "indices", call.indices.data, rows, Buffer::kInput, call.indices.stride);
  add(buffers, "seed", call.randomness.seed, rows);
  add(buffers, "offset", call.randomness.offset, rows);
  add(buffers, "allowed", call.edits.allowed, rows, Buffer::kInput);
  add(buffers, "bits", call.edits.bits, rows * call.edits.words, Buffer::kInput);
  add(buffers, "before", call.edits.before, rows * call.edits.words, Buffer::kInput);
  add(buffers, "values", call.edits.values, rows * call.edits.capacity, Buffer::kInput);
  return buffers;
}

// --- what Python calls

using ShapeFields = std::tuple<int32_t, int32_t, bool, bool, bool>;
using ScheduleFields = std::tuple<int, uint64_t>;
using DeviceFields = std::tuple<int32_t, int32_t>;

simt::Schedule schedule_of(const ScheduleFields& fields) {
  return {static_cast<simt::Order>(std::get<0>(fields)), std::get<1>(fields)};
}

// A launch takes its shape as it is, or has it chosen for a device.
Shape shape_of(const SampleFull& call, const pybind11::tuple& shape_or_device) {
  if (shape_or_device.size() == 2) {
    const auto [capability, multiprocessors] = shape_or_device.cast<DeviceFields>();
    return choose_shape(sizes_of(call), {capability, multiprocessors});
  }
  const auto [blocks, threads, cluster, resident, overlaps] = shape_or_device.cast<ShapeFields>();
  return {blocks, threads, cluster, resident, overlaps};
}

void launch_sample_full(const SampleFull& call, const Shape& shape, const simt::Schedule& schedule) {
  if (call.tokens.rows == 0) return;
  const Work sizes = sizes_of(call);
  const auto memory = allocate_workspace(workspace_size(sizes, shape));
  const Workspace workspace = workspace_in(memory.get(), sizes, shape);
  if (workspace.arrivals) memset(workspace.arrivals, 0, static_cast<size_t>(sizes.rows) * sizeof(uint32_t));
  run_sample_full(launch_of(sizes, shape, schedule, buffers_of(call, shape, workspace)), call, shape, workspace);
}

// Not inlined, so that parameters are rounded to float32 after the floating-point environment is changed.
__attribute__((noinline)) void sample_full(const pybind11::list& list, const pybind11::tuple& shape_or_device,
                                           const ScheduleFields& schedule) {
  const cpu::IeeeArithmetic arithmetic;
  Fields in(list);
  SampleFull call{};
  call.batch = in.batch();
  call.indices = in.indices();
  call.filters = in.filters();
  call.randomness = in.randomness();
  call.replacement = in.next<bool>();
  call.tokens = in.tokens<int64_t>();
  call.edits = in.edits();
  call.history = in.history();
  call.details = in.details();
  launch_sample_full(call, shape_of(call, shape_or_device), schedule_of(schedule));
}

// A launch of blocks that have nothing to do with each other.
simt::Launch launch_of(int64_t blocks, uint32_t threads, const simt::Schedule& schedule, Buffers buffers) {
  return {static_cast<uint32_t>(blocks), threads, 1, 0, 2, schedule, std::move(buffers)};
}

__attribute__((noinline)) void find_edits(const pybind11::list& list, const pybind11::tuple&,
                                          const ScheduleFields& schedule) {
  const cpu::IeeeArithmetic arithmetic;
  Fields in(list);
  FindEdits call{};
  call.batch = in.batch();
  call.indices = in.indices();
  call.rows = in.next<int64_t>();
  call.adjustments = in.adjustments();
  call.found = in.found();
  if (call.rows == 0) return;
  const int64_t rows = call.rows, words = rows * call.found.words, entries = bias_entries(call);
  const auto last_bias = allocate_workspace(static_cast<size_t>(entries) * sizeof(uint32_t));
  auto* const biases = static_cast<uint32_t*>(last_bias.get());
  Buffers buffers;
  add(buffers, "bits", call.found.bits, words, Buffer::kOutput);
  add(buffers, "before", call.found.before, words, Buffer::kOutput);
  add(buffers, "values", call.found.values, rows * call.found.capacity, Buffer::kOutput);
  add(buffers, "status", call.found.status, rows, Buffer::kOutput);
  add(buffers, "last biases", biases, entries, Buffer::kOutput);
  add(buffers, call.batch);
  run_request(launch_of(rows, kRowThreads, schedule_of(schedule), std::move(buffers)), call, biases);
}

__attribute__((noinline)) void kept_tokens(const pybind11::list& list, const pybind11::tuple&,
                                           const ScheduleFields& schedule) {
  const cpu::IeeeArithmetic arithmetic;
  Fields in(list);
  KeptTokens call{};
  call.batch = in.batch();
  call.indices = in.indices();
  call.rows = in.next<int64_t>();
  call.edits = in.edits();
  call.numbers = in.rows_of<const int64_t>();
  call.offsets = in.pointer<const int64_t>();
  call.offsets_stride = in.next<int64_t>();
  call.out = in.pointer<int64_t>();
  call.total = in.next<int64_t>();
  if (call.total > 0) memset(call.out, 0xFF, static_cast<size_t>(call.total) * sizeof(int64_t));
  if (call.rows == 0) return;
  Buffers buffers;
  add(buffers, "kept tokens", call.out, call.total, Buffer::kZeroed);
  add(buffers, "numbers", call.numbers, call.rows, Buffer::kInput);
  add(buffers, call.batch);
  run_request(launch_of(call.rows, kRowThreads, schedule_of(schedule), std::move(buffers)), call);
}

__attribute__((noinline)) void random_words(const pybind11::list& list, const pybind11::tuple&,
                                            const ScheduleFields& schedule) {
  const cpu::IeeeArithmetic arithmetic;
  Fields in(list);
  RandomWords call{};
  call.rows = in.next<int64_t>();
  call.randomness = in.randomness();
  call.first = static_cast<uint32_t>(in.next<int64_t>());
  call.count = in.next<int64_t>();
  call.out = in.pointer<int64_t>();
  const int64_t entries = call.rows * call.count;
  if (entries == 0) return;
  Buffers buffers;
  add(buffers, "words", call.out, entries, Buffer::kOutput);
  run_request(launch_of(blocks_for(entries), kEntryThreads, schedule_of(schedule), std::move(buffers)), call);
}

// The kept sets of rows, in a launch of their own.
std::vector<int64_t> numbers_of(const Batch& batch, const RowIndices& indices, const BatchFilters& filters,
                                int64_t rows, const pybind11::tuple& shape_or_device, const simt::Schedule& schedule) {
  std::vector<int64_t> numbers(static_cast<size_t>(rows) * kNumbers);
  const SampleFull call = kept_sets(batch, indices, filters, rows, numbers.data());
  launch_sample_full(call, shape_of(call, shape_or_device), schedule);
  return numbers;
}

__attribute__((noinline)) void fixed_probs_at(const pybind11::list& list, const pybind11::tuple& shape_or_device,
                                              const ScheduleFields& schedule) {
  const cpu::IeeeArithmetic arithmetic;
  Fields in(list);
  FixedProbsAt call{};
  call.batch = in.batch();
  call.indices = in.indices();
  call.tokens = in.tokens<const int64_t>();
  call.filters = in.filters();
  call.out = in.pointer<int64_t>();
  const int64_t rows = call.tokens.rows, entries = rows * call.tokens.count;
  if (entries == 0) return;
  const auto numbers = numbers_of(call.batch, call.indices, call.filters, rows, shape_or_device, schedule_of(schedule));
  Buffers buffers;
  add(buffers, "fixed probabilities", call.out, entries, Buffer::kOutput);
  add(buffers, "numbers", numbers.data(), rows * kNumbers, Buffer::kInput);
  add(buffers, call.batch);
  run_request(launch_of(blocks_for(entries), kEntryThreads, schedule_of(schedule), std::move(buffers)), call,
              numbers.data());
}

__attribute__((noinline)) void sample_residual(const pybind11::list& list, const pybind11::tuple& shape_or_device,
                                               const ScheduleFields& schedule) {
  const cpu::IeeeArithmetic arithmetic;
  Fields in(list);
  SampleResidual call{};
  call.target = in.batch();
  call.target_indices = in.indices();
  call.target_filters = in.filters();
  call.draft = in.batch();
  call.draft_indices = in.indices();
  call.draft_filters = in.filters();
  call.randomness = in.randomness();
  call.tokens = in.tokens<int64_t>();
  const int64_t rows = call.tokens.rows;
  if (rows == 0) return;
  const auto numbers = [&](const Batch& batch, const RowIndices& indices, const BatchFilters& filters) {
    return numbers_of(batch, indices, filters, rows, shape_or_device, schedule_of(schedule));
  };
  const auto target = numbers(call.target, call.target_indices, call.target_filters);
  const auto draft = numbers(call.draft, call.draft_indices, call.draft_filters);
  Buffers buffers;
  add(buffers, "tokens", call.tokens.data, (rows - 1) * call.tokens.row_stride + 1, Buffer::kOutput);
  add(buffers, "target's numbers", target.data(), rows * kNumbers, Buffer::kInput);
  add(buffers, "draft's numbers", draft.data(), rows * kNumbers, Buffer::kInput);
  add(buffers, call.target);
  add(buffers, call.draft);
  run_request(launch_of(rows, kRowThreads, schedule_of(schedule), std::move(buffers)), call, target.data(),
              draft.data());
}

}  // namespace

void bind_requests(pybind11::module_& module) {
  module.def("sample_full", &sample_full);
  module.def("find_edits", &find_edits);
  module.def("kept_tokens", &kept_tokens);
  module.def("random_words", &random_words);
  module.def("fixed_probs_at", &fixed_probs_at);
  module.def("sample_residual", &sample_residual);
}

}  // namespace fastsample::cuda
