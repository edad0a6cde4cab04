// The host's side of a launch: the shape for the current device, the kernel for the dtype, and the launch itself.
#include "launch.h"

#include <cuda_runtime.h>

#include <atomic>

#include "kernels.h"
#include "policy.h"

namespace fastsample::cuda {

namespace {

constexpr int kMaxDevices = 64;

// Asked once a device.
Device current_device() {
  static std::atomic<int64_t> known[kMaxDevices] = {};
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kMaxDevices) return {0, 1};
  int64_t both = known[device].load(std::memory_order_relaxed);
  if (both == 0) {
    int major = 0, minor = 0, multiprocessors = 1;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    both = static_cast<int64_t>(major * 10 + minor) << 32 | multiprocessors;
    known[device].store(both, std::memory_order_relaxed);
  }
  return {static_cast<int32_t>(both >> 32), static_cast<int32_t>(both & 0xFFFFFFFF)};
}

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

cudaError_t enqueue(const Work& work, const Shape& shape, void* memory, cudaStream_t stream) {
  Workspace workspace = workspace_in(memory, work, shape);
  if (workspace.arrivals) {
    const cudaError_t error =
        cudaMemsetAsync(workspace.arrivals, 0, static_cast<size_t>(work.rows) * sizeof(uint32_t), stream);
    if (error != cudaSuccess) return error;
  }
  const void* const kernel = kernel_for(work.batch.dtype, shape.resident);
  const size_t shared = shape.resident ? static_cast<size_t>(resident_bytes(work, shape.blocks, shape.threads)) : 0;
  // Permissions of the function on this device; giving them again changes nothing.
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  if (error == cudaSuccess && shape.cluster && shape.blocks > kPortableBlocks)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error != cudaSuccess) return error;

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
  Work work_argument = work;
  Shape shape_argument = shape;
  void* arguments[] = {&work_argument, &shape_argument, &workspace};
  return cudaLaunchKernelExC(&config, kernel, arguments);
}

}  // namespace

Shape shape_for(const Work& work) {
  return choose_shape(work, current_device());
}

size_t workspace_bytes(const Work& work, const Shape& shape) {
  return workspace_size(work, shape);
}

const char* launch(const Work& work, const Shape& shape, void* workspace, void* stream) {
  if (work.rows == 0) return nullptr;
  if (work.rows > INT32_MAX / kLargestBlocks) return "more rows than one launch can have";
  const cudaError_t error = enqueue(work, shape, workspace, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace fastsample::cuda
