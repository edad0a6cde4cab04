// Shared memory, also that of the cluster's other blocks, and what else of a GPU's memory is special.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "race.h"
#include "simt_internal.h"

namespace simt {
namespace {

// What a kernel may declare on any GPU, and what one of its blocks may have in all on the largest.
constexpr size_t kMaxStaticSharedBytes = 48 << 10, kMaxSharedBytes = 227 << 10;

char* allocate(const SharedMemory& declaration) {
  // On its own and of its exact size, so that AddressSanitizer sees what lies beyond it.
  void* memory;
  // Room that nobody may use, where none is asked for: an address is needed all the same.
  const size_t bytes = std::max<size_t>(declaration.bytes, 1);
  if (posix_memalign(&memory, std::max<size_t>(declaration.alignment, 16), bytes) != 0)
    stop("no memory for " + std::string(declaration.name));
  return static_cast<char*>(memory);
}

// Never zero by luck.
void fill_with_garbage(char* memory, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 8) {
    const uint64_t garbage = random_choice.next();
    memcpy(memory + i, &garbage, std::min<size_t>(8, bytes - i));
  }
}

void declare(SharedMemory& declaration) {
  machine.declared.push_back(&declaration);
  declaration.number = static_cast<uint32_t>(machine.declared.size());
  if (declaration.dynamic)
    declaration.bytes = machine.launch->dynamic_shared_bytes;
  else
    machine.static_shared_bytes += declaration.bytes;
  if (machine.static_shared_bytes > kMaxStaticSharedBytes ||
      machine.static_shared_bytes + machine.launch->dynamic_shared_bytes > kMaxSharedBytes)
    stop("too much shared memory: with " + std::string(declaration.name) + " it is " +
         std::to_string(machine.static_shared_bytes) + " bytes static and " +
         std::to_string(machine.launch->dynamic_shared_bytes) + " dynamic; " + std::to_string(kMaxStaticSharedBytes) +
         " static and " + std::to_string(kMaxSharedBytes) + " in all are allowed");
}

char* memory_in(Block& block, SharedMemory& declaration) {
  std::vector<SharedMemory*>& declared = machine.declared;
  if (declaration.number == 0 || declaration.number > declared.size() ||
      declared[declaration.number - 1] != &declaration)
    declare(declaration);
  const size_t place = declaration.number - 1;
  if (block.memory.size() <= place) block.memory.resize(place + 1, nullptr);
  char*& memory = block.memory[place];
  if (!memory) {
    memory = race::kEnabled ? race::memory_of(block, place) : allocate(declaration);
    fill_with_garbage(memory, declaration.bytes);
  }
  return memory;
}

}  // namespace

void end_block(Block& block) {
  if constexpr (race::kEnabled) race::end_block(block);
  for (size_t place = 0; place < block.memory.size(); ++place) {
    if (!block.memory[place]) continue;
    // A block of the cluster that still reads this shall not find what it looks for.
    fill_with_garbage(block.memory[place], machine.declared[place]->bytes);
    if constexpr (!race::kEnabled) free(block.memory[place]);
    block.memory[place] = nullptr;
  }
}

void* shared(SharedMemory& declaration) {
  return memory_in(*current().block, declaration);
}

void* cluster_map(void* mine, uint32_t rank, Site site) {
  Block& block = *current().block;
  if (rank >= machine.launch->cluster) fail(site, "cluster_map: no block of rank " + std::to_string(rank));
  Block& other = machine.blocks[block.slot - current().cluster_rank + rank];
  if (other.live == 0) fail(site, "cluster_map: the block of rank " + std::to_string(rank) + " has ended");
  char* const address = static_cast<char*>(mine);
  for (size_t place = 0; place < block.memory.size(); ++place) {
    char* const begin = block.memory[place];
    if (begin && address >= begin && address < begin + machine.declared[place]->bytes)
      return memory_in(other, *machine.declared[place]) + (address - begin);
  }
  fail(site, "cluster_map: not an address in this block's shared memory");
}

uint64_t atomic(AtomicOperation operation, void* address, size_t bytes, uint64_t value) {
  const void* const caller = __builtin_return_address(0);
  // One atomic in four is a place where another thread may come first.
  if (machine.launch->schedule.order == Order::kRandom && random_choice.below(4) == 0) {
    make_ready(current());
    hand_over();
  }
  if constexpr (race::kEnabled) race::atomic(address, bytes, caller);
  uint64_t before = 0;
  memcpy(&before, address, bytes);
  uint64_t after = before + value;
  if (operation == AtomicOperation::kMinimum) after = std::min(before, value);
  if (operation == AtomicOperation::kMaximum) after = std::max(before, value);
  if (operation == AtomicOperation::kOr) after = before | value;
  memcpy(address, &after, bytes);  // the low bytes come first on every processor that this runs on
  return before;
}

void fence() {
  if constexpr (race::kEnabled) race::fence();
}

void wait_for_earlier_kernels() {
  if constexpr (race::kEnabled) race::wait_for_earlier_kernels();
}

void check_constant_load(const void* address, size_t bytes, Site site) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
    fail(site, "misaligned load of " + std::to_string(bytes) + " bytes");
  const char* const first = static_cast<const char*>(address);
  for (const Buffer& buffer : machine.launch->buffers) {
    const char* const begin = static_cast<const char*>(buffer.data);
    if (buffer.access != Buffer::kInput && first + bytes > begin && first < begin + buffer.bytes)
      fail(site, std::string("a load past the caches' coherence from ") + buffer.name + ", which the kernel writes");
  }
}

}  // namespace simt
