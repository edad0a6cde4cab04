// Barriers of a block and of a cluster.
#include "race.h"
#include "simt_internal.h"

namespace simt {

void complete_barrier(Block& block) {
  const int result = block.vote == Vote::kCount ? static_cast<int>(block.votes) : block.votes > 0;
  block.arrived = 0;
  ++block.epoch;
  if constexpr (race::kEnabled) race::after_barrier(block);
  Fiber* const fibers = &machine.fibers[block.slot * machine.launch->threads];
  for (uint32_t i = 0; i < machine.launch->threads; ++i) {
    if (fibers[i].state != State::kAtBarrier) continue;
    fibers[i].result = static_cast<uint64_t>(result);
    make_ready(fibers[i]);
  }
}

void complete_cluster_barrier(Cluster& cluster) {
  if (cluster.live == 0 || cluster.arrived < cluster.live) return;
  cluster.arrived = 0;
  ++cluster.phase;
  for (Fiber& fiber : machine.fibers)
    if (fiber.state == State::kAtClusterBarrier && fiber.block->cluster == &cluster) make_ready(fiber);
}

int block_barrier(Vote vote, bool predicate, Site site) {
  Fiber& fiber = current();
  Block& block = *fiber.block;
  if (block.arrived == 0) {
    block.site = site;
    block.vote = vote;
    block.votes = 0;
  } else if (block.site != site) {
    stop("divergent barrier: " + name_of(fiber) + " is at " + name_of(site) + ", others of its block at " +
         name_of(block.site));
  }
  ++block.arrived;
  block.votes += predicate;
  fiber.site = site;
  fiber.state = State::kAtBarrier;
  if (block.arrived == block.live) complete_barrier(block);
  hand_over();
  return static_cast<int>(fiber.result);
}

void cluster_arrive(Site site) {
  Fiber& fiber = current();
  if (fiber.arrived) fail(site, "cluster_arrive twice without cluster_wait");
  fiber.arrived = true;
  ++fiber.arrivals;
  // barrier.cluster is used in its aligned form, which a warp's lanes execute together.
  Warp& warp = *fiber.warp;
  if (warp.arrivals == fiber.arrivals && warp.arrival != site)
    stop("divergent cluster barrier: " + name_of(fiber) + " is at " + name_of(site) + ", others of its warp at " +
         name_of(warp.arrival));
  warp.arrivals = fiber.arrivals;
  warp.arrival = site;
  ++fiber.block->cluster->arrived;
  complete_cluster_barrier(*fiber.block->cluster);
}

void cluster_wait(Site site) {
  Fiber& fiber = current();
  if (!fiber.arrived) fail(site, "cluster_wait without cluster_arrive");
  fiber.arrived = false;
  fiber.site = site;
  if (fiber.block->cluster->phase < fiber.arrivals) {
    fiber.state = State::kAtClusterBarrier;
    hand_over();
  }
  fiber.waits = fiber.arrivals;
}

}  // namespace simt
