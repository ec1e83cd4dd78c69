// The fingerprint of values (fingerprint version 1, docs/FINGERPRINT.md): what one element adds, and the table of the
// tensors whose elements are added up.
#pragma once

#include "platform.h"

namespace fastinit {

constexpr int kFingerprintVersion = 1;

// 2^64 over the golden ratio, the increment of SplitMix64. An index times it is the state that SplitMix64 has there.
constexpr uint64_t kFingerprintStep = 0x9E3779B97F4A7C15;

constexpr int kFingerprintDimensions = 8;

// A tensor, or a box of one. The order of its elements does not matter, so the dimensions come in the order of memory:
// the first one has the longest steps. Those not needed have size 1.
struct FingerprintTask {
  uint64_t data;          // address of the first element
  int64_t numel;          // the product of all sizes
  uint64_t key;           // of the parameter: from its name, dtype and shape
  int64_t global_offset;  // global index of the first element
  int64_t element_bytes;  // 1, 2, 4 or 8
  struct Dimension {
    int64_t size;
    int64_t memory_step;  // in elements
    int64_t index_step;   // of the global index
  } dimension[kFingerprintDimensions];
};

inline namespace FASTINIT_ISA {

// The finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014). A
// bijection: an element that changes always changes what it adds.
FASTINIT_HD uint64_t fingerprint_mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
