// The loops in NEON: four lanes. Every aarch64 processor has it, so nothing is chosen for a target here.
#if defined(__aarch64__)

#include <arm_neon.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define FASTINIT_ISA neon

#include "fill_body.h"
#include "instruction_sets.h"
#include "lanes_neon.h"
#include "orthogonal_body.h"
#include "vectors_neon.h"

namespace fastinit {

void fill_range_neon(const Task& task, const Stream& stream, int64_t begin, int64_t end, bool streaming) {
  fill_range<NeonLanes>(task, stream, begin, end, streaming);
}

const MatrixSteps kMatrixStepsNeon = MatrixStepsOn<NeonLanes, NeonVector>::kSteps;

}  // namespace fastinit

#endif  // aarch64
