// The loops in AVX2 with FMA and F16C: eight lanes.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "target.h"

#define FASTINIT_ISA avx2
FASTINIT_BEGIN_TARGET("avx2,fma,f16c")

#include "blend_body.h"
#include "fill_body.h"
#include "instruction_sets.h"
#include "lanes_avx2.h"
#include "orthogonal_body.h"
#include "vectors_avx2.h"

namespace fastinit {

const FillLoops kFillLoopsAvx2 = {fill_range<Avx2Lanes>, blend_range<Avx2Lanes>};

const MatrixSteps kMatrixStepsAvx2 = MatrixStepsOn<Avx2Lanes, Avx2Vector>::kSteps;

}  // namespace fastinit

FASTINIT_END_TARGET

#endif  // x86-64
