// The loops for any processor: one lane, no intrinsics.
#include "fill_body.h"
#include "instruction_sets.h"
#include "lanes_portable.h"
#include "orthogonal_body.h"
#include "vectors_portable.h"

namespace fastinit {

void fill_range_portable(const Task& task, const Stream& stream, int64_t begin, int64_t end, bool streaming) {
  fill_range<PortableLanes>(task, stream, begin, end, streaming);
}

const MatrixSteps kMatrixStepsPortable = MatrixStepsOn<PortableLanes, PortableVector>::kSteps;

}  // namespace fastinit
