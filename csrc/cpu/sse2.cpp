// The loops in SSE2: four lanes. Every x86-64 processor has it, so nothing is chosen for a target here.
#if defined(__x86_64__)

#include <emmintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define FASTINIT_ISA sse2

#include "fill_body.h"
#include "instruction_sets.h"
#include "lanes_sse2.h"

namespace fastinit {

void fill_range_sse2(const Task& task, const Stream& stream, int64_t begin, int64_t end, bool streaming) {
  fill_range<Sse2Lanes>(task, stream, begin, end, streaming);
}

}  // namespace fastinit

#endif  // x86-64
