// A vector of one number, for orthogonal_body.h on any processor.
#pragma once

#include "core/orthogonal.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

template <class T>
struct PortableVector {
  static constexpr int kWidth = 1;
  static constexpr int kSums = 32;
  // Without the instruction, an fma is emulated, in double by the C library in up to 50 ns: products of larger matrices
  // take less time.
  static constexpr int64_t kMostTallRows = FASTINIT_HAS_FMA ? fastinit::kMostTallRows : sizeof(T) == 4 ? 64 : 32;
  T value;

  static FASTINIT_HD PortableVector load(const T* from) { return {*from}; }
  static FASTINIT_HD PortableVector splat(T a) { return {a}; }
  FASTINIT_HD void store(T* to) const { *to = value; }
  static FASTINIT_HD PortableVector fma(PortableVector a, PortableVector b, PortableVector c) {
    return {exact_fma(a.value, b.value, c.value)};
  }
  static FASTINIT_HD PortableVector add(PortableVector a, PortableVector b) { return {a.value + b.value}; }
  FASTINIT_HD T sum() const { return value; }
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
