// The loops in SSE2: four lanes. Every x86-64 processor has it, so nothing is chosen for a target here.
#if defined(__x86_64__)

#include <emmintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define FASTINIT_ISA sse2

#include "blend_body.h"
#include "fill_body.h"
#include "instruction_sets.h"
#include "lanes_sse2.h"

namespace fastinit {

const FillLoops kFillLoopsSse2 = {fill_range<Sse2Lanes>, blend_range<Sse2Lanes>};

}  // namespace fastinit

#endif  // x86-64
