// Single sparse matrices. Larger ones, and parts of them, are made of calls of torch (fastinit/run/engine.py).
#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "backends.h"

namespace fastinit {

bool sparse_cpu(const Task& values, const Task& keys, int64_t rows, int64_t zeros, uint64_t seed, int threads,
                const char* isa, const std::function<bool()>& should_stop) {
  std::vector<double> drawn(static_cast<size_t>(keys.numel));
  std::vector<int64_t> order(static_cast<size_t>(rows));
  Task to_drawn = keys;
  to_drawn.data = reinterpret_cast<uint64_t>(drawn.data());
  if (!fill_cpu(&to_drawn, 1, seed, threads, isa, should_stop)) return false;
  if (!fill_cpu(&values, 1, seed, threads, isa, should_stop)) return false;

  const int64_t columns = values.numel / rows;
  const size_t bytes = static_cast<size_t>(element_bytes(values.dtype));
  auto* const matrix = reinterpret_cast<unsigned char*>(values.data);
  for (int64_t column = 0; column < columns; ++column) {
    const double* const key = &drawn[static_cast<size_t>(column * rows)];
    std::iota(order.begin(), order.end(), int64_t{0});
    const auto is_before = [key](int64_t a, int64_t b) { return key[a] < key[b] || (key[a] == key[b] && a < b); };
    if (zeros < rows) std::nth_element(order.begin(), order.begin() + zeros, order.end(), is_before);
    for (int64_t i = 0; i < zeros; ++i) {
      std::memset(matrix + static_cast<size_t>(order[static_cast<size_t>(i)] * columns + column) * bytes, 0, bytes);
    }
  }
  return true;
}

}  // namespace fastinit
