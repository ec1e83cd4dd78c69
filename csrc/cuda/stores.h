// From values to memory: rounding to the dtype, and stores of 16 or 8 bytes where places are aligned. What is there
// already is either written over or goes into what is written.
#pragma once

#include <type_traits>

#include "core/blend.h"
#include "sources.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

// Up to 16 bytes of consecutive elements, as they lie in memory.
struct Packed {
  uint32_t word[4];

  // Takes the first element off, and moves the others up by its `bytes`. Its bits are the lowest of the result.
  FASTINIT_DEVICE uint64_t pop(int bytes) {
    const uint64_t first = word[0] | static_cast<uint64_t>(word[1]) << 32;
    if (bytes <= 2) {
      const int bits = 8 * bytes;
      word[0] = word[0] >> bits | word[1] << (32 - bits);
      word[1] = word[1] >> bits | word[2] << (32 - bits);
      word[2] = word[2] >> bits | word[3] << (32 - bits);
      word[3] = word[3] >> bits;
    } else {
      word[0] = bytes == 4 ? word[1] : word[2];
      word[1] = bytes == 4 ? word[2] : word[3];
      word[2] = word[3];
    }
    return first;
  }
};

// Two values, rounded to a 16-bit dtype.
template <class Element>
FASTINIT_HD uint32_t round_pair(float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  // One instruction rounds both to nearest even, as round_to does. Its NaN is another one, but no sample is NaN.
  uint32_t pair;
  if constexpr (std::is_same_v<Element, Bfloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  }
  return pair;
#else
  Element low, high;
  round_to(first, low);
  round_to(second, high);
  return low.bits | static_cast<uint32_t>(high.bits) << 16;
#endif
}

// An element of any 8-bit dtype. The kernel reads its format from the task: as types of their own, four more dtypes
// would double the kernel.
struct AnyFloat8 {
  uint8_t bits;
};

// `kCount` values of a source as elements. `dtype` says which, since AnyFloat8 stands for several.
template <class Element, int kCount>
FASTINIT_HD Packed pack(const float* values, Dtype dtype) {
  Packed packed{};
  if constexpr (sizeof(Element) == 1) {
    const Float8Format format(dtype);
    FASTINIT_UNROLL
    for (int k = 0; k < kCount; ++k) {
      packed.word[k / 4] |= float8_in_lowest_byte<ScalarLanes>(values[k], format) << (8 * (k % 4));
    }
  } else {
    FASTINIT_UNROLL
    for (int k = 0; k < kCount; ++k) {
      if constexpr (sizeof(Element) == 4) {
        packed.word[k] = bit_cast<uint32_t>(values[k]);
      } else {
        if (k % 2 == 1) packed.word[k / 2] = round_pair<Element>(values[k - 1], values[k]);
      }
    }
  }
  return packed;
}

template <class Element, int kCount>
FASTINIT_HD Packed pack(const double* values, Dtype /*dtype*/) {
  Packed packed{};
  FASTINIT_UNROLL
  for (int k = 0; k < kCount; ++k) {
    const uint64_t bits = bit_cast<uint64_t>(values[k]);
    packed.word[2 * k] = static_cast<uint32_t>(bits);
    packed.word[2 * k + 1] = static_cast<uint32_t>(bits >> 32);
  }
  return packed;
}

template <class Element, int kCount>
FASTINIT_HD Packed pack(const uint64_t* bits, Dtype /*dtype*/) {
  Packed packed{};
  FASTINIT_UNROLL
  for (int k = 0; k < kCount; ++k) {
    const uint32_t low = static_cast<uint32_t>(bits[k]);
    if constexpr (sizeof(Element) == 8) {
      packed.word[2 * k] = low;
      packed.word[2 * k + 1] = static_cast<uint32_t>(bits[k] >> 32);
    } else if constexpr (sizeof(Element) == 4) {
      packed.word[k] = low;
    } else if constexpr (sizeof(Element) == 2) {
      packed.word[k / 2] |= low << (16 * (k % 2));
    } else {
      packed.word[k / 4] |= low << (8 * (k % 4));
    }
  }
  return packed;
}

// Stores a word to global memory. The address is a number, so the compiler cannot see which memory it belongs to. Plain
// C++ would store to an address of any kind of memory, which is slower.
template <class Word>
FASTINIT_DEVICE void store_global(uint64_t address, const Word& word) {
#if defined(__CUDA_ARCH__)
  const size_t place = __cvta_generic_to_global(reinterpret_cast<const void*>(address));
  if constexpr (sizeof(Word) == 16) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(place), "r"(word.x), "r"(word.y), "r"(word.z),
                 "r"(word.w)
                 : "memory");
  } else if constexpr (sizeof(Word) == 8) {
    asm volatile("st.global.u64 [%0], %1;" ::"l"(place), "l"(word) : "memory");
  } else if constexpr (sizeof(Word) == 4) {
    asm volatile("st.global.u32 [%0], %1;" ::"l"(place), "r"(word) : "memory");
  } else if constexpr (sizeof(Word) == 2) {
    asm volatile("st.global.u16 [%0], %1;" ::"l"(place), "h"(word) : "memory");
  } else {
    asm volatile("st.global.u8 [%0], %1;" ::"l"(place), "r"(static_cast<uint32_t>(word)) : "memory");
  }
#else
  *reinterpret_cast<Word*>(address) = word;
#endif
}

// 16, 8 or 4 bytes at once, to a place that is aligned to them.
FASTINIT_DEVICE void store_together(uint64_t address, const Packed& packed, int bytes) {
  if (bytes == 16) {
    store_global(address, make_uint4(packed.word[0], packed.word[1], packed.word[2], packed.word[3]));
  } else if (bytes == 8) {
    store_global(address, packed.word[0] | static_cast<uint64_t>(packed.word[1]) << 32);
  } else {
    store_global(address, packed.word[0]);
  }
}

// One element, given by its bits.
FASTINIT_DEVICE void store_element(uint64_t address, uint64_t bits, int bytes) {
  if (bytes == 1) {
    store_global(address, static_cast<uint8_t>(bits));
  } else if (bytes == 2) {
    store_global(address, static_cast<uint16_t>(bits));
  } else if (bytes == 4) {
    store_global(address, static_cast<uint32_t>(bits));
  } else {
    store_global(address, bits);
  }
}

// Reads a word of global memory.
template <class Word>
FASTINIT_DEVICE Word load_global(uint64_t address) {
#if defined(__CUDA_ARCH__)
  const size_t place = __cvta_generic_to_global(reinterpret_cast<const void*>(address));
  Word word;
  if constexpr (sizeof(Word) == 16) {
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
                 : "l"(place)
                 : "memory");
  } else if constexpr (sizeof(Word) == 8) {
    asm volatile("ld.global.u64 %0, [%1];" : "=l"(word) : "l"(place) : "memory");
  } else if constexpr (sizeof(Word) == 4) {
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(word) : "l"(place) : "memory");
  } else if constexpr (sizeof(Word) == 2) {
    asm volatile("ld.global.u16 %0, [%1];" : "=h"(word) : "l"(place) : "memory");
  } else {
    uint32_t byte;
    asm volatile("ld.global.u8 %0, [%1];" : "=r"(byte) : "l"(place) : "memory");
    word = static_cast<Word>(byte);
  }
  return word;
#else
  return *reinterpret_cast<const Word*>(address);
#endif
}

// 16, 8 or 4 bytes at once, from a place that is aligned to them.
FASTINIT_DEVICE Packed load_together(uint64_t address, int bytes) {
  if (bytes == 16) {
    const uint4 words = load_global<uint4>(address);
    return {{words.x, words.y, words.z, words.w}};
  }
  if (bytes == 8) {
    const uint64_t words = load_global<uint64_t>(address);
    return {{static_cast<uint32_t>(words), static_cast<uint32_t>(words >> 32), 0, 0}};
  }
  return {{load_global<uint32_t>(address), 0, 0, 0}};
}

// What a kernel does with the values: writes them over what is there, ...
struct Overwrite {
  static constexpr bool kReads = false;

  FASTINIT_DEVICE const Overwrite& of(const Task& /*task*/, int /*index*/) const { return *this; }
};

// ... or makes something of both: a blend (core/blend.h), or the value where a mask is true and what is there
// elsewhere. Values of float come before they are rounded.
class Rewrite {
 public:
  static constexpr bool kReads = true;

  FASTINIT_HD Rewrite(double keep, double scale)
      : keep_(keep), scale_(scale), keep_f32_(static_cast<float>(keep)), scale_f32_(static_cast<float>(scale)) {}
  // masks: the address of the array of masks (fill_where_cuda).
  FASTINIT_HD explicit Rewrite(uint64_t masks) : Rewrite(0.0, 1.0) { masks_ = masks; }

  // For the elements of one task.
  FASTINIT_DEVICE Rewrite of(const Task& task, int index) const {
    Rewrite rewrite = *this;
    if (masks_ != 0) {
      rewrite.masks_ = load_global<uint64_t>(masks_ + static_cast<uint64_t>(index) * sizeof(uint64_t));
      rewrite.data_ = task.data;
      rewrite.nan_bits_ = task.sampler.constant_bits;
    }
    return rewrite;
  }

  // The elements at an address that is aligned to all of them together.
  template <class Element, int kCount, class Value>
  FASTINIT_DEVICE void together(uint64_t address, const Value* values, Dtype dtype) const {
    constexpr int kBits = 8 * static_cast<int>(sizeof(Element));
    constexpr int kBytes = kCount * static_cast<int>(sizeof(Element));
    const Packed old = load_together(address, kBytes);
    Packed packed{};
    FASTINIT_UNROLL
    for (int k = 0; k < kCount; ++k) {
      if constexpr (kBits == 64) {
        const uint64_t before = old.word[2 * k] | static_cast<uint64_t>(old.word[2 * k + 1]) << 32;
        const uint64_t bits = after<Element>(address + k * sizeof(Element), before, values[k], dtype);
        packed.word[2 * k] = static_cast<uint32_t>(bits);
        packed.word[2 * k + 1] = static_cast<uint32_t>(bits >> 32);
      } else {
        const int shift = kBits * k % 32;
        const BitsOf<Element> before = static_cast<BitsOf<Element>>(old.word[kBits * k / 32] >> shift);
        const BitsOf<Element> bits = after<Element>(address + k * sizeof(Element), before, values[k], dtype);
        packed.word[kBits * k / 32] |= static_cast<uint32_t>(bits) << shift;
      }
    }
    store_together(address, packed, kBytes);
  }

  template <class Element, class Value>
  FASTINIT_DEVICE void at(uint64_t address, Value value, Dtype dtype) const {
    store_global(address, after<Element>(address, load_global<BitsOf<Element>>(address), value, dtype));
  }
  // An element of the dtype that the task says.
  FASTINIT_DEVICE void at(uint64_t address, float value, Dtype dtype) const {
    if (dtype == Dtype::kFloat32) {
      at<float>(address, value, dtype);
    } else if (is_float8(dtype)) {
      at<AnyFloat8>(address, value, dtype);
    } else if (dtype == Dtype::kFloat16) {
      at<Float16>(address, value, dtype);
    } else {
      at<Bfloat16>(address, value, dtype);
    }
  }
  FASTINIT_DEVICE void at(uint64_t address, double value, Dtype dtype) const { at<double>(address, value, dtype); }

 private:
  template <class Element>
  using BitsOf = std::conditional_t<
      sizeof(Element) == 8, uint64_t,
      std::conditional_t<sizeof(Element) == 4, uint32_t, std::conditional_t<sizeof(Element) == 2, uint16_t, uint8_t>>>;

  // What the element at an address becomes.
  template <class Element>
  FASTINIT_DEVICE BitsOf<Element> after(uint64_t address, BitsOf<Element> before, float value, Dtype dtype) const {
    if (keeps<Element>(address)) return before;
    if (masks_ != 0 && value != value) return static_cast<BitsOf<Element>>(nan_bits_);
    if constexpr (sizeof(Element) == 1) {
      const Float8Format format(dtype);
      if (masks_ == 0) value = blended(keep_f32_, widened_float8(before, format), scale_f32_, value);
      return rounded_to_float8(value, format);
    } else {
      if (masks_ == 0) value = blended(keep_f32_, widened(bit_cast<Element>(before)), scale_f32_, value);
      Element rounded;
      round_to(value, rounded);
      return bit_cast<BitsOf<Element>>(rounded);
    }
  }
  template <class Element>
  FASTINIT_DEVICE BitsOf<Element> after(uint64_t address, BitsOf<Element> before, double value, Dtype /*dtype*/) const {
    if (keeps<Element>(address)) return before;
    if (masks_ != 0) return value == value ? bit_cast<uint64_t>(value) : nan_bits_;
    return bit_cast<uint64_t>(blended(keep_, bit_cast<double>(before), scale_, value));
  }

  // Whether a mask denies an element.
  template <class Element>
  FASTINIT_DEVICE bool keeps(uint64_t address) const {
    return masks_ != 0 && load_global<uint8_t>(masks_ + (address - data_) / sizeof(Element)) == 0;
  }

  double keep_, scale_;
  float keep_f32_, scale_f32_;
  uint64_t masks_ = 0;     // the address of the masks, of a task its mask; 0: a blend
  uint64_t data_ = 0;      // of the task
  uint64_t nan_bits_ = 0;  // as an element: of samples none is NaN, and a conversion may change a constant's bits
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
