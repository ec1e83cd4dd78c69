// The loops in AVX-512 (F, BW, DQ, VL): sixteen lanes.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "target.h"

#define FASTINIT_ISA avx512
#if !defined(__clang__)
// GCC 12 takes the undefined pass-through operand of unmasked intrinsics for a variable that nobody set (GCC bug
// 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
FASTINIT_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

#include "blend_body.h"
#include "fill_body.h"
#include "instruction_sets.h"
#include "lanes_avx512.h"
#include "orthogonal_body.h"
#include "vectors_avx512.h"

namespace fastinit {

const FillLoops kFillLoopsAvx512 = {fill_range<Avx512Lanes>, blend_range<Avx512Lanes>};

const MatrixSteps kMatrixStepsAvx512 = MatrixStepsOn<Avx512Lanes, Avx512Vector>::kSteps;

}  // namespace fastinit

FASTINIT_END_TARGET

#endif  // x86-64
