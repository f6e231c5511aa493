// What the files of the linears share: where prepared inputs lie, and where a panel does.
#pragma once

#include "kernels.h"
#include "products.h"

namespace kd {

constexpr int PANEL_ROWS = 16;
constexpr int RAW_BYTES = 64;  // what one step over a panel reads: some columns of sixteen rows

inline int columns_of_step(Kind kind) { return kind == Kind::f32 ? 1 : kind == Kind::bf16 ? 2 : kind == Kind::u8 ? 4 : 8; }
inline int num_steps(const Matrix& matrix) {
  const int columns = columns_of_step(matrix.kind);
  return (matrix.columns + columns - 1) / columns;
}
inline size_t panel_bytes(const Matrix& matrix) { return size_t(num_steps(matrix)) * RAW_BYTES; }
inline int num_groups(const Matrix& matrix) { return matrix.group ? (matrix.columns + matrix.group - 1) / matrix.group : 1; }
inline bool is_integer(Kind kind) { return kind == Kind::u8 || kind == Kind::u4; }
inline int zero_point(Kind kind) { return kind == Kind::u8 ? 128 : 8; }  // of symmetric integers
inline size_t rounded_up(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

// Prepared inputs: the values of one token after the other, padded by zeros; then, for integers, the scale of each token and, for each
// group, what stands for the sum of its values: for symmetric weights the integer `-zero point * sum`, with which a sum of products begins;
// with offsets the float `-sum`, by which the offset is multiplied.
struct Prepared {
  size_t stride;  // bytes of a token's values
  size_t scales, corrections;
  int groups;
  size_t size;
};

inline Prepared prepared_layout(const Matrix& matrix, int num_tokens) {
  const size_t item = matrix.kind == Kind::f32 ? 4 : matrix.kind == Kind::bf16 ? 2 : 1;
  Prepared layout;
  layout.stride = rounded_up(matrix.columns * item, 64);
  layout.groups = is_integer(matrix.kind) ? num_groups(matrix) : 0;
  layout.scales = layout.stride * num_tokens;
  layout.corrections = layout.scales + (layout.groups ? rounded_up(sizeof(float) * num_tokens, 64) : 0);
  layout.size = rounded_up(layout.corrections + sizeof(int32_t) * layout.groups * num_tokens, 64);
  return layout;
}

}  // namespace kd
