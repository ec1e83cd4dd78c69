// The places of the non-zero elements of a structured tensor (identity, Dirac), by global index.
#pragma once

#include "task.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

// In every period of global indices, `count` of them: first, first + step, first + 2 step, ... The identity matrix of
// m columns is one period with first = 0 and step = m + 1.
class Diagonal {
 public:
  // The numbers come as doubles; indices of tensors are exact in them.
  FASTINIT_HD explicit Diagonal(const double (&parameter)[kParameters])
      : first_(static_cast<int64_t>(parameter[1])),
        step_(static_cast<int64_t>(parameter[2])),
        count_(static_cast<int64_t>(parameter[3])),
        period_(static_cast<int64_t>(parameter[4])) {}

  // The least index of the diagonal that is not below `index`. No sum reaches 2^63 (check_map in checks.h).
  FASTINIT_HD int64_t next(int64_t index) const {
    if (index <= first_) return first_;
    const int64_t begin = first_ + (index - first_) / period_ * period_;
    const int64_t which = (index - begin + step_ - 1) / step_;
    return which < count_ ? begin + which * step_ : begin + period_;
  }

  // From one of them to the next one, up to the last one of its period.
  FASTINIT_HD int64_t step() const { return step_; }
  FASTINIT_HD int64_t last_of_period(int64_t index) const {
    return index - (index - first_) % period_ + (count_ - 1) * step_;
  }

 private:
  int64_t first_, step_, count_, period_;
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
