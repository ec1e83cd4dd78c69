// The loops in AVX-512 (F, BW, DQ, VL): sixteen lanes. Standard headers come before the target region, so that
// none of their inline functions are compiled for it and shared with code for lesser machines.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define FASTINIT_ISA avx512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
// GCC 12 takes the undefined pass-through operand of unmasked intrinsics for a variable that nobody set (GCC bug
// 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#include "fill_body.h"
#include "instruction_sets.h"
#include "lanes_avx512.h"
#include "orthogonal_body.h"
#include "vectors_avx512.h"

namespace fastinit {

void fill_range_avx512(const Task& task, const Stream& stream, int64_t begin, int64_t end, bool streaming) {
  fill_range<Avx512Lanes>(task, stream, begin, end, streaming);
}

const MatrixSteps kMatrixStepsAvx512 = MatrixStepsOn<Avx512Lanes, Avx512Vector>::kSteps;

}  // namespace fastinit

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // x86-64
