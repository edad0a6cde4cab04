// What the files of the runtime and the race detector share: the threads in flight, and how they are scheduled.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "fiber.h"
#include "simt.h"

namespace simt {

constexpr uint32_t kLanes = 32;

struct Cluster {
  uint32_t number;  // in the grid
  uint32_t live;    // threads that have not ended
  uint32_t arrived;
  uint32_t phase;  // barriers completed
};

struct Block {
  Cluster* cluster;
  uint32_t number;  // in the grid
  uint32_t slot;    // among the blocks in flight
  uint32_t live;
  uint32_t arrived;
  uint32_t votes;
  Vote vote;
  Site site;                  // of the barrier that its threads wait at
  uint32_t epoch;             // barriers completed
  std::vector<char*> memory;  // by the place of the declaration in Machine::declared; null until used
};

struct Warp {
  uint32_t waiting;  // the lanes in a warp operation
  uint32_t arrivals;
  Site arrival;  // of the newest cluster barrier
};

enum class State : uint8_t { kReady, kInWarpOperation, kAtBarrier, kAtClusterBarrier, kEnded };

struct Fiber : Thread {
  Context context;
  Block* block;
  Warp* warp;
  uint32_t number;  // among the threads in flight
  uint32_t lane;
  State state;
  bool arrived;       // at a cluster barrier that it has not waited for yet
  uint32_t arrivals;  // at cluster barriers
  uint32_t waits;     // cluster barriers completed

  // the operation it waits in
  Site site;
  WarpOperation operation;
  uint32_t mask, argument, width;
  uint64_t value, result;

  // In the race-checking build: its __syncwarps, and those of each lane that it knows to have happened.
  uint32_t warp_epoch;
  uint32_t known_warp_epoch[kLanes];
};

struct Machine {
  const Launch* launch = nullptr;
  const std::function<void()>* kernel = nullptr;
  std::vector<SharedMemory*> declared;  // used in this launch, in the order of first use
  size_t static_shared_bytes = 0;

  std::vector<Cluster> clusters;
  std::vector<Block> blocks;
  std::vector<Warp> warps;
  std::vector<Fiber> fibers;
  uint32_t live = 0;

  Stacks stacks;
  Context host;
  std::string error;
};

extern Machine machine;

inline Fiber& current() {
  return *static_cast<Fiber*>(running);
}

std::string name_of(Site site);
std::string name_of(const Fiber& fiber);

inline bool operator!=(Site a, Site b) {
  return a.line != b.line || (a.file != b.file && strcmp(a.file, b.file) != 0);
}

// xorshift64 (Marsaglia 2003), from any seed.
class Random {
 public:
  explicit Random(uint64_t seed) : state_((seed + 1) * 0x9E3779B97F4A7C15u | 1) {}
  uint64_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }
  uint32_t below(uint32_t end) { return static_cast<uint32_t>(((next() >> 32) * end) >> 32); }

 private:
  uint64_t state_;
};

extern Random random_choice;  // of the schedule

// Ends the launch with this error.
[[noreturn]] void stop(const std::string& message);

void make_ready(Fiber& fiber);
// Lets a thread that can run do so, once the running one has said what it waits for.
void hand_over();

// Called when a thread has arrived, or ended.
void complete_barrier(Block& block);
void complete_cluster_barrier(Cluster& cluster);

// The last thread of the block has ended.
void end_block(Block& block);

}  // namespace simt
