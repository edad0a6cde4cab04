// The floating-point environment that the law assumes.
#pragma once

#include <cstdint>

#include "../law.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace fastsample::cpu {

// The law keeps denormals: torch.set_flush_denormal(True) would turn log2e / 1.1e-38 into inf. Rounding, too, is put
// back to nearest, and exceptions are masked, since a comparison with NaN means no here. What the thread had comes back
// at the end of the scope.
class IeeeArithmetic {
 public:
  FASTSAMPLE_INLINE IeeeArithmetic() : saved_(read()) {
    if (ieee(saved_) != saved_) write(ieee(saved_));
  }
  FASTSAMPLE_INLINE ~IeeeArithmetic() {
    if (ieee(saved_) != saved_) write(saved_);
  }
  IeeeArithmetic(const IeeeArithmetic&) = delete;
  IeeeArithmetic& operator=(const IeeeArithmetic&) = delete;

 private:
#if defined(__x86_64__)
  using Register = unsigned;
  // MXCSR: FTZ, DAZ and RC off, the exception masks on
  FASTSAMPLE_INLINE static Register ieee(Register value) { return (value & ~0xE040u) | 0x1F80u; }
  FASTSAMPLE_INLINE static Register read() { return _mm_getcsr(); }
  FASTSAMPLE_INLINE static void write(Register value) { _mm_setcsr(value); }
#elif defined(__aarch64__)
  using Register = uint64_t;
  // FPCR: FZ and RMode off, no exception traps
  FASTSAMPLE_INLINE static Register ieee(Register value) { return value & ~(uint64_t{7} << 22 | uint64_t{0x9F} << 8); }
  FASTSAMPLE_INLINE static Register read() {
    Register value;
    asm volatile("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  FASTSAMPLE_INLINE static void write(Register value) { asm volatile("msr fpcr, %0" ::"r"(value)); }
#else
  using Register = unsigned;
  FASTSAMPLE_INLINE static Register ieee(Register value) { return value; }
  FASTSAMPLE_INLINE static Register read() { return 0; }
  FASTSAMPLE_INLINE static void write(Register) {}
#endif
  const Register saved_;
};

}  // namespace fastsample::cpu
