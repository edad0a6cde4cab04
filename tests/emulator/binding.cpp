// The emulated kernels for tests/emulated.py: the structs of csrc/cuda/work.h arrive as tuples of their fields, in
// order.
#include <pybind11/pybind11.h>

#include <tuple>
#include <vector>

#include "binding.h"
#include "cpu/arithmetic.h"
#include "cuda/policy.h"
#include "rows.h"

namespace fastsample::cuda {
namespace {

using simt::Buffer;
using Address = uintptr_t;
template <class T>
using PerRowFields = std::tuple<T, Address, int64_t>;
using BatchFields = std::tuple<Address, int64_t, int64_t, int64_t, int64_t, int>;
using FilterFields =
    std::tuple<PerRowFields<double>, PerRowFields<int64_t>, PerRowFields<double>, PerRowFields<double>, int64_t, bool>;
using RandomnessFields = std::tuple<PerRowFields<int64_t>, PerRowFields<int64_t>, PerRowFields<int64_t>, bool>;
using TokenFields = std::tuple<Address, int64_t, int64_t, int64_t, int64_t>;
using WorkFields = std::tuple<int, BatchFields, int64_t, Address, int64_t, FilterFields, RandomnessFields, bool,
                              TokenFields, TokenFields, Address>;
using ShapeFields = std::tuple<int32_t, int32_t, bool, bool, bool>;
using ScheduleFields = std::tuple<int, uint64_t>;
using DeviceFields = std::tuple<int32_t, int32_t>;

// Brace initialisation of an aggregate from its fields.
template <class T, class Fields>
T aggregate(const Fields& fields) {
  return std::apply([](const auto&... field) { return T{field...}; }, fields);
}

template <class T, class Number>
PerRow<T> per_row(const PerRowFields<Number>& fields) {
  const auto [value, rows, stride] = fields;
  return {static_cast<T>(value), reinterpret_cast<const T*>(rows), stride};
}

template <class Integer>
TokenMatrix<Integer> tokens_of(const TokenFields& fields) {
  const auto [data, rows, count, row_stride, stride] = fields;
  return {reinterpret_cast<Integer*>(data), rows, count, row_stride, stride};
}

Work work_of(const WorkFields& fields) {
  const auto& [operation, batch, rows, indices, indices_stride, filters, randomness, replacement, tokens, wanted, out] =
      fields;
  const auto& [data, batch_rows, row_stride, stride, vocab, dtype] = batch;
  const auto& [temperature, top_k, top_p, min_p, order, probabilities] = filters;
  const auto& [seed, offset, stream, stream_per_row] = randomness;
  return {static_cast<Operation>(operation),
          {reinterpret_cast<const char*>(data), batch_rows, row_stride, stride, vocab, static_cast<DType>(dtype)},
          rows,
          reinterpret_cast<const int64_t*>(indices),
          indices_stride,
          {per_row<float>(temperature), per_row<int64_t>(top_k), per_row<float>(top_p), per_row<float>(min_p),
           static_cast<Order>(order), probabilities},
          {per_row<int64_t>(seed), per_row<int64_t>(offset), per_row<int64_t>(stream), stream_per_row},
          replacement,
          tokens_of<int64_t>(tokens),
          tokens_of<const int64_t>(wanted),
          reinterpret_cast<void*>(out)};
}

// --- the memory that a launch touches

std::vector<Buffer> buffers_of(const Work& work, const Shape& shape, const Workspace& workspace) {
  const Batch& batch = work.batch;
  const auto element = static_cast<int64_t>(bytes_per_token(batch.dtype));
  const auto rows = static_cast<size_t>(work.rows);
  std::vector<Buffer> buffers;
  const size_t elements = span(batch.rows, batch.row_stride / element, batch.vocab, batch.stride);
  buffers.push_back({batch.data, elements * static_cast<size_t>(element), "logits", Buffer::kInput});
  if (work.indices)
    buffers.push_back({work.indices, span(1, 0, work.rows, work.indices_stride) * 8, "indices", Buffer::kInput});
  add(buffers, "temperature", work.filters.temperature, work.rows);
  add(buffers, "top_k", work.filters.top_k, work.rows);
  add(buffers, "top_p", work.filters.top_p, work.rows);
  add(buffers, "min_p", work.filters.min_p, work.rows);
  const Tokens& tokens = work.tokens;
  const ConstTokens& wanted = work.wanted;
  const auto vocab = static_cast<size_t>(batch.vocab);
  switch (work.operation) {
    case Operation::kSample:
      add(buffers, "seed", work.randomness.seed, work.rows);
      add(buffers, "offset", work.randomness.offset, work.rows);
      add(buffers, "stream", work.randomness.stream, work.rows);
      buffers.push_back({tokens.data, span(tokens.rows, tokens.row_stride, tokens.count, tokens.stride) * 8, "tokens",
                         Buffer::kOutput});
      break;
    case Operation::kFilterLogits:
      buffers.push_back({work.out, rows * vocab * static_cast<size_t>(element), "filtered logits", Buffer::kOutput});
      break;
    case Operation::kFilteredProbs:
      buffers.push_back({work.out, rows * vocab * 4, "probabilities", Buffer::kOutput});
      break;
    case Operation::kLogProbs:
      buffers.push_back({wanted.data, span(wanted.rows, wanted.row_stride, wanted.count, wanted.stride) * 8,
                         "tokens asked for", Buffer::kInput});
      buffers.push_back({work.out, rows * static_cast<size_t>(wanted.count) * 4, "log-probabilities", Buffer::kOutput});
      break;
  }
  if (needs_workspace(shape)) {
    const size_t maxima = rows * static_cast<size_t>(shape.blocks) * static_cast<size_t>(shape.threads);
    buffers.push_back({workspace.arrivals, rows * sizeof(uint32_t), "arrivals", Buffer::kZeroed});
    buffers.push_back({workspace.maxima, maxima * sizeof(float), "maxima", Buffer::kOutput});
  }
  return buffers;
}

// --- what Python calls

// Not inlined, so that the parameters are rounded to float32 after the floating-point environment is changed.
__attribute__((noinline)) void run_work(const WorkFields& fields, const Shape& shape, const simt::Schedule& schedule) {
  const Work work = work_of(fields);
  if (work.rows == 0) return;
  const auto memory = allocate_workspace(workspace_size(work, shape));
  const Workspace workspace = workspace_in(memory.get(), work, shape);
  if (workspace.arrivals) memset(workspace.arrivals, 0, static_cast<size_t>(work.rows) * sizeof(uint32_t));
  const simt::Launch launch = launch_of(work, shape, schedule, buffers_of(work, shape, workspace));
  switch (work.batch.dtype) {
    case DType::kFloat32:
      return run_float32(launch, work, shape, workspace);
    case DType::kFloat16:
      return run_float16(launch, work, shape, workspace);
    case DType::kBFloat16:
      return run_bfloat16(launch, work, shape, workspace);
  }
}

void run(const WorkFields& work, const ShapeFields& shape, const ScheduleFields& schedule) {
  const cpu::IeeeArithmetic arithmetic;  // a GPU does not care for this processor's denormal mode
  run_work(work, aggregate<Shape>(shape), {static_cast<simt::Order>(std::get<0>(schedule)), std::get<1>(schedule)});
}

ShapeFields choose(const WorkFields& work, const DeviceFields& device) {
  const Shape shape = choose_shape(work_of(work), aggregate<Device>(device));
  return {shape.blocks, shape.threads, shape.cluster, shape.resident, shape.overlaps};
}

}  // namespace
}  // namespace fastsample::cuda

PYBIND11_MODULE(emulated_kernels, module) {
  // Local to the module, of which a process may have several builds.
  pybind11::register_local_exception<simt::Error>(module, "KernelError", PyExc_RuntimeError);
  module.def("run", &fastsample::cuda::run, pybind11::arg("work"), pybind11::arg("shape"), pybind11::arg("schedule"));
  module.def("choose_shape", &fastsample::cuda::choose, pybind11::arg("work"), pybind11::arg("device"));
  fastsample::cuda::bind_requests(module);
}
