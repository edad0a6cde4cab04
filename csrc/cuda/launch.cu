// The host's side of a launch: the shape for the current device, the kernel for the call, and the launch itself.
#include "launch.h"

#include <cuda_runtime.h>

#include <atomic>
#include <mutex>

#include "kernels.h"
#include "policy.h"

namespace fastsample::cuda {

namespace {

constexpr int kMaxDevices = 64;

const void* kernel_for(DType dtype, bool resident) {
  switch (dtype) {
    case DType::kFloat32:
      return float32_kernel(resident);
    case DType::kFloat16:
      return float16_kernel(resident);
    default:
      return bfloat16_kernel(resident);
  }
}

// Lets every kernel have all the shared memory there is and any cluster, once for a device: permissions belong to a
// function, so that to set what one launch needs would race with another thread's.
cudaError_t permit(int64_t shared, bool clusters) {
  cudaError_t error = cudaSuccess;
  const auto set = [&](const void* kernel, cudaFuncAttribute attribute, int64_t value) {
    if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, attribute, static_cast<int>(value));
  };
  for (const bool resident : {false, true})
    for (const void* const kernel : {float32_kernel(resident), float16_kernel(resident), bfloat16_kernel(resident),
                                     sample_full_kernel_for(resident)}) {
      set(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
      if (clusters) set(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    }
  return error;
}

// The largest cluster of blocks that fill a multiprocessor each which this device, or the part of it that this process
// may use, can run.
int32_t largest_cluster(int64_t shared) {
  for (int32_t blocks = kMaxBlocks; blocks > 1; blocks /= 2) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(kMaxThreads);
    config.dynamicSmemBytes = static_cast<size_t>(shared);
    config.attrs = &attribute;
    config.numAttrs = 1;
    int clusters = 0;
    if (cudaOccupancyMaxActiveClusters(&clusters, kernel_for(DType::kFloat32, true), &config) == cudaSuccess &&
        clusters > 0)
      return blocks;
    cudaGetLastError();  // a refusal is an answer, not an error of the next call
  }
  return 1;
}

cudaError_t examine(int device, Device& result) {
  int major = 0, minor = 0, multiprocessors = 0;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  result = {major * 10 + minor, multiprocessors, 1};
  const int64_t shared = shared_memory(result.capability) - kStaticShared;
  const bool clusters = result.capability >= 90;
  error = permit(shared, clusters);
  if (error == cudaSuccess && clusters) result.largest_cluster = largest_cluster(shared);
  return error;
}

// The current device, examined on first use.
cudaError_t current_device(Device& result) {
  static std::mutex mutex;
  static Device known[kMaxDevices];
  static std::atomic<bool> examined[kMaxDevices];
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  if (device >= kMaxDevices) return cudaErrorInvalidDevice;
  if (!examined[device].load(std::memory_order_acquire)) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!examined[device].load(std::memory_order_relaxed)) {
      error = examine(device, known[device]);
      if (error != cudaSuccess) return error;
      examined[device].store(true, std::memory_order_release);
    }
  }
  result = known[device];
  return cudaSuccess;
}

// `call` is what the kernel is given, `work` its sizes.
template <class Call>
cudaError_t enqueue(const void* kernel, const Call& call, const Work& work, const Shape& shape, void* memory,
                    cudaStream_t stream) {
  Workspace workspace = workspace_in(memory, work, shape);
  if (workspace.arrivals) {
    const cudaError_t error =
        cudaMemsetAsync(workspace.arrivals, 0, static_cast<size_t>(work.rows) * sizeof(uint32_t), stream);
    if (error != cudaSuccess) return error;
  }
  const size_t shared = shape.resident ? static_cast<size_t>(resident_bytes(work, shape.blocks, shape.threads)) : 0;
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (shape.cluster) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {static_cast<unsigned>(shape.blocks), 1, 1};
  }
  if (shape.overlaps) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(work.rows * shape.blocks));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  Call call_argument = call;
  Shape shape_argument = shape;
  void* arguments[] = {&call_argument, &shape_argument, &workspace};
  return cudaLaunchKernelExC(&config, kernel, arguments);
}

template <class Call>
const char* launch_rows(const void* kernel, const Call& call, const Work& work, const Shape& shape, void* workspace,
                        void* stream) {
  if (work.rows == 0) return nullptr;
  if (!possible(shape)) return "no shape that the kernels can run in";
  if (work.rows > INT32_MAX / kMaxBlocks) return "more rows than one launch can have";
  const cudaError_t error = enqueue(kernel, call, work, shape, workspace, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <class... Arguments>
const char* launch_blocks(RequestKernel which, int64_t blocks, uint32_t threads, void* stream, Arguments... arguments) {
  if (blocks == 0) return nullptr;
  if (blocks > INT32_MAX) return "more rows than one launch can have";
  void* pointers[] = {&arguments...};
  const cudaError_t error = cudaLaunchKernel(request_kernel(which), dim3(static_cast<unsigned>(blocks)), dim3(threads),
                                             pointers, 0, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* shape_for(const Work& work, Shape& shape) {
  Device device;
  const cudaError_t error = current_device(device);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  shape = choose_shape(work, device);
  return nullptr;
}

size_t workspace_bytes(const Work& work, const Shape& shape) {
  return workspace_size(work, shape);
}

const char* launch(const Work& work, const Shape& shape, void* workspace, void* stream) {
  return launch_rows(kernel_for(work.batch.dtype, shape.resident), work, work, shape, workspace, stream);
}

const char* launch(const SampleFull& call, const Shape& shape, void* workspace, void* stream) {
  return launch_rows(sample_full_kernel_for(shape.resident), call, sizes_of(call), shape, workspace, stream);
}

const char* launch(const FindEdits& call, uint32_t* last_bias, void* stream) {
  return launch_blocks(RequestKernel::kFindEdits, call.rows, kRowThreads, stream, call, last_bias);
}

const char* launch(const KeptTokens& call, void* stream) {
  if (call.total > 0) {  // -1 in what is not written
    const size_t bytes = static_cast<size_t>(call.total) * sizeof(int64_t);
    const cudaError_t error = cudaMemsetAsync(call.out, 0xFF, bytes, static_cast<cudaStream_t>(stream));
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  return launch_blocks(RequestKernel::kKeptTokens, call.rows, kRowThreads, stream, call);
}

const char* launch(const RandomWords& call, void* stream) {
  return launch_blocks(RequestKernel::kRandomWords, blocks_for(call.rows * call.count), kEntryThreads, stream, call);
}

const char* launch(const FixedProbsAt& call, const int64_t* numbers, void* stream) {
  const int64_t entries = call.tokens.rows * call.tokens.count;
  return launch_blocks(RequestKernel::kFixedProbsAt, blocks_for(entries), kEntryThreads, stream, call, numbers);
}

const char* launch(const SampleResidual& call, const int64_t* target_numbers, const int64_t* draft_numbers,
                   void* stream) {
  return launch_blocks(RequestKernel::kSampleResidual, call.tokens.rows, kRowThreads, stream, call, target_numbers,
                       draft_numbers);
}

}  // namespace fastsample::cuda
