// The loops for any processor: one lane, no intrinsics.
#include "blend_body.h"
#include "fill_body.h"
#include "instruction_sets.h"
#include "lanes_portable.h"
#include "orthogonal_body.h"
#include "vectors_portable.h"

namespace fastinit {

const FillLoops kFillLoopsPortable = {fill_range<PortableLanes>, blend_range<PortableLanes>};

const MatrixSteps kMatrixStepsPortable = MatrixStepsOn<PortableLanes, PortableVector>::kSteps;

}  // namespace fastinit
