// What the runtime tells the race detector; nothing in the other builds.
#pragma once

#include "simt_internal.h"

namespace simt::race {

#if defined(SIMT_RACE)
constexpr bool kEnabled = true;
#else
constexpr bool kEnabled = false;
#endif

void begin_launch();
// The threads in flight are new ones.
void begin_blocks();
// Where `block` has declaration number `place` of the launch.
char* memory_of(const Block& block, size_t place);
void end_block(const Block& block);

// All threads of the block have met.
void after_barrier(const Block& block);
void atomic(const void* address, size_t bytes, const void* caller);
void fence();
void wait_for_earlier_kernels();

}  // namespace simt::race
