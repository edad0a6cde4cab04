// The floating-point environment that the law assumes.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace fastsample::cpu {

// The law keeps denormals: torch.set_flush_denormal(True) would turn log2e / 1.1e-38 into inf. Rounding, too, is put
// back to nearest.
class IeeeArithmetic {
 public:
#if defined(__x86_64__)
  IeeeArithmetic() : saved_(_mm_getcsr()) {
    constexpr unsigned kFlushAndRounding = 0x8040u | 0x6000u;
    if (saved_ & kFlushAndRounding) _mm_setcsr(saved_ & ~kFlushAndRounding);
  }
  ~IeeeArithmetic() {
    if (_mm_getcsr() != saved_) _mm_setcsr(saved_);
  }

 private:
  unsigned saved_;
#endif
};

}  // namespace fastsample::cpu
