// Inputs of a linear as its kernel wants them.
#include <limits>

#include "linear.h"

namespace kd {
namespace {

void to_floats(const float* x, int columns, float* out) {
  const int end = int(rounded_up(columns, LANES));
  for (int k = 0; k < end; k += LANES) store(out + k, columns - k >= LANES ? load(x + k) : load_part(x + k, columns - k));
}

void to_bf16_padded(const float* x, int columns, uint16_t* out) {
  int k = 0;
  for (; k + LANES <= columns; k += LANES) store_bf16(out + k, load(x + k));
  if (k < columns) store_bf16(out + k, load_part(x + k, columns - k));
  for (k = int(rounded_up(columns, LANES)); k < int(rounded_up(columns, 32)); k += LANES) store_bf16(out + k, all(0));
}

// Round x to steps of a 127th of its largest magnitude; returns the step. A row that is not finite has a step of NaN, so that it poisons
// all of its outputs and nothing else; one of zeros, or of values below 2^-100, a step of zero.
float to_bytes(const float* x, int columns, int8_t* out) {
  Ints largest = all_ints(0);
  for (int k = 0; k < columns; k += LANES)
    largest = larger(largest, magnitude_bits(columns - k >= LANES ? load(x + k) : load_part(x + k, columns - k)));
  const int32_t bits = largest_of(largest);
  float magnitude;
  std::memcpy(&magnitude, &bits, 4);
  const bool is_finite = bits < 0x7f800000, is_zero = magnitude < 0x1p-100f;
  if (!is_finite || is_zero) {
    std::memset(out, 0, rounded_up(columns, 64));
    return is_finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  }
  const Floats steps = all(127.0f / magnitude);
  const int end = int(rounded_up(columns, 64));
  for (int k = 0; k < end; k += LANES) {
    const int count = columns - k;
    const Floats value = count >= LANES ? load(x + k) : count > 0 ? load_part(x + k, count) : all(0);
    store_bytes(out + k, nearest_ints(value * steps));
  }
  return magnitude / 127.0f;
}

int32_t sum_of_bytes(const int8_t* values, int count) {
  int32_t sum = 0;
  for (int k = 0; k < count; k++) sum += values[k];
  return sum;
}

void write_corrections(const Matrix& matrix, const int8_t* values, void* corrections) {
  const int group = matrix.group ? matrix.group : matrix.columns;
  int index = 0;
  for (int k = 0; k < matrix.columns; k += group, index++) {
    const int32_t sum = sum_of_bytes(values + k, matrix.columns - k < group ? matrix.columns - k : group);
    if (matrix.offsets)
      static_cast<float*>(corrections)[index] = float(-sum);
    else
      static_cast<int32_t*>(corrections)[index] = -zero_point(matrix.kind) * sum;
  }
}

}  // namespace

size_t prepared_bytes(const Matrix& matrix, int num_tokens) { return prepared_layout(matrix, num_tokens).size; }

void prepare(const Matrix& matrix, const float* x, size_t x_stride, int first_token, int end_token, int num_tokens, void* prepared) {
  const Prepared layout = prepared_layout(matrix, num_tokens);
  uint8_t* start = static_cast<uint8_t*>(prepared);
  float* scales = reinterpret_cast<float*>(start + layout.scales);
  for (int token = first_token; token < end_token; token++) {
    const float* row = x + token * x_stride;
    uint8_t* values = start + token * layout.stride;
    if (matrix.kind == Kind::f32) {
      to_floats(row, matrix.columns, reinterpret_cast<float*>(values));
    } else if (matrix.kind == Kind::bf16) {
      to_bf16_padded(row, matrix.columns, reinterpret_cast<uint16_t*>(values));
    } else {
      int8_t* bytes = reinterpret_cast<int8_t*>(values);
      scales[token] = to_bytes(row, matrix.columns, bytes);
      write_corrections(matrix, bytes, start + layout.corrections + sizeof(int32_t) * layout.groups * token);
    }
  }
}

}  // namespace kd
