// Marks a part of a file as code for an instruction set that the rest of it is not compiled for. Standard headers come
// before the part, so that none of their inline functions are compiled for it and shared with code for lesser machines.
#pragma once

#define FASTINIT_PRAGMA(text) _Pragma(#text)

#if defined(__clang__)
#define FASTINIT_BEGIN_TARGET(names) \
  FASTINIT_PRAGMA(clang attribute push(__attribute__((target(names))), apply_to = function))
#define FASTINIT_END_TARGET FASTINIT_PRAGMA(clang attribute pop)
#else
#define FASTINIT_BEGIN_TARGET(names) FASTINIT_PRAGMA(GCC push_options) FASTINIT_PRAGMA(GCC target(names))
#define FASTINIT_END_TARGET FASTINIT_PRAGMA(GCC pop_options)
#endif
