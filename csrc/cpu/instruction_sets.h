// The instruction sets that fill_body.h is compiled for, one file each; dispatch.cpp chooses among them at run time.
#pragma once

#include "core/stream.h"
#include "core/task.h"

namespace fastinit {

// Fills local elements [begin, end) of one task from its stream. `streaming` writes past the caches where alignment
// allows.
using FillRange = void (*)(const Task& task, const Stream& stream, int64_t begin, int64_t end, bool streaming);

void fill_range_portable(const Task& task, const Stream& stream, int64_t begin, int64_t end, bool streaming);
#if defined(__x86_64__)
void fill_range_sse2(const Task& task, const Stream& stream, int64_t begin, int64_t end, bool streaming);
void fill_range_avx2(const Task& task, const Stream& stream, int64_t begin, int64_t end, bool streaming);
void fill_range_avx512(const Task& task, const Stream& stream, int64_t begin, int64_t end, bool streaming);
#elif defined(__aarch64__)
void fill_range_neon(const Task& task, const Stream& stream, int64_t begin, int64_t end, bool streaming);
#endif

// The loop of an instruction set, by its place in instruction_sets().
FillRange fill_range_of(int choice);

// The place in instruction_sets() of the one to use: that of this name, or the best.
int chosen_instruction_set(const char* isa);

}  // namespace fastinit
