// Warp operations: all lanes of a mask meet, and each gets its result.
#include <algorithm>
#include <cstring>

#include "race.h"
#include "simt_internal.h"

namespace simt {
namespace {

const char* name_of(WarpOperation operation) {
  switch (operation) {
    case WarpOperation::kSync:
      return "__syncwarp";
    case WarpOperation::kBallot:
      return "a vote";
    case WarpOperation::kAdd:
    case WarpOperation::kMinimum:
    case WarpOperation::kMaximum:
      return "__reduce_*_sync";
    default:
      return "a shuffle";
  }
}

void require_same_operation(const Fiber& one, const Fiber& other) {
  const bool same = one.operation == other.operation && one.mask == other.mask &&
                    (one.operation == WarpOperation::kSync || !(one.site != other.site));
  if (same) return;
  stop(std::string("mismatched warp operation: ") + name_of(one) + " is in " + name_of(one.operation) + " at " +
       name_of(one.site) + ", " + name_of(other) + " in " + name_of(other.operation) + " at " + name_of(other.site));
}

// The lane that a shuffle reads from.
uint32_t source_lane(const Fiber& fiber) {
  const uint32_t first = fiber.lane & ~(fiber.width - 1), end = first + fiber.width;
  switch (fiber.operation) {
    case WarpOperation::kShuffle:
      return first + (fiber.argument & (fiber.width - 1));
    case WarpOperation::kShuffleUp:
      return fiber.lane >= first + fiber.argument ? fiber.lane - fiber.argument : fiber.lane;
    case WarpOperation::kShuffleDown:
      return fiber.lane + fiber.argument < end ? fiber.lane + fiber.argument : fiber.lane;
    default:
      return (fiber.lane ^ fiber.argument) < end ? fiber.lane ^ fiber.argument : fiber.lane;
  }
}

uint64_t reduce(const Fiber* lanes, uint32_t mask, WarpOperation operation) {
  uint64_t result = 0;
  bool first = true;
  for (uint32_t lane = 0; lane < kLanes; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const uint64_t value = lanes[lane].value;
    if (operation == WarpOperation::kBallot)
      result |= static_cast<uint64_t>(value != 0) << lane;
    else if (operation == WarpOperation::kAdd)
      result = static_cast<uint32_t>(result + value);
    else if (first)
      result = value;
    else
      result = operation == WarpOperation::kMinimum ? std::min(result, value) : std::max(result, value);
    first = false;
  }
  return result;
}

// Each of these lanes now knows of what the others did before.
void join_warp_epochs(Fiber* lanes, uint32_t mask) {
  uint32_t known[kLanes] = {};
  for (uint32_t lane = 0; lane < kLanes; ++lane)
    if (mask >> lane & 1)
      for (uint32_t other = 0; other < kLanes; ++other)
        known[other] = std::max(known[other], lanes[lane].known_warp_epoch[other]);
  for (uint32_t lane = 0; lane < kLanes; ++lane)
    if (mask >> lane & 1) known[lane] = ++lanes[lane].warp_epoch;
  for (uint32_t lane = 0; lane < kLanes; ++lane)
    if (mask >> lane & 1) memcpy(lanes[lane].known_warp_epoch, known, sizeof(known));
}

void complete_warp_operation(Fiber& last) {
  Fiber* const lanes = &last - last.lane;
  const uint32_t mask = last.mask;
  const WarpOperation operation = last.operation;
  for (uint32_t lane = 0; lane < kLanes; ++lane)
    if (mask >> lane & 1) require_same_operation(last, lanes[lane]);
  const bool shuffles = operation >= WarpOperation::kShuffle && operation <= WarpOperation::kShuffleXor;
  if (operation == WarpOperation::kSync) {
    if constexpr (race::kEnabled) join_warp_epochs(lanes, mask);
  } else if (shuffles) {
    // A lane that takes no part has no value on a GPU either.
    constexpr uint64_t kNoValue = 0xDEADBEEFDEADBEEFu;
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
      if (!(mask >> lane & 1)) continue;
      const uint32_t source = source_lane(lanes[lane]);
      lanes[lane].result = mask >> source & 1 ? lanes[source].value : kNoValue;
    }
  } else {
    const uint64_t result = reduce(lanes, mask, operation);
    for (uint32_t lane = 0; lane < kLanes; ++lane)
      if (mask >> lane & 1) lanes[lane].result = result;
  }
  last.warp->waiting &= ~mask;
  for (uint32_t lane = 0; lane < kLanes; ++lane)
    if (mask >> lane & 1) make_ready(lanes[lane]);
}

}  // namespace

uint64_t warp_operation(WarpOperation operation, uint32_t mask, uint64_t value, uint32_t argument, uint32_t width,
                        Site site) {
  Fiber& fiber = current();
  if (!(mask >> fiber.lane & 1)) fail(site, "the mask of a warp operation lacks the lane that calls it");
  fiber.operation = operation;
  fiber.mask = mask;
  fiber.value = value;
  fiber.argument = argument;
  fiber.width = width;
  fiber.site = site;
  fiber.state = State::kInWarpOperation;
  fiber.warp->waiting |= 1u << fiber.lane;
  if ((fiber.warp->waiting & mask) == mask) complete_warp_operation(fiber);
  hand_over();
  return fiber.result;
}

}  // namespace simt
