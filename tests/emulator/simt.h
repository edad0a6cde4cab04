// Runs the source of CUDA kernels on the CPU: one fiber for each CUDA thread, all of them on one thread of the
// operating system, so that a run is repeated exactly by its schedule. Threads hand over to each other at barriers, at
// warp operations and, in random schedules, at atomics.
//
// This is what emulated_device.h gives kernels their CUDA spellings on, and what tests launch kernels with. What a GPU
// leaves undefined is an error here wherever it can be seen: the message names the places and threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace simt {

// --- for tests

// Which of the threads that could run does: in turn; the one that waits for the shortest time, starting from the last;
// or any.
enum class Order { kForward, kReverse, kRandom };

struct Schedule {
  Order order;
  uint64_t seed;  // also of what uninitialised shared memory holds, in every order
};

// Global memory that the race-checking build follows.
struct Buffer {
  const void* data;
  size_t bytes;
  const char* name;
  enum Access { kInput, kOutput, kZeroed } access;  // kZeroed: written by the kernel, but also by the host before it
};

struct Launch {
  uint32_t blocks;   // of the grid
  uint32_t threads;  // of a block
  uint32_t cluster;  // blocks of a cluster; 1 for none
  size_t dynamic_shared_bytes;
  uint32_t in_flight;  // how many clusters run at the same time
  Schedule schedule;
  std::vector<Buffer> buffers;
};

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Runs the grid to its end. Throws Error, with a message that names the schedule, when a kernel does what it must not.
void launch(const Launch& launch, const std::function<void()>& kernel);

// --- for kernels

struct Coordinate {
  uint32_t x;
};

struct Thread {
  Coordinate thread_index, block_index, block_size, grid_size;
  uint32_t cluster_rank, cluster_size;
};

extern Thread* running;

// A place in the kernel's source. As the default value of a parameter it is the caller's.
struct Site {
  const char* file;
  int line;
};
#define SIMT_CALLER ::simt::Site site = {__builtin_FILE(), __builtin_LINE()}

[[noreturn]] void fail(Site site, const std::string& message);

// A declaration of shared memory. Each block has its own copy, filled with garbage.
struct SharedMemory {
  size_t bytes;  // of dynamic shared memory: what the launch says
  size_t alignment;
  const char* name;
  bool dynamic;
  uint32_t number;  // 0 until it is first used
};
void* shared(SharedMemory& declaration);

enum class Vote { kNone, kCount, kAny };
int block_barrier(Vote vote, bool predicate, Site site);

void cluster_arrive(Site site);
void cluster_wait(Site site);
void* cluster_map(void* mine, uint32_t rank, Site site);

enum class WarpOperation : uint8_t {
  kSync,
  kBallot,
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
  kAdd,
  kMinimum,
  kMaximum,
};
uint64_t warp_operation(WarpOperation operation, uint32_t mask, uint64_t value, uint32_t argument, uint32_t width,
                        Site site);

enum class AtomicOperation { kAdd, kMinimum, kMaximum, kOr };  // on unsigned numbers
uint64_t atomic(AtomicOperation operation, void* address, size_t bytes, uint64_t value);

void fence();
void wait_for_earlier_kernels();

// A load by the path for what no thread of the launch writes.
void check_constant_load(const void* address, size_t bytes, Site site);

}  // namespace simt
