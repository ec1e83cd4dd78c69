// The loops in NEON: four lanes. Every aarch64 processor has it, so nothing is chosen for a target here.
#if defined(__aarch64__)

#include <arm_neon.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define FASTINIT_ISA neon

#include "blend_body.h"
#include "fill_body.h"
#include "instruction_sets.h"
#include "lanes_neon.h"
#include "orthogonal_body.h"
#include "vectors_neon.h"

namespace fastinit {

const FillLoops kFillLoopsNeon = {fill_range<NeonLanes>, blend_range<NeonLanes>};

const MatrixSteps kMatrixStepsNeon = MatrixStepsOn<NeonLanes, NeonVector>::kSteps;

}  // namespace fastinit

#endif  // aarch64
