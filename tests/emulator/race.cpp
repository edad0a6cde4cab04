// Finds data races, uninitialised reads and accesses out of bounds in shared memory, and data races in the global
// memory that a launch writes.
//
// The kernels are compiled with -fsanitize=thread, but linked with this instead of its runtime: what the compiler puts
// before each access to memory is called here. (The Linux kernel's KCSAN has the idea.) Two accesses race if they touch
// a byte, one of them writes, not both are atomic, and nothing orders them: no barrier, no cluster barrier, no
// __syncwarp, and between blocks no pair of fences around atomics on one address. Whichever schedule ran, the missing
// order is found; a schedule only decides what is executed.
#include "race.h"

#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <unordered_map>

namespace simt::race {
namespace {

constexpr size_t kRedZone = 64;               // between shared arrays
constexpr size_t kBytesPerBlock = 256 << 10;  // all the shared memory that a block can have, with red zones
constexpr size_t kCellBytes = 4;

// An access of one thread to some bytes of a cell, and how far its thread and block had come.
struct Access {
  uint32_t thread;  // in the grid, from 1 on; 0 for none
  uint32_t block_epoch;
  uint32_t arrivals;
  uint32_t warp_epoch;
  uint32_t code;  // the place in the program: bytes from where the module is loaded
  uint8_t bytes;  // a bit for each
};

// What is known of four bytes. All zero: not in use.
struct Cell {
  Access write;
  Access atomic;
  Access reads[3];
  uint8_t exists, initialised;  // a bit for each byte
};

// What a thread knows of another block: that it did everything up to a barrier, by the number of that barrier.
using Knowledge = std::vector<uint32_t>;

struct GlobalBuffer {
  const char* begin;
  size_t bytes;
  const char* name;
  bool written;
  std::vector<Cell> cells;
};

struct BlockOrder {
  uint32_t published;  // what it did before this barrier is behind fences
  Knowledge heard;     // from atomics; certain once there is a fence
  Knowledge known;
};

struct ThreadOrder {
  bool unpublished;    // it wrote to global memory and passed no fence since
  bool waited;         // for earlier kernels
  uint32_t fenced_to;  // what its block did before this barrier is behind the thread's last fence
  Knowledge heard, known;
};

struct Detector {
  char* memory = nullptr;  // of all blocks in flight
  Cell* cells = nullptr;
  size_t blocks = 0;               // that there is room for
  std::vector<size_t> offsets;     // of the launch's declarations
  std::vector<size_t> used_bytes;  // in each block's share of `cells`
  std::vector<GlobalBuffer> buffers;
  std::vector<BlockOrder> block_order;
  std::vector<ThreadOrder> thread_order;
  std::unordered_map<const void*, Knowledge> told;  // by atomics, by their address
  const char* module = nullptr;                     // where the program is loaded
};

Detector detector;

void merge(Knowledge& into, const Knowledge& other) {
  if (into.size() < other.size()) into.resize(other.size(), 0);
  for (size_t i = 0; i < other.size(); ++i) into[i] = std::max(into[i], other[i]);
}

uint32_t number_in_grid(const Fiber& fiber) {
  return fiber.block->number * machine.launch->threads + fiber.thread_index.x;
}

bool happened_before(const Access& access, const Fiber& fiber) {
  const uint32_t thread = access.thread - 1;
  if (thread == number_in_grid(fiber)) return true;
  const uint32_t block = thread / machine.launch->threads;
  if (block / machine.launch->cluster == fiber.block->cluster->number) {
    if (access.arrivals < fiber.waits) return true;
    if (block != fiber.block->number) return false;
    if (access.block_epoch < fiber.block->epoch) return true;
    return thread / kLanes == number_in_grid(fiber) / kLanes &&
           access.warp_epoch < fiber.known_warp_epoch[thread % kLanes];
  }
  const auto knows = [&](const Knowledge& knowledge) {
    return block < knowledge.size() && access.block_epoch < knowledge[block];
  };
  return knows(detector.block_order[fiber.block->slot].known) || knows(detector.thread_order[fiber.number].known);
}

std::string place_in_code(uint32_t code) {
  char text[32];
  snprintf(text, sizeof(text), "<code 0x%x>", code);  // tests/emulated.py puts file and line here
  return text;
}

std::string name_of(const Access& access) {
  const uint32_t thread = access.thread - 1;
  return "block " + std::to_string(thread / machine.launch->threads) + " thread " +
         std::to_string(thread % machine.launch->threads) + " at " + place_in_code(access.code);
}

[[noreturn]] void report(const char* what, const std::string& where, uint32_t code, const Access* other) {
  stop(std::string(what) + ": " + where + ", by " + simt::name_of(current()) + " at " + place_in_code(code) +
       (other ? ", and by " + name_of(*other) : ""));
}

std::string name_in_shared(size_t slot, size_t offset) {
  const std::string of_block = " of block " + std::to_string(machine.blocks[slot].number);
  for (size_t place = 0; place < detector.offsets.size(); ++place) {
    const size_t begin = detector.offsets[place];
    if (offset >= begin && offset < begin + machine.declared[place]->bytes + kRedZone)
      return "byte " + std::to_string(offset - begin) + " of " + machine.declared[place]->name + of_block;
  }
  return "shared memory outside any array" + of_block;
}

void remember_read(Cell& cell, const Access& now, const Fiber& fiber) {
  Access* free = nullptr;
  for (Access& read : cell.reads)
    // What happened before this read need not be remembered: whoever races with it races with this read, too.
    if (read.thread == 0 || (happened_before(read, fiber) && (read.bytes & ~now.bytes) == 0)) {
      if (free) read.thread = 0;
      free = &read;
    }
  if (!free) {  // one of the same warp is the first to be forgotten: few defects concern one warp alone
    for (Access& read : cell.reads)
      if ((read.thread - 1) / kLanes == (now.thread - 1) / kLanes) free = &read;
    if (!free) free = &cell.reads[0];
  }
  *free = now;
}

struct Kind {
  bool write;
  bool atomic;
};

// One cell's part of an access; `name` says where, if it has to be said.
template <class Name>
void check_cell(Cell& cell, uint8_t bytes, Kind kind, uint32_t code, const Name& name) {
  const Fiber& fiber = current();
  if ((cell.exists & bytes) != bytes) report("out of bounds", name(), code, nullptr);
  if ((!kind.write || kind.atomic) && (cell.initialised & bytes) != bytes)
    report("read before anything was written", name(), code, nullptr);
  const auto races = [&](const Access& other) {
    return other.thread != 0 && (other.bytes & bytes) && !happened_before(other, fiber);
  };
  const char* const with_write = kind.write ? "race of two writes" : "race of a read with a write";
  if (races(cell.write)) report(with_write, name(), code, &cell.write);
  if (!kind.atomic && races(cell.atomic)) report(with_write, name(), code, &cell.atomic);
  const Access now{number_in_grid(fiber) + 1, fiber.block->epoch, fiber.arrivals, fiber.warp_epoch, code, bytes};
  if (!kind.write) return remember_read(cell, now, fiber);
  for (const Access& read : cell.reads)
    if (races(read)) report("race of a write with a read", name(), code, &read);
  (kind.atomic ? cell.atomic : cell.write) = now;
  cell.initialised |= bytes;
}

template <class Name>
void check_cells(Cell* cells, size_t offset, size_t bytes, Kind kind, uint32_t code, const Name& name) {
  for (size_t at = offset; at < offset + bytes;) {
    const size_t first = at % kCellBytes, end = std::min(kCellBytes, first + (offset + bytes - at));
    const auto mask = static_cast<uint8_t>((1u << end) - (1u << first));
    check_cell(cells[at / kCellBytes], mask, kind, code, [&] { return name(at); });
    at += end - first;
  }
}

void check_shared(size_t offset, size_t bytes, Kind kind, uint32_t code) {
  const size_t slot = offset / kBytesPerBlock;
  const Block& block = machine.blocks[slot];
  const Fiber& fiber = current();
  const auto name = [&](size_t at) { return name_in_shared(slot, at % kBytesPerBlock); };
  if (&block != fiber.block) {
    if (block.cluster != fiber.block->cluster) report("shared memory of another cluster", name(offset), code, nullptr);
    if (fiber.waits == 0) report("access to a block that may not have started", name(offset), code, nullptr);
    if (block.live == 0) report("access to a block that has ended", name(offset), code, nullptr);
  }
  check_cells(detector.cells, offset, bytes, kind, code, name);
}

void check_global(GlobalBuffer& buffer, size_t offset, size_t bytes, Kind kind, uint32_t code) {
  const auto name = [&](size_t at) { return "byte " + std::to_string(at) + " of " + buffer.name; };
  ThreadOrder& order = detector.thread_order[current().number];
  if (!order.waited) report("access before wait_for_earlier_kernels", name(offset), code, nullptr);
  if (!buffer.written) {
    if (kind.write) report("write to an input", name(offset), code, nullptr);
    return;
  }
  if (kind.write && !kind.atomic) order.unpublished = true;
  check_cells(buffer.cells.data(), offset, bytes, kind, code, name);
}

void check(const void* address, size_t bytes, Kind kind, const void* caller) {
  if (!running || machine.stacks.contains(address)) return;
  const auto code = static_cast<uint32_t>(static_cast<const char*>(caller) - detector.module - 1);
  const size_t offset = static_cast<size_t>(static_cast<const char*>(address) - detector.memory);
  if (offset < detector.blocks * kBytesPerBlock) return check_shared(offset, bytes, kind, code);
  for (GlobalBuffer& buffer : detector.buffers) {
    const size_t inside = static_cast<size_t>(static_cast<const char*>(address) - buffer.begin);
    if (inside < buffer.bytes) return check_global(buffer, inside, std::min(bytes, buffer.bytes - inside), kind, code);
  }
}

void* map_memory(size_t bytes) {
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("no memory for the race detector");
  return memory;
}

void reserve(size_t blocks) {
  if (blocks <= detector.blocks) return;
  if (detector.blocks > 0) {
    munmap(detector.memory, detector.blocks * kBytesPerBlock);
    munmap(detector.cells, detector.blocks * kBytesPerBlock / kCellBytes * sizeof(Cell));
  }
  detector.memory = static_cast<char*>(map_memory(blocks * kBytesPerBlock));
  detector.cells = static_cast<Cell*>(map_memory(blocks * kBytesPerBlock / kCellBytes * sizeof(Cell)));
  detector.blocks = blocks;
  detector.used_bytes.assign(blocks, 0);
}

Cell* cells_of(size_t slot) {
  return detector.cells + slot * kBytesPerBlock / kCellBytes;
}

void forget_shared_memory() {
  for (size_t slot = 0; slot < detector.blocks; ++slot) {
    std::fill_n(cells_of(slot), detector.used_bytes[slot] / kCellBytes, Cell{});
    detector.used_bytes[slot] = 0;
  }
}

}  // namespace

void begin_launch() {
  Dl_info module;
  dladdr(reinterpret_cast<const void*>(&begin_launch), &module);
  detector.module = static_cast<const char*>(module.dli_fbase);
  detector.offsets.clear();
  detector.buffers.clear();
  detector.told.clear();
  for (const Buffer& buffer : machine.launch->buffers) {
    const bool written = buffer.access != Buffer::kInput;
    GlobalBuffer followed{static_cast<const char*>(buffer.data), buffer.bytes, buffer.name, written, {}};
    if (written) {
      Cell cell{};
      cell.exists = 15;
      cell.initialised = buffer.access == Buffer::kZeroed ? 15 : 0;
      followed.cells.assign((buffer.bytes + kCellBytes - 1) / kCellBytes, cell);
    }
    detector.buffers.push_back(std::move(followed));
  }
}

void begin_blocks() {
  reserve(machine.blocks.size());
  forget_shared_memory();
  detector.block_order.assign(machine.blocks.size(), BlockOrder{});
  detector.thread_order.assign(machine.fibers.size(), ThreadOrder{});
}

char* memory_of(const Block& block, size_t place) {
  while (detector.offsets.size() <= place) {
    const size_t next = detector.offsets.size();
    size_t offset = kRedZone;
    if (next > 0) offset += detector.offsets[next - 1] + machine.declared[next - 1]->bytes;
    const size_t alignment = std::max<size_t>(machine.declared[next]->alignment, 16);
    detector.offsets.push_back((offset + alignment - 1) / alignment * alignment);
  }
  const size_t offset = detector.offsets[place], bytes = machine.declared[place]->bytes;
  Cell* const cells = cells_of(block.slot);
  for (size_t at = offset; at < offset + bytes; ++at)
    cells[at / kCellBytes].exists |= static_cast<uint8_t>(1u << at % kCellBytes);
  size_t& used = detector.used_bytes[block.slot];
  used = std::max(used, (offset + bytes + kRedZone) / kCellBytes * kCellBytes);
  return detector.memory + block.slot * kBytesPerBlock + offset;
}

// A block's shared memory is gone when its last thread ends: what other blocks did with it must have been before.
void end_block(const Block& block) {
  if (machine.launch->cluster == 1) return;
  const Cell* const cells = cells_of(block.slot);
  const auto of_other_block_and_not_before = [&](const Access& access) {
    return access.thread != 0 && (access.thread - 1) / machine.launch->threads != block.number &&
           !happened_before(access, current());
  };
  for (size_t i = 0; i < detector.used_bytes[block.slot] / kCellBytes; ++i) {
    const Cell& cell = cells[i];
    const Access* late = nullptr;
    for (const Access* write : {&cell.write, &cell.atomic})
      if (of_other_block_and_not_before(*write)) late = write;
    for (const Access& read : cell.reads)
      if (of_other_block_and_not_before(read)) late = &read;
    if (late)
      stop("block " + std::to_string(block.number) + " may end before an access to " +
           name_in_shared(block.slot, i * kCellBytes) + ", by " + name_of(*late));
  }
}

void after_barrier(const Block& block) {
  BlockOrder& order = detector.block_order[block.slot];
  bool published = true;
  ThreadOrder* const threads = &detector.thread_order[block.slot * machine.launch->threads];
  for (uint32_t i = 0; i < machine.launch->threads; ++i) {
    published = published && !threads[i].unpublished;
    merge(order.heard, threads[i].heard);
    merge(order.known, threads[i].known);
  }
  if (published) order.published = block.epoch;
}

void fence() {
  Fiber& fiber = current();
  ThreadOrder& thread = detector.thread_order[fiber.number];
  const BlockOrder& block = detector.block_order[fiber.block->slot];
  thread.unpublished = false;
  thread.fenced_to = fiber.block->epoch;
  merge(thread.known, thread.heard);
  merge(thread.known, block.heard);
}

void wait_for_earlier_kernels() {
  detector.thread_order[current().number].waited = true;
}

void atomic(const void* address, size_t bytes, const void* caller) {
  Fiber& fiber = current();
  ThreadOrder& thread = detector.thread_order[fiber.number];
  const BlockOrder& block = detector.block_order[fiber.block->slot];
  check(address, bytes, {true, true}, caller);
  if (static_cast<size_t>(static_cast<const char*>(address) - detector.memory) < detector.blocks * kBytesPerBlock)
    return;
  Knowledge& told = detector.told[address];
  merge(thread.heard, told);
  merge(told, block.known);
  merge(told, thread.known);
  if (told.size() <= fiber.block->number) told.resize(fiber.block->number + 1, 0);
  uint32_t& of_this_block = told[fiber.block->number];
  of_this_block = std::max({of_this_block, block.published, thread.fenced_to});
}

}  // namespace simt::race

// What gcc and clang call in code compiled with -fsanitize=thread.
#define SIMT_HOOK(name, bytes, write)                                               \
  extern "C" void __tsan_##name(void* address) {                                    \
    simt::race::check(address, bytes, {write, false}, __builtin_return_address(0)); \
  }
#define SIMT_HOOKS(bytes)                        \
  SIMT_HOOK(read##bytes, bytes, false)           \
  SIMT_HOOK(write##bytes, bytes, true)           \
  SIMT_HOOK(unaligned_read##bytes, bytes, false) \
  SIMT_HOOK(unaligned_write##bytes, bytes, true)
SIMT_HOOKS(1)
SIMT_HOOKS(2)
SIMT_HOOKS(4)
SIMT_HOOKS(8)
SIMT_HOOKS(16)

extern "C" {
void __tsan_read_range(void* address, size_t bytes) {
  simt::race::check(address, bytes, {false, false}, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  simt::race::check(address, bytes, {true, false}, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
