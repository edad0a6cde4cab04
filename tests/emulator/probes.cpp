#include "probes.h"

#include <map>

#include "emulated_device.h"

using namespace fastsample::cuda;

namespace {

constexpr uint32_t kWords = 256;
constexpr unsigned int kAllLanes = 0xFFFFFFFFu;

struct Memory {
  uint32_t* out;       // [kWords], unset
  uint32_t* arrivals;  // [1], zero
  const uint32_t* in;  // [kWords]: 0, 1, 2, ...
};

__device__ uint32_t global_thread() {
  return blockIdx.x * blockDim.x + threadIdx.x;
}

// --- what has to work

__global__ void barrier(Memory memory) {
  SHARED_ARRAY(uint32_t, words, 128);
  words[threadIdx.x] = threadIdx.x;
  __syncthreads();
  memory.out[global_thread()] = words[127 - threadIdx.x];
}

__global__ void votes(Memory memory) {
  const int odd = threadIdx.x % 2, last = threadIdx.x == 63;
  memory.out[3 * threadIdx.x] = static_cast<uint32_t>(__syncthreads_count(odd));
  memory.out[3 * threadIdx.x + 1] = static_cast<uint32_t>(__syncthreads_or(last));
  memory.out[3 * threadIdx.x + 2] = static_cast<uint32_t>(__syncthreads_or(0));
}

__global__ void shuffles(Memory memory) {
  const uint32_t lane = threadIdx.x;
  const uint64_t wide = uint64_t{lane} << 32 | lane;
  memory.out[lane] = __shfl_sync(kAllLanes, lane, static_cast<int>(lane) + 1);
  memory.out[32 + lane] = __shfl_up_sync(kAllLanes, lane, 3);
  memory.out[64 + lane] = __shfl_down_sync(kAllLanes, lane, 3);
  memory.out[96 + lane] = __shfl_xor_sync(kAllLanes, lane, 5);
  memory.out[128 + lane] = static_cast<uint32_t>(__shfl_xor_sync(kAllLanes, wide, 16) >> 32);
  memory.out[160 + lane] = __shfl_down_sync(kAllLanes, lane, 3, 8);
}

__global__ void lanes(Memory memory) {
  const uint32_t lane = threadIdx.x;
  const bool low = lane < 8;
  const unsigned int half = low ? 0xFFu : 0xFFFFFF00u;
  memory.out[lane] = __ballot_sync(kAllLanes, lane % 3 == 0);
  memory.out[32 + lane] = __ballot_sync(half, 1);
  memory.out[64 + lane] = static_cast<uint32_t>(__any_sync(half, lane == 9) * 2 + __all_sync(half, lane != 9));
  memory.out[96 + lane] = __reduce_add_sync(half, lane);
  memory.out[128 + lane] = __reduce_min_sync(half, lane);
  memory.out[160 + lane] = __reduce_max_sync(half, lane);
}

__global__ void warp_memory(Memory memory) {
  SHARED_ARRAY(uint32_t, words, 32);
  words[threadIdx.x] = threadIdx.x;
  __syncwarp();
  memory.out[threadIdx.x] = words[31 - threadIdx.x];
}

__global__ void atomics(Memory memory) {
  SHARED_VARIABLE(unsigned int, added);
  SHARED_VARIABLE(unsigned int, smallest);
  SHARED_VARIABLE(unsigned int, largest);
  SHARED_VARIABLE(unsigned int, bits);
  SHARED_VARIABLE(unsigned long long, wide);
  if (threadIdx.x == 0) {
    added = 0;
    smallest = 1000;
    largest = 0;
    bits = 0;
    wide = 1ull << 40;
  }
  __syncthreads();
  atomicAdd(&added, 1u);
  atomicMin(&smallest, threadIdx.x + 7);
  atomicMax(&largest, threadIdx.x);
  atomicOr(&bits, 1u << threadIdx.x % 8);
  atomicAdd(&wide, 1ull << 32);
  __syncthreads();
  const uint32_t results[] = {added, smallest, largest, bits, static_cast<uint32_t>(wide >> 32)};
  if (threadIdx.x < 5) memory.out[threadIdx.x] = results[threadIdx.x];
}

__global__ void cluster_exchange(Memory memory) {
  SHARED_ARRAY(uint32_t, words, 4);
  cluster_arrive();
  cluster_wait();
  const uint32_t rank = cluster_rank(), blocks = cluster_size();
  if (threadIdx.x < blocks) cluster_map(words, threadIdx.x)[rank] = blockIdx.x;
  cluster_arrive();
  const uint32_t place = blockIdx.x * blocks + threadIdx.x;
  if (threadIdx.x < blocks) memory.out[32 + place] = rank;  // between the two halves of a barrier
  cluster_wait();
  if (threadIdx.x < blocks) memory.out[place] = words[threadIdx.x];
}

// The last block to arrive adds what all of them left in global memory.
template <bool kFenceBefore, bool kBarrierBefore, bool kFenceAfter>
__global__ void last_to_arrive(Memory memory) {
  SHARED_VARIABLE(uint32_t, arrived);
  memory.out[1 + global_thread()] = global_thread();
  if (kFenceBefore) __threadfence();
  if (kBarrierBefore) __syncthreads();
  if (threadIdx.x == 0) arrived = atomicAdd(memory.arrivals, 1u);
  __syncthreads();
  if (kFenceAfter) __threadfence();
  if (arrived + 1 < gridDim.x || threadIdx.x > 0) return;
  uint32_t sum = 0;
  for (uint32_t i = 0; i < gridDim.x * blockDim.x; ++i) sum += memory.out[1 + i];
  memory.out[0] = sum;
}

__global__ void order_of_threads(Memory memory) {
  SHARED_VARIABLE(uint32_t, next);
  if (threadIdx.x == 0) next = 0;
  __syncthreads();
  memory.out[atomicAdd(&next, 1u)] = threadIdx.x;
}

__global__ void order_of_blocks(Memory memory) {
  if (threadIdx.x == 0) memory.out[atomicAdd(memory.arrivals, 1u)] = blockIdx.x;
}

__global__ void garbage(Memory memory) {
  SHARED_ARRAY(uint32_t, words, 128);
  memory.out[threadIdx.x] = words[threadIdx.x];
}

__global__ void dynamic_memory(Memory memory) {
  SHARED_DYNAMIC(uint32_t, words);
  words[threadIdx.x] = threadIdx.x;
  __syncthreads();
  memory.out[threadIdx.x] = words[63 - threadIdx.x];
}

__global__ void some_end_early(Memory memory) {
  if (threadIdx.x >= 32) return;
  __syncthreads();
  memory.out[threadIdx.x] = static_cast<uint32_t>(__syncthreads_count(1));
}

// --- what every build notices

__global__ void divergent_barrier(Memory) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}

__global__ void barrier_in_a_branch(Memory) {
  if (threadIdx.x == 5) __syncthreads();
  __ballot_sync(kAllLanes, 1);
  __syncthreads();
}

__global__ void vote_in_a_branch(Memory) {
  if (threadIdx.x % 2) __ballot_sync(kAllLanes, 1);
  __shfl_sync(kAllLanes, 1, 0);
}

__global__ void lane_not_in_mask(Memory) {
  __ballot_sync(0xFFFFu, 1);
}

__global__ void lane_that_ended(Memory) {
  if (threadIdx.x == 3) return;
  __syncwarp();
}

__global__ void arrives_twice(Memory) {
  cluster_arrive();
  cluster_arrive();
}

__global__ void waits_without_arriving(Memory) {
  cluster_wait();
}

__global__ void divergent_cluster_barrier(Memory) {
  if (threadIdx.x % 2)
    cluster_arrive();
  else
    cluster_arrive();
  cluster_wait();
}

__global__ void one_block_does_not_arrive(Memory) {
  if (cluster_rank() == 1 && threadIdx.x == 0) __syncthreads();
  cluster_arrive();
  cluster_wait();
}

__global__ void maps_a_block_that_ended(Memory memory) {
  SHARED_VARIABLE(uint32_t, word);
  if (threadIdx.x == 0) word = 1;
  cluster_arrive();
  cluster_wait();
  if (cluster_rank() == 1) return;
  for (int i = 0; i < 100; ++i) __syncthreads();  // long enough for the other to end
  memory.out[0] = *cluster_map(&word, 1);
}

__global__ void maps_no_block(Memory) {
  SHARED_VARIABLE(uint32_t, word);
  cluster_map(&word, 2);
}

__global__ void maps_other_memory(Memory memory) {
  cluster_map(memory.out, 1);
}

__global__ void misaligned_vector(Memory memory) {
  memory.out[threadIdx.x] = load_once(reinterpret_cast<const uint4*>(memory.in + 4 * threadIdx.x + 1)).x;
}

__global__ void constant_load_of_an_output(Memory memory) {
  memory.out[threadIdx.x] = load_once(reinterpret_cast<const uint4*>(memory.out)).x;
}

__global__ void too_much_static_memory(Memory) {
  SHARED_ARRAY(uint32_t, words, 40 << 8);
  SHARED_ARRAY(uint32_t, more_words, 9 << 8);
  words[0] = more_words[0] = 0;
}

// --- what AddressSanitizer and UndefinedBehaviorSanitizer notice

__global__ void beyond_shared_memory(Memory memory) {
  SHARED_ARRAY(uint32_t, words, 100);
  uint32_t* const first = words;  // past UndefinedBehaviorSanitizer, which knows how long `words` is
  for (uint32_t i = threadIdx.x; i < 101; i += blockDim.x) first[i] = i;
  __syncthreads();
  memory.out[threadIdx.x] = words[threadIdx.x];
}

__global__ void beyond_global_memory(Memory memory) {
  memory.out[threadIdx.x] = memory.in[kWords - 31 + threadIdx.x];
}

__global__ void memory_of_a_block_that_ended(Memory memory) {
  SHARED_VARIABLE(uint32_t, word);
  if (threadIdx.x == 0) word = 1;
  cluster_arrive();
  cluster_wait();
  const uint32_t* const other = cluster_map(&word, 1 - cluster_rank());
  if (cluster_rank() == 1) return;
  for (int i = 0; i < 100; ++i) __syncthreads();
  memory.out[threadIdx.x] = *other;
}

__global__ void shift_by_the_width(Memory memory) {
  memory.out[threadIdx.x] = 1u << memory.in[threadIdx.x + 1];
}

// --- what the race detector notices

__global__ void no_barrier(Memory memory) {
  SHARED_ARRAY(uint32_t, words, 64);
  words[threadIdx.x] = threadIdx.x;
  memory.out[threadIdx.x] = words[63 - threadIdx.x];
}

__global__ void no_barrier_before_reuse(Memory memory) {
  SHARED_ARRAY(uint32_t, words, 64);
  words[threadIdx.x] = threadIdx.x;
  __syncthreads();
  memory.out[threadIdx.x] = words[63 - threadIdx.x];
  words[threadIdx.x] = 0;
}

__global__ void two_writers(Memory) {
  SHARED_VARIABLE(uint32_t, word);
  if (threadIdx.x % 32 == 0) word = threadIdx.x;
}

__global__ void no_atomic(Memory memory) {
  SHARED_ARRAY(uint32_t, counters, 8);
  if (threadIdx.x < 8) counters[threadIdx.x] = 0;
  __syncthreads();
  counters[threadIdx.x % 8] += 1;
  __syncthreads();
  if (threadIdx.x < 8) memory.out[threadIdx.x] = counters[threadIdx.x];
}

__global__ void atomic_and_plain(Memory) {
  SHARED_VARIABLE(unsigned int, counter);
  if (threadIdx.x == 0) counter = 0;
  atomicAdd(&counter, 1u);
}

__global__ void no_warp_barrier(Memory memory) {
  SHARED_ARRAY(uint32_t, words, 32);
  words[threadIdx.x] = threadIdx.x;
  __shfl_sync(kAllLanes, 0, 0);  // not ordering memory
  memory.out[threadIdx.x] = words[31 - threadIdx.x];
}

__global__ void warp_barrier_for_a_block(Memory memory) {
  SHARED_ARRAY(uint32_t, words, 64);
  words[threadIdx.x] = threadIdx.x;
  __syncwarp();
  memory.out[threadIdx.x] = words[63 - threadIdx.x];
}

__global__ void block_barrier_for_a_cluster(Memory memory) {
  SHARED_VARIABLE(uint32_t, word);
  cluster_arrive();
  cluster_wait();
  if (threadIdx.x == 0) word = blockIdx.x;
  __syncthreads();
  if (threadIdx.x == 0) memory.out[blockIdx.x] = *cluster_map(&word, 1 - cluster_rank());
}

__global__ void reads_what_nobody_wrote(Memory memory) {
  SHARED_VARIABLE(uint32_t, word);
  if (threadIdx.x == 0) memory.out[0] = word + 1;
}

__global__ void writes_to_a_block_that_may_not_run(Memory) {
  SHARED_VARIABLE(uint32_t, word);
  if (threadIdx.x == 0) *cluster_map(&word, 1 - cluster_rank()) = 1;
  cluster_arrive();
  cluster_wait();
}

__global__ void ends_while_others_read(Memory memory) {
  SHARED_VARIABLE(uint32_t, word);
  if (threadIdx.x == 0) word = 1;
  cluster_arrive();
  cluster_wait();
  if (threadIdx.x == 0) memory.out[blockIdx.x] = *cluster_map(&word, 1 - cluster_rank());
}

__global__ void two_blocks_write(Memory memory) {
  if (threadIdx.x == 0) memory.out[0] = blockIdx.x;
}

__global__ void writes_an_input(Memory memory) {
  if (threadIdx.x == 0) const_cast<uint32_t*>(memory.in)[0] = 0;
}

__global__ void does_not_wait(Memory memory) {
  memory.out[threadIdx.x] = memory.in[threadIdx.x];
}

// ---

struct Probe {
  void (*kernel)(Memory);
  uint32_t blocks, threads, cluster;
  size_t dynamic_shared_bytes = 0;
  bool waits = true;
};

const std::map<std::string, Probe> kProbes = {
    {"barrier", {barrier, 2, 128, 1}},
    {"votes", {votes, 1, 64, 1}},
    {"shuffles", {shuffles, 1, 32, 1}},
    {"lanes", {lanes, 1, 32, 1}},
    {"warp memory", {warp_memory, 1, 32, 1}},
    {"atomics", {atomics, 1, 96, 1}},
    {"cluster exchange", {cluster_exchange, 8, 32, 4}},
    {"last to arrive", {last_to_arrive<true, true, true>, 3, 64, 1}},
    {"order of threads", {order_of_threads, 1, 64, 1}},
    {"order of blocks", {order_of_blocks, 6, 32, 1}},
    {"garbage", {garbage, 1, 128, 1}},
    {"dynamic memory", {dynamic_memory, 1, 64, 1, 256}},
    {"some end early", {some_end_early, 1, 64, 1}},

    {"divergent barrier", {divergent_barrier, 1, 64, 1}},
    {"barrier in a branch", {barrier_in_a_branch, 1, 32, 1}},
    {"vote in a branch", {vote_in_a_branch, 1, 32, 1}},
    {"lane not in mask", {lane_not_in_mask, 1, 32, 1}},
    {"lane that ended", {lane_that_ended, 1, 32, 1}},
    {"arrives twice", {arrives_twice, 2, 32, 2}},
    {"waits without arriving", {waits_without_arriving, 2, 32, 2}},
    {"divergent cluster barrier", {divergent_cluster_barrier, 2, 32, 2}},
    {"one block does not arrive", {one_block_does_not_arrive, 2, 32, 2}},
    {"maps a block that ended", {maps_a_block_that_ended, 2, 32, 2}},
    {"maps no block", {maps_no_block, 2, 32, 2}},
    {"maps other memory", {maps_other_memory, 2, 32, 2}},
    {"misaligned vector", {misaligned_vector, 1, 32, 1}},
    {"constant load of an output", {constant_load_of_an_output, 1, 32, 1}},
    {"too much static memory", {too_much_static_memory, 1, 32, 1}},
    {"too much memory", {dynamic_memory, 1, 64, 1, 228 << 10}},
    {"half a warp", {barrier, 1, 48, 1}},
    {"half a cluster", {cluster_exchange, 3, 32, 2}},

    {"beyond shared memory", {beyond_shared_memory, 1, 32, 1}},
    {"beyond dynamic memory", {dynamic_memory, 1, 64, 1, 252}},
    {"beyond global memory", {beyond_global_memory, 1, 32, 1}},
    {"memory of a block that ended", {memory_of_a_block_that_ended, 2, 32, 2}},
    {"shift by the width", {shift_by_the_width, 1, 32, 1}},

    {"no barrier", {no_barrier, 1, 64, 1}},
    {"no barrier before reuse", {no_barrier_before_reuse, 1, 64, 1}},
    {"two writers", {two_writers, 1, 64, 1}},
    {"no atomic", {no_atomic, 1, 64, 1}},
    {"atomic and plain", {atomic_and_plain, 1, 64, 1}},
    {"no warp barrier", {no_warp_barrier, 1, 32, 1}},
    {"warp barrier for a block", {warp_barrier_for_a_block, 1, 64, 1}},
    {"block barrier for a cluster", {block_barrier_for_a_cluster, 2, 32, 2}},
    {"reads what nobody wrote", {reads_what_nobody_wrote, 1, 32, 1}},
    {"writes to a block that may not run", {writes_to_a_block_that_may_not_run, 2, 32, 2}},
    {"ends while others read", {ends_while_others_read, 2, 32, 2}},
    {"two blocks write", {two_blocks_write, 2, 32, 1}},
    {"writes an input", {writes_an_input, 1, 32, 1}},
    {"does not wait", {does_not_wait, 1, 32, 1, 0, false}},
    {"arrives before a fence", {last_to_arrive<false, true, true>, 3, 64, 1}},
    {"arrives before a barrier", {last_to_arrive<true, false, true>, 3, 64, 1}},
    {"reads before a fence", {last_to_arrive<true, true, false>, 3, 64, 1}},
};

}  // namespace

std::vector<uint32_t> run_probe(const std::string& name, simt::Schedule schedule) {
  const Probe& probe = kProbes.at(name);
  std::vector<uint32_t> out(kWords, 0xFFFFFFFFu), arrivals(1, 0), in(kWords);
  for (uint32_t i = 0; i < kWords; ++i) in[i] = i;
  const Memory memory{out.data(), arrivals.data(), in.data()};
  const simt::Launch launch{probe.blocks,
                            probe.threads,
                            probe.cluster,
                            probe.dynamic_shared_bytes,
                            probe.blocks / probe.cluster,
                            schedule,
                            {{out.data(), kWords * 4, "out", simt::Buffer::kOutput},
                             {arrivals.data(), 4, "arrivals", simt::Buffer::kZeroed},
                             {in.data(), kWords * 4, "in", simt::Buffer::kInput}}};
  simt::launch(launch, [&] {
    if (probe.waits) wait_for_earlier_kernels();
    probe.kernel(memory);
  });
  return out;
}
