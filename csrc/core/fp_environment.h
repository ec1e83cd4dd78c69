// The floating-point environment that the contract is written for: round to nearest, subnormals kept. A caller may have
// changed it (torch.set_flush_denormal), and threads inherit it. Host only.
#pragma once

#include <cfenv>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastinit {

class DefaultFpEnvironment {
 public:
  DefaultFpEnvironment() {
#if defined(__x86_64__)
    saved_ = _mm_getcsr();
    _mm_setcsr(0x1F80);  // all exceptions masked, round to nearest, no flush to zero, no denormals as zero
#else
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
#endif
  }
  ~DefaultFpEnvironment() {
#if defined(__x86_64__)
    _mm_setcsr(saved_);
#else
    std::fesetenv(&saved_);
#endif
  }
  DefaultFpEnvironment(const DefaultFpEnvironment&) = delete;
  DefaultFpEnvironment& operator=(const DefaultFpEnvironment&) = delete;

 private:
#if defined(__x86_64__)
  unsigned saved_;
#else
  std::fenv_t saved_;
#endif
};

// Orders streaming stores before whatever tells another thread that they are done.
inline void finish_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace fastinit
