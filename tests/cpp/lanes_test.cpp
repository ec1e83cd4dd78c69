// Every instruction set of this processor, against digests of what version 1 of the stream gives: on a processor
// without Python (under an emulator, say) they stand for the golden vectors, which hold the same values. Exits with 1
// if any differs. The digests were made on x86-64, with code that tests/test_golden.py holds against the vectors.
#include <cstdio>
#include <cstring>
#include <vector>

#include "backends.h"
#include "core/prepare.h"
#include "cpu/matrix_steps.h"

using namespace fastinit;

namespace {

constexpr uint64_t kSeed = 2026;
int failures = 0;

bool never() { return false; }

// FNV-1a, of bytes in the order of a little-endian machine.
class Digest {
 public:
  void add(const void* bytes, size_t count) {
    const auto* byte = static_cast<const unsigned char*>(bytes);
    for (size_t i = 0; i < count; ++i) state_ = (state_ ^ byte[i]) * 0x100000001B3;
  }
  uint64_t value() const { return state_; }

 private:
  uint64_t state_ = 0xCBF29CE484222325;
};

void check(const char* isa, const char* what, uint64_t got, uint64_t wanted) {
  if (got == wanted) return;
  ++failures;
  std::printf("%s, %s: digest %016llx, expected %016llx\n", isa, what, static_cast<unsigned long long>(got),
              static_cast<unsigned long long>(wanted));
}

struct Case {
  const char* name;
  Distribution distribution;
  double parameter[4];
  uint64_t digests[4];  // float32, float64, float16, bfloat16
};

constexpr Case kCases[] = {
    {"uniform",
     Distribution::kUniform,
     {-0.3, 1.1},
     {0xC19D216717F5B125, 0xC4910651BE86A5BA, 0xFCF51763D31FD9C2, 0xA3C75A7BD29B44A2}},
    {"normal",
     Distribution::kNormal,
     {0.0, 1.0},
     {0xC34D605660620BC9, 0x2F1E93C048F4B2F0, 0x685980FC5EFBAD74, 0x9F08381269654A5D}},
    {"normal, shifted",
     Distribution::kNormal,
     {-1.5, 0.02},
     {0x4F54B83EA3C4AB45, 0x0949E84FBA6253FF, 0x3B8BF8298761E7F5, 0x80C0A218AB20A16F}},
    {"normal, subnormal",
     Distribution::kNormal,
     {0.0, 1e-39},
     {0x8E0F1080CB82296F, 0x4EC7029F725B4C6A, 0xF36C350E54D76FD1, 0x3A8CC7A094357738}},
    {"truncated",
     Distribution::kTruncNormal,
     {0.0, 1.0, -2.0, 2.0},
     {0x5D0C393EF901496E, 0x5D087BD978DDBAB7, 0xB226B2098AA62B31, 0x80729A59A5381196}},
    {"truncated, one-sided",
     Distribution::kTruncNormal,
     {0.1, 0.7, -0.4, 9.0},
     {0x41F467C06DD85AE5, 0x93E59CAE3C414E90, 0xD3457C930C77527D, 0xF4ABD6AEBC7E322E}},
    {"truncated to a tail",
     Distribution::kTruncNormal,
     {0.0, 1.0, 4.5, 7.0},
     {0x1FAB79E195D4E9D6, 0x46BF09BE7550EE78, 0x1C9DAC2A89441DC2, 0x128C0C090B5B7CE3}},
};

// Whole, from an index within a block, beyond 2^32 blocks, short, and with steps in memory.
constexpr struct {
  int64_t numel, index, memory_step;
} kParts[] = {{100003, 0, 1}, {1009, 5, 1}, {1031, (int64_t{1} << 34) - 301, 1}, {7, 3, 1}, {515, 2, 3}};

uint64_t filled(const Case& of, int dtype, const char* isa) {
  Digest digest;
  for (const auto& part : kParts) {
    Task task{};
    task.dtype = static_cast<Dtype>(dtype);
    const size_t bytes = static_cast<size_t>(part.numel * part.memory_step * element_bytes(task.dtype));
    std::vector<unsigned char> memory(bytes, 7);
    task.data = reinterpret_cast<uint64_t>(memory.data());
    task.numel = task.map.row_length = part.numel;
    task.map.global_offset = part.index;
    task.map.rows_per_slab = 1;
    task.map.element_memory_step = part.memory_step;
    task.name_id[0] = 0x0123456789ABCDEF;
    task.name_id[1] = 0xFEDCBA9876543210;
    task.distribution = of.distribution;
    memcpy(task.parameter, of.parameter, sizeof(of.parameter));
    if (prepare(task) != PrepareError::kNone) return 0;
    fill_cpu(&task, 1, kSeed, 1, isa, never);
    digest.add(memory.data(), memory.size());
  }
  return digest.value();
}

constexpr int64_t kRows = 150, kColumns = 67;

OrthogonalMatrix matrix_in(std::vector<unsigned char>& memory, Dtype dtype) {
  memory.assign(static_cast<size_t>(kRows * kColumns * element_bytes(dtype)), 0);
  OrthogonalMatrix matrix{};
  matrix.data = reinterpret_cast<uint64_t>(memory.data());
  matrix.rows = matrix.end_row = kRows;
  matrix.columns = matrix.end_column = kColumns;
  matrix.row_memory_step = matrix.row_index_step = kColumns;
  matrix.column_memory_step = matrix.column_index_step = 1;
  matrix.gain = 1.5;
  matrix.dtype = dtype;
  return matrix;
}

uint64_t digest_of(const std::vector<unsigned char>& memory) {
  Digest digest;
  digest.add(memory.data(), memory.size());
  return digest.value();
}

uint64_t orthogonal(Dtype dtype, const char* isa) {
  std::vector<unsigned char> memory;
  const OrthogonalMatrix matrix = matrix_in(memory, dtype);
  orthogonal_cpu(&matrix, 1, kSeed, 1, isa, never);
  return digest_of(memory);
}

#if defined(__x86_64__)
// The same matrix, so many columns together, whatever cache this processor has.
uint64_t orthogonal_together(const MatrixSteps& steps, int together) {
  Task normal{};
  normal.dtype = Dtype::kFloat32;
  normal.distribution = Distribution::kNormal;
  normal.parameter[1] = 1.0;
  if (prepare(normal) != PrepareError::kNone) return 0;
  std::vector<unsigned char> memory;
  const OrthogonalMatrix matrix = matrix_in(memory, Dtype::kFloat32);
  std::vector<float> vectors(static_cast<size_t>(vector_entries(matrix))), taus(kColumns);
  std::vector<float> scratch(static_cast<size_t>(scratch_entries(matrix)));
  const MatrixWork work{matrix, derive_stream(matrix.name_id, kSeed), normal.sampler, vectors.data(), taus.data()};
  for (int64_t unit = 0; unit < sample_units(matrix); ++unit) steps.sample(work, unit, scratch.data());
  for (int64_t j = 0; j < kColumns; ++j) steps.make(work, j);
  for (int64_t first = 0; first < kColumns; first += together) steps.multiply(work, first, together, scratch.data());
  return digest_of(memory);
}
#endif

uint64_t fingerprint(const char* isa) {
  std::vector<uint32_t> read(10007);
  for (size_t i = 0; i < read.size(); ++i) read[i] = static_cast<uint32_t>(i * i);
  FingerprintTask task{};
  task.data = reinterpret_cast<uint64_t>(read.data());
  task.numel = static_cast<int64_t>(read.size());
  task.element_bytes = 4;
  task.key = 99;
  for (FingerprintTask::Dimension& dimension : task.dimension) dimension = {1, 1, 1};
  task.dimension[kFingerprintDimensions - 1].size = task.numel;
  uint64_t sum = 0;
  fingerprint_cpu(&task, 1, 1, isa, &sum, never);
  return sum;
}

}  // namespace

int main() {
  for (int set = 0; set < kInstructionSets; ++set) {
    if (!instruction_sets()[set].supported) continue;
    const char* const isa = instruction_sets()[set].name;
    for (const Case& each : kCases) {
      for (int dtype = 0; dtype < 4; ++dtype) check(isa, each.name, filled(each, dtype, isa), each.digests[dtype]);
    }
    check(isa, "orthogonal, float32", orthogonal(Dtype::kFloat32, isa), 0x9A4C5E4383D995C4);
    check(isa, "orthogonal, float64", orthogonal(Dtype::kFloat64, isa), 0x4A884BD0D2B49AEA);
#if defined(__x86_64__)
    if (strcmp(isa, "avx512") == 0) {
      const MatrixSteps& steps = kMatrixStepsAvx512;
      check(isa, "orthogonal, most columns", orthogonal_together(steps, steps.floats.together), 0x9A4C5E4383D995C4);
      check(isa, "orthogonal, fewer", orthogonal_together(steps, steps.floats.fewer), 0x9A4C5E4383D995C4);
    }
#endif
    check(isa, "fingerprint", fingerprint(isa), 0x9D3B27BAE983BE47);
    std::printf("lanes_test: %s looked at\n", isa);
  }
  std::printf(failures == 0 ? "lanes_test: passed\n" : "lanes_test: %d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
