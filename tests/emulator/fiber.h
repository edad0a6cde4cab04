// A stack that runs until it hands over to another one: what a CUDA thread is in the emulator.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIMT_ADDRESS_SANITIZER 1
#endif
#endif

#if !(defined(__x86_64__) && defined(__linux__)) && !defined(SIMT_UCONTEXT)
#define SIMT_UCONTEXT 1
#endif
#if defined(SIMT_UCONTEXT)
#include <ucontext.h>
#endif

namespace simt {

struct Context {
#if defined(SIMT_UCONTEXT)
  ucontext_t registers;
#else
  void* stack_pointer;  // callee-saved registers lie there
#endif
  char* stack;
  size_t stack_bytes;
  void* fake_stack;  // AddressSanitizer's, while the context does not run
};

// Makes `context` one that starts `entry`, which must not return, on the stack given.
void prepare(Context& context, char* stack, size_t stack_bytes, void (*entry)());

// Stops the running context, which becomes `from`, and continues `to`. A context that is only switched from, as the
// program's own is first, needs no preparation. One that ends is never switched to again.
void switch_context(Context& from, Context& to, bool from_ends = false);

// The stacks of many contexts in one mapping: each starts on a page that faults, so that one which overflows is
// noticed.
class Stacks {
 public:
  Stacks() = default;
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  ~Stacks();

  void reserve(size_t count);
  char* bottom(size_t number) const;  // of the usable part
  size_t bytes(size_t number) const;
  bool contains(const void* address) const {
    return static_cast<size_t>(static_cast<const char*>(address) - mapping_) < count_ * kSpan;
  }
  // Removes AddressSanitizer's marks of frames that never returned: those of an ended thread's last calls, or, of a
  // thread that was abandoned, all.
  void clean(size_t number, bool abandoned) const;

 private:
  static constexpr size_t kPage = 4096;
#if defined(SIMT_ADDRESS_SANITIZER)
  static constexpr size_t kSpan = 256 << 10;  // its frames are several times as large
#else
  static constexpr size_t kSpan = 64 << 10;
#endif
  char* mapping_ = nullptr;
  size_t count_ = 0;
};

}  // namespace simt
