// The loops in AVX2 with FMA and F16C: eight lanes. Standard headers come before the target region, so that
// none of their inline functions are compiled for it and shared with code for lesser machines.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define FASTINIT_ISA avx2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "fill_body.h"
#include "instruction_sets.h"
#include "lanes_avx2.h"
#include "orthogonal_body.h"
#include "vectors_avx2.h"

namespace fastinit {

void fill_range_avx2(const Task& task, const Stream& stream, int64_t begin, int64_t end, bool streaming) {
  fill_range<Avx2Lanes>(task, stream, begin, end, streaming);
}

const MatrixSteps kMatrixStepsAvx2 = MatrixStepsOn<Avx2Lanes, Avx2Vector>::kSteps;

}  // namespace fastinit

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // x86-64
