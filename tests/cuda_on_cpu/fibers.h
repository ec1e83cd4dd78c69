// The threads of one running CUDA block, as fibers that take turns on the calling thread; their barriers and warp
// operations, which abort on what a GPU leaves undefined. Only cuda_runtime.h includes this; it knows no launch.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

struct uint3 {
  unsigned x, y, z;
};

namespace cuda_on_cpu {

inline unsigned order_seed = 0;  // tests set it. 0: natural order; else blocks, and the turns of threads, are at random

constexpr unsigned kWarp = 32, kMaxThreads = 1024;
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStackBytes = 256 << 10;  // the sanitizer's frames are larger
#else
constexpr size_t kStackBytes = 64 << 10;
#endif

inline uint3 block_index, thread_index;

[[noreturn, gnu::format(printf, 1, 2)]] inline void fail(const char* format, ...) {
  std::fprintf(stderr, "cuda_on_cpu: block (%u, %u, %u): ", block_index.x, block_index.y, block_index.z);
  va_list values;
  va_start(values, format);
  std::vfprintf(stderr, format, values);
  va_end(values);
  std::fprintf(stderr, "\n");
  std::abort();
}

// ---- Fibers. A system call starts each of them, once; all other switches are a _setjmp and a _longjmp.

struct Fiber {
  jmp_buf context;
  ucontext_t start;
  bool started;
  const void* stack;  // its lowest address
  size_t stack_bytes;
  void* fake_stack;  // AddressSanitizer's
};
inline Fiber host{{}, {}, true, nullptr, 0, nullptr};  // whoever launches
inline Fiber* running = &host;
inline Fiber* previous = nullptr;
inline std::vector<Fiber*> parked_fibers;

// By the linker's name: under _FORTIFY_SOURCE, the name in C is a function that refuses to jump to another stack.
extern "C" [[noreturn]] void cuda_on_cpu_longjmp(jmp_buf, int) __asm__("_longjmp");

inline void finish_switch() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(running->fake_stack, &previous->stack, &previous->stack_bytes);
#endif
}

// Returns when another fiber switches back.
[[gnu::noinline, gnu::no_sanitize_address]] inline void switch_to(Fiber* fiber) {
  previous = running;
  running = fiber;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&previous->fake_stack, fiber->stack, fiber->stack_bytes);
#endif
  if (_setjmp(previous->context) == 0) {
    if (running->started) cuda_on_cpu_longjmp(running->context, 1);
    running->started = true;
    setcontext(&running->start);
  }
  finish_switch();
}

void run_threads();

constexpr size_t kPage = 4096;  // one to guard a stack's end, and one for its Fiber, above it

inline void add_fiber() {
  void* memory = mmap(nullptr, kStackBytes + 2 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kPage, PROT_NONE) != 0) fail("no memory for a thread's stack");
  char* stack = static_cast<char*>(memory) + kPage;
  parked_fibers.push_back(new (stack + kStackBytes) Fiber{{}, {}, false, stack, kStackBytes, nullptr});
  ucontext_t* start = &parked_fibers.back()->start;
  getcontext(start);
  start->uc_stack.ss_sp = stack;
  start->uc_stack.ss_size = kStackBytes;
  makecontext(start, run_threads, 0);
}

// To be called when no kernel runs.
inline void release_fibers() {
  for (const Fiber* fiber : parked_fibers) {
    munmap(const_cast<char*>(static_cast<const char*>(fiber->stack)) - kPage, kStackBytes + 2 * kPage);
  }
  parked_fibers.clear();
}

inline Fiber* parked_fiber() {
  if (parked_fibers.empty()) add_fiber();
  Fiber* fiber = parked_fibers.back();
  parked_fibers.pop_back();
  return fiber;
}

// ---- Threads.

struct Place {
  const char* operation;  // null: the thread does not wait
  const char* file;
  int line;
};
inline bool operator!=(const Place& a, const Place& b) {
  const auto differ = [](const char* s, const char* t) { return s != t && std::strcmp(s, t) != 0; };
  return a.line != b.line || differ(a.operation, b.operation) || differ(a.file, b.file);
}

struct Thread {
  Fiber* fiber;  // null until the thread starts
  uint3 index;
  Place waits;
  unsigned mask, ballot;   // of a warp operation: who takes part, and whose value is not 0; no mask in a barrier
  unsigned source;         // the lane whose value it asks for
  uint64_t value, result;  // what it brings, and what it gets
};
inline Thread threads[kMaxThreads];
inline unsigned num_threads, num_left, current;  // of the block; that have left the kernel; the one that runs
inline void (*thread_function)(void*);
inline void* thread_arguments;
inline std::minstd_rand order;

inline uint16_t runnable[kMaxThreads];  // a ring: a thread is in it once at most
inline unsigned runnable_first, runnable_count;
inline unsigned warp_waits[kMaxThreads / kWarp];  // lanes that wait in a warp operation
inline unsigned barrier_count, barrier_votes, barrier_result;
inline Place barrier;  // where the first thread came to it

inline void make_runnable(unsigned thread) {
  runnable[(runnable_first + runnable_count++) % kMaxThreads] = static_cast<uint16_t>(thread);
}

[[noreturn]] inline void report_deadlock() {
  std::map<std::string, int> groups;
  const char* operation = "";
  for (const Thread& thread : threads) {
    if (!thread.waits.operation) continue;
    operation = thread.waits.operation;
    char mask[32] = "";
    if (thread.mask) std::snprintf(mask, sizeof mask, " with mask 0x%08x", thread.mask);
    ++groups[std::string(operation) + mask + " at " + thread.waits.file + ":" + std::to_string(thread.waits.line)];
  }
  std::string all;
  for (const auto& [what, count] : groups) all += std::to_string(count) + " wait in " + what + ", ";
  fail("divergent %s: of %u threads, %s%u have left the kernel", operation, num_threads, all.c_str(), num_left);
}

// Makes a runnable thread the current one. False if all have left.
inline bool choose_thread() {
  if (runnable_count == 0) {
    if (num_left != num_threads) report_deadlock();
    return false;
  }
  uint16_t& first = runnable[runnable_first % kMaxThreads];
  if (order_seed) std::swap(first, runnable[(runnable_first + order() % runnable_count) % kMaxThreads]);
  current = first;
  ++runnable_first;
  --runnable_count;
  return true;
}

// The life of a fiber: it runs one thread after the other to the end, until one that waited elsewhere is next.
inline void run_threads() {
  finish_switch();
  for (;;) {
    threads[current].fiber = running;
    thread_index = threads[current].index;
    thread_function(thread_arguments);
    ++num_left;
    const bool more = choose_thread();
    if (more && !threads[current].fiber) continue;
    parked_fibers.push_back(running);
    switch_to(more ? threads[current].fiber : &host);
  }
}

inline void run_block() {
  num_left = 0;
  for (unsigned i = 0; i < num_threads; ++i) {
    threads[i].fiber = nullptr;
    make_runnable(i);
  }
  choose_thread();
  switch_to(parked_fiber());
}

// The current thread waits until another one has made it runnable.
inline void wait() {
  const unsigned self = current;
  choose_thread();
  if (current != self) switch_to(threads[current].fiber ? threads[current].fiber : parked_fiber());
  thread_index = threads[self].index;
}

// Whoever comes last goes on at once, or takes its turn if turns are random.
inline void go_on() {
  if (!order_seed) return;
  make_runnable(current);
  wait();
}

// Returns for how many threads of the block `vote` holds.
inline unsigned block_barrier(bool vote, const Place& place) {
  if (barrier_count == 0) barrier = place;
  if (barrier != place) {
    fail("divergent %s: thread %u comes to %s:%d while %u wait in %s at %s:%d", place.operation, current, place.file,
         place.line, barrier_count, barrier.operation, barrier.file, barrier.line);
  }
  Thread& self = threads[current];
  self.waits = place;
  self.mask = 0;
  barrier_votes += vote;
  if (++barrier_count < num_threads) {
    wait();
  } else {
    barrier_result = std::exchange(barrier_votes, 0);
    barrier_count = 0;
    for (unsigned i = 0; i < num_threads; ++i) {
      if (i != current) make_runnable(i);
    }
    go_on();
  }
  self.waits.operation = nullptr;
  return barrier_result;
}

// Each lane of `mask` brings a value, and gets that of its `source` and the ballot over all.
inline const Thread& meet(unsigned mask, uint64_t value, unsigned source, const Place& place) {
  const unsigned lane = current % kWarp;
  Thread& self = threads[current];
  Thread* lanes = &self - lane;
  unsigned& waiting = warp_waits[current / kWarp];
  if (!(mask >> lane & 1)) {
    fail("divergent %s at %s:%d: mask 0x%08x does not name lane %u, which calls", place.operation, place.file,
         place.line, mask, lane);
  }
  self.waits = place;
  self.mask = mask;
  self.value = value;
  self.source = source;
  waiting |= 1u << lane;
  if ((waiting & mask) != mask) {
    wait();
  } else {
    waiting &= ~mask;
    unsigned ballot = 0;
    for (unsigned i = 0; i < kWarp; ++i) {
      if (!(mask >> i & 1)) continue;
      if (lanes[i].mask != mask || lanes[i].waits != place) {
        const Place& other = lanes[i].waits;
        fail(
            "divergent %s: thread %u comes to %s:%d with mask 0x%08x while lane %u waits in %s at %s:%d with mask "
            "0x%08x",
            place.operation, current, place.file, place.line, mask, i, other.operation, other.file, other.line,
            lanes[i].mask);
      }
      ballot |= unsigned{lanes[i].value != 0} << i;
    }
    for (unsigned i = 0; i < kWarp; ++i) {
      if (!(mask >> i & 1)) continue;
      lanes[i].ballot = ballot;
      lanes[i].result = mask >> lanes[i].source & 1 ? lanes[lanes[i].source].value : ~uint64_t{0};  // undefined: a NaN
      if (i != lane) make_runnable(current - lane + i);
    }
    go_on();
  }
  self.waits.operation = nullptr;
  return self;
}

template <typename T>
T shuffle(unsigned mask, T value, unsigned source, const Place& place) {
  static_assert(std::is_arithmetic<T>::value && sizeof(T) <= 8, "not a type that CUDA shuffles");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = meet(mask, bits, source, place).result;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace cuda_on_cpu
