// What differs between compilers: function qualifiers and the namespace of an instruction set.
// Included first by every header of core/; nothing else looks at __CUDACC__.
#pragma once

#include <cstdint>

// Code of core/ is compiled once per instruction set (and once by nvcc). Each copy lives in a namespace of its
// own: otherwise the linker would merge the AVX-512 copy of an inline function into code for machines without it.
#ifndef FASTINIT_ISA
#define FASTINIT_ISA portable
#endif

// FASTINIT_HD is for the host and the device. FASTINIT_DEVICE is for code that reads the tables of core/, which nvcc
// puts into the memory of the device: there it is for kernels alone.
#if defined(__CUDACC__)
#define FASTINIT_HD __host__ __device__ __forceinline__
#define FASTINIT_DEVICE __device__ __forceinline__
#define FASTINIT_TABLE(type, name, powers, rows) __device__ const type name[powers][rows]
#elif defined(__SANITIZE_ADDRESS__)
// Tests under sanitizers, where checks in every copy would take minutes to compile.
#define FASTINIT_HD inline
#define FASTINIT_DEVICE inline
#define FASTINIT_TABLE(type, name, powers, rows) constexpr type name[powers][rows]
#else
#define FASTINIT_HD inline __attribute__((always_inline))
#define FASTINIT_DEVICE inline __attribute__((always_inline))
#define FASTINIT_TABLE(type, name, powers, rows) constexpr type name[powers][rows]
#endif

// Keeps a function out of the way of hot code. For the host alone.
#define FASTINIT_COLD __attribute__((noinline, cold))

// Stands ahead of a loop whose count is known when compiling, and unrolls all of it. (nvcc compiles a file once for the
// host as well.)
#if defined(__CUDA_ARCH__) || defined(__clang__)
#define FASTINIT_UNROLL _Pragma("unroll")
#elif defined(__CUDACC__)
#define FASTINIT_UNROLL
#else
#define FASTINIT_UNROLL _Pragma("GCC unroll 16")
#endif

// Stands ahead of a loop of rare work, which stays a loop.
#if defined(__CUDA_ARCH__)
#define FASTINIT_ROLL _Pragma("unroll 1")
#else
#define FASTINIT_ROLL
#endif
