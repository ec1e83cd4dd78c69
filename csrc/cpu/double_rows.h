// The table of the quantile in double, row by row: what one value needs lies in two cache lines.
#pragma once

#include "core/quantile.h"

namespace fastinit {
inline namespace FASTINIT_ISA {

constexpr int kDoubleRowPowers = 16;  // 15 and a zero
// By the bits of a double: its exponent is biased by 1023, a float's by 127 (see normal_quantile).
constexpr int kFirstDoubleRow = 1792 + kQuantileFirstRow;

struct DoubleRows {
  double row[kQuantileRows][kDoubleRowPowers];
};

constexpr DoubleRows double_rows() {
  DoubleRows rows{};
  for (int row = 0; row < kQuantileRows; ++row) {
    for (int power = 0; power < kQuantilePowersF64; ++power) rows.row[row][power] = kQuantileF64[power][row];
  }
  return rows;
}

alignas(64) constexpr DoubleRows kDoubleRows = double_rows();

}  // namespace FASTINIT_ISA
}  // namespace fastinit
