// The instruction sets that fill_body.h is compiled for, one file each; dispatch.cpp chooses among them at run time.
#pragma once

#include "core/stream.h"
#include "core/task.h"

namespace fastinit {

// Fills local elements [begin, end) of one task from its stream. `streaming` writes past the caches where alignment
// allows.
using FillRange = void (*)(const Task& task, const Stream& stream, int64_t begin, int64_t end, bool streaming);

// The same, with each element x becoming keep * x + scale * value. For float32 in rows that are consecutive in memory.
using BlendRange = void (*)(const Task& task, const Stream& stream, int64_t begin, int64_t end, float keep,
                            float scale);

struct FillLoops {
  FillRange fill;
  BlendRange blend;
};

extern const FillLoops kFillLoopsPortable;
#if defined(__x86_64__)
extern const FillLoops kFillLoopsSse2;
extern const FillLoops kFillLoopsAvx2;
extern const FillLoops kFillLoopsAvx512;
#elif defined(__aarch64__)
extern const FillLoops kFillLoopsNeon;
#endif

// The loops of an instruction set, by its place in instruction_sets().
const FillLoops& fill_loops_of(int choice);

// The place in instruction_sets() of the one to use: that of this name, or the best.
int chosen_instruction_set(const char* isa);

}  // namespace fastinit
