// The loops in SSE2: four lanes. Every x86-64 processor has it, so nothing is chosen for a target here.
#if defined(__x86_64__)

#include <emmintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define FASTINIT_ISA sse2

#include "blend_body.h"
#include "fill_body.h"
#include "instruction_sets.h"
#include "lanes_sse2.h"
#include "orthogonal_body.h"
#include "vectors_sse2.h"

namespace fastinit {

const FillLoops kFillLoopsSse2 = {fill_range<Sse2Lanes>, blend_range<Sse2Lanes>};

const MatrixSteps kMatrixStepsSse2 = MatrixStepsOn<Sse2Lanes, Sse2Vector>::kSteps;

}  // namespace fastinit

#endif  // x86-64
