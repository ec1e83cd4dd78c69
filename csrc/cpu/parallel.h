// Cuts tasks into chunks, and lets threads take them until none is left. What is done with a chunk is the caller's.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "core/fp_environment.h"

namespace fastinit {

// Elements of a chunk, the unit of work. A thread fills one in about 8 microseconds. A smaller task is one chunk.
constexpr int64_t kChunk = 32768;

// The most elements that a thread takes at a time. 2^19 floats fill a huge page; two threads that share a fresh one
// would both clear it.
constexpr int64_t kMostPerClaim = int64_t{1} << 19;

// Below this many elements a thread costs more to start than it saves.
constexpr int64_t kLeastPerThread = 65536;

constexpr auto kPollInterval = std::chrono::milliseconds(50);

// Asks `should_stop`, but no more often than every kPollInterval. For the calling thread alone.
class Poll {
 public:
  explicit Poll(const std::function<bool()>& should_stop) : should_stop_(should_stop) {}

  bool operator()() {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < kPollInterval) return false;
    last_ = now;
    return should_stop_();
  }

 private:
  const std::function<bool()>& should_stop_;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// Threads beside the calling one. They are joined at the end of the scope, also where an exception ends it.
class Workers {
 public:
  // Calls work(1) ... work(count), each on a thread of its own. Where the system has no thread or no memory left to
  // give, there are fewer: the work is for those that there are.
  template <class Work>
  Workers(int count, const Work& work) {
    try {
      for (int i = 1; i <= count; ++i) threads_.emplace_back(work, i);
    } catch (const std::system_error&) {
    } catch (const std::bad_alloc&) {
    }
  }
  ~Workers() { join(); }
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  int count() const { return static_cast<int>(threads_.size()); }
  void join() {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

 private:
  std::vector<std::thread> threads_;
};

// The chunks of all tasks in one row. Threads take runs of them.
class ChunkQueue {
 public:
  ChunkQueue(const std::vector<int64_t>& numels, int threads) : numels_(numels), first_chunk_(numels.size() + 1) {
    int64_t numel = 0;
    for (size_t i = 0; i < numels.size(); ++i) {
      first_chunk_[i + 1] = first_chunk_[i] + (numels[i] + kChunk - 1) / kChunk;
      numel += numels[i];
    }
    // Eight claims for each thread even out their speeds. The chunks of a claim are taken to be of the average size.
    const int64_t chunks = first_chunk_.back();
    const int64_t average = std::max<int64_t>(1, numel / std::max<int64_t>(1, chunks));
    claim_ = std::clamp<int64_t>(chunks / (int64_t{8} * threads), 1, std::max<int64_t>(1, kMostPerClaim / average));
  }

  // Calls work(task_index, begin, end) for the elements of one claim. Returns false once nothing is left.
  template <class Work>
  bool take_claim(const Work& work) {
    const int64_t begin = next_.fetch_add(claim_, std::memory_order_relaxed);
    const int64_t end = std::min(begin + claim_, first_chunk_.back());
    if (begin >= end) return false;
    // The last task whose first chunk is not beyond `begin`: tasks without elements have no chunk.
    int64_t task_index = std::upper_bound(first_chunk_.begin(), first_chunk_.end(), begin) - first_chunk_.begin() - 1;
    for (int64_t chunk = begin; chunk < end;) {
      while (first_chunk_[task_index + 1] <= chunk) ++task_index;
      const int64_t chunk_end = std::min(end, first_chunk_[task_index + 1]);
      const int64_t from = (chunk - first_chunk_[task_index]) * kChunk;
      const int64_t to = std::min(numels_[task_index], (chunk_end - first_chunk_[task_index]) * kChunk);
      work(task_index, from, to);
      chunk = chunk_end;
    }
    return true;
  }

  void stop() { next_.store(first_chunk_.back(), std::memory_order_relaxed); }

 private:
  const std::vector<int64_t>& numels_;
  std::vector<int64_t> first_chunk_;  // [tasks + 1], prefix sums
  int64_t claim_;                     // chunks
  std::atomic<int64_t> next_{0};
};

// Calls work(task_index, begin, end) until all elements of all tasks are covered, on `threads` threads at the most, the
// calling one among them. `should_stop` is asked by the calling thread, every 50 ms or so; once it says yes, the work
// stops. Returns whether all was done. Throws std::bad_alloc before the work begins, and never later.
template <class Work>
bool for_all_chunks(const std::vector<int64_t>& numels, int threads, const std::function<bool()>& should_stop,
                    const Work& work) {
  int64_t numel = 0;
  for (const int64_t each : numels) numel += each;
  threads = static_cast<int>(std::clamp<int64_t>(numel / kLeastPerThread, 1, std::max(1, threads)));
  ChunkQueue queue(numels, threads);

  Workers workers(threads - 1, [&](int) {
    const DefaultFpEnvironment environment;
    while (queue.take_claim(work)) {
    }
    finish_streaming();
  });
  bool stopped = false;
  {
    const DefaultFpEnvironment environment;
    Poll poll(should_stop);
    while (queue.take_claim(work)) {
      if (!poll()) continue;
      stopped = true;
      queue.stop();
    }
    finish_streaming();
  }
  workers.join();
  return !stopped;
}

}  // namespace fastinit
