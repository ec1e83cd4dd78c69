// What the binding calls: a backend fills a prepared table. Nothing else of a backend is visible.
#pragma once

#include <functional>

#include "core/task.h"

namespace fastinit {

// Every name that FASTINIT_FORCE_ISA may take, best first; `supported` says whether this processor has it.
struct InstructionSet {
  const char* name;
  bool supported;
};
constexpr int kInstructionSets = 3;
const InstructionSet* instruction_sets();  // [kInstructionSets]

// Fills all tasks in one pass on `threads` threads, the calling one among them. `isa` names an instruction set of
// instruction_sets() that is supported, or is null for the best. `should_stop` is asked by the calling thread, every 50
// ms or so; once it says yes, the fill stops. Returns whether everything was filled.
bool fill_cpu(const Task* tasks, int64_t num_tasks, int threads, const char* isa,
              const std::function<bool()>& should_stop);

}  // namespace fastinit
