// What differs between compilers: function qualifiers and the namespace of an instruction set.
// Included first by every header of core/; nothing else looks at __CUDACC__.
#pragma once

#include <cstdint>

// Code of core/ is compiled once per instruction set (and once by nvcc). Each copy lives in a namespace of its
// own: otherwise the linker would merge the AVX-512 copy of an inline function into code for machines without it.
#ifndef FASTINIT_ISA
#define FASTINIT_ISA portable
#endif

#if defined(__CUDACC__)
#define FASTINIT_HD __host__ __device__ __forceinline__
#define FASTINIT_COLD __host__ __device__ __noinline__
#define FASTINIT_TABLE(type, name, powers, rows) __device__ const type name[powers][rows]
#else
#define FASTINIT_HD inline __attribute__((always_inline))
#define FASTINIT_COLD __attribute__((noinline, cold))
#define FASTINIT_TABLE(type, name, powers, rows) constexpr type name[powers][rows]
#endif

// Ahead of a loop whose count is known when compiling: all of it.
#if defined(__CUDACC__) || defined(__clang__)
#define FASTINIT_UNROLL _Pragma("unroll")
#else
#define FASTINIT_UNROLL _Pragma("GCC unroll 16")
#endif
