#include "fiber.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>

#if defined(SIMT_ADDRESS_SANITIZER)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(SIMT_UCONTEXT)
// Saves the registers that a called function must keep, changes the stack, restores those of the other context. The
// ucontext functions do the same with two system calls for the signal mask, which makes them 50 times as slow.
extern "C" void simt_switch_stack(void** save, void* load);
asm(R"(
.text
.globl simt_switch_stack
.hidden simt_switch_stack
.type simt_switch_stack,@function
simt_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch_stack,.-simt_switch_stack
)");
#endif

namespace simt {
namespace {

#if defined(SIMT_ADDRESS_SANITIZER)
Context* left = nullptr;  // the context that was switched from last

// On the new stack, after each switch: AddressSanitizer learns where it is, and tells where it came from.
void arrive(Context* continued) {
  const void* stack;
  size_t bytes;
  __sanitizer_finish_switch_fiber(continued ? continued->fake_stack : nullptr, &stack, &bytes);
  if (!left->stack) {  // the program's own stack, which nobody prepared
    left->stack = static_cast<char*>(const_cast<void*>(stack));
    left->stack_bytes = bytes;
  }
}
#endif

void (*entry_of_all)() = nullptr;

[[noreturn]] void enter() {
#if defined(SIMT_ADDRESS_SANITIZER)
  arrive(nullptr);
#endif
  entry_of_all();
  abort();
}

}  // namespace

void prepare(Context& context, char* stack, size_t stack_bytes, void (*entry)()) {
  entry_of_all = entry;
  context.stack = stack;
  context.stack_bytes = stack_bytes;
  context.fake_stack = nullptr;
#if defined(SIMT_UCONTEXT)
  getcontext(&context.registers);
  context.registers.uc_stack.ss_sp = stack;
  context.registers.uc_stack.ss_size = stack_bytes;
  context.registers.uc_link = nullptr;
  makecontext(&context.registers, enter, 0);
#else
  void** top = reinterpret_cast<void**>(stack + stack_bytes);
  *--top = nullptr;  // the return address of enter(), which after `ret` leaves the stack aligned as after a call
  *--top = reinterpret_cast<void*>(&enter);
  top -= 6;
  std::fill(top, top + 6, nullptr);
  context.stack_pointer = top;
#endif
}

void switch_context(Context& from, Context& to, [[maybe_unused]] bool from_ends) {
#if defined(SIMT_ADDRESS_SANITIZER)
  left = &from;
  __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#endif
#if defined(SIMT_UCONTEXT)
  swapcontext(&from.registers, &to.registers);
#else
  simt_switch_stack(&from.stack_pointer, to.stack_pointer);
#endif
#if defined(SIMT_ADDRESS_SANITIZER)
  arrive(&from);
#endif
}

Stacks::~Stacks() {
  if (mapping_) munmap(mapping_, count_ * kSpan);
}

void Stacks::reserve(size_t count) {
  if (count <= count_) return;
  if (mapping_) munmap(mapping_, count_ * kSpan);
  count_ = 0;
  void* const mapping =
      mmap(nullptr, count * kSpan, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw std::runtime_error("no memory for the stacks of the emulated threads");
  mapping_ = static_cast<char*>(mapping);
  count_ = count;
  for (size_t number = 0; number < count; ++number) mprotect(mapping_ + number * kSpan, kPage, PROT_NONE);
}

char* Stacks::bottom(size_t number) const {
  return mapping_ + number * kSpan + kPage;
}

size_t Stacks::bytes(size_t number) const {
  // Tops at equal distances would share the same few sets of the caches.
  constexpr size_t kStep = 192, kSteps = 61;
  return kSpan - kPage - number % kSteps * kStep;
}

void Stacks::clean([[maybe_unused]] size_t number, [[maybe_unused]] bool abandoned) const {
#if defined(SIMT_ADDRESS_SANITIZER)
  constexpr size_t kOfLastCalls = 8192;
  const size_t used = abandoned ? bytes(number) : std::min(bytes(number), kOfLastCalls);
  __asan_unpoison_memory_region(bottom(number) + bytes(number) - used, used);
#endif
}

}  // namespace simt
