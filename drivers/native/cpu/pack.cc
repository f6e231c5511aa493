// Matrices into panels and back: at load time, some rows at a time, by several threads.
//
// Rows [first_row, end_row) must begin at a multiple of 16 and end at one or at the matrix's end; what pads the last panel is written with
// it. Integers are symmetric here: w = scale * (q - zero point).
#include <vector>

#include "linear.h"
#include "quantize.h"

namespace kd {
namespace {

enum class Source : int32_t { f32 = 0, bf16 = 1, f16 = 2 };

uint16_t half_of(float x) {  // nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (size >= 0x477fe000) return uint16_t(sign | 0x7bff);  // the largest there is
  if (size >= 0x38800000) return uint16_t(sign | (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13);
  float small;  // a subnormal half: the sum rounds it to a multiple of 2^-24
  std::memcpy(&small, &size, 4);
  small += 0.5f;
  uint32_t rounded;
  std::memcpy(&rounded, &small, 4);
  return uint16_t(sign | (rounded - 0x3f000000));
}

void read_source(const void* source, Source kind, size_t first, int count, float* out) {
  const uint16_t* halves = static_cast<const uint16_t*>(source) + first;
  if (kind == Source::f32) std::memcpy(out, static_cast<const float*>(source) + first, sizeof(float) * count);
  if (kind == Source::bf16)
    for (int k = 0; k < count; k++) out[k] = float_of_bf16(halves[k]);
  if (kind == Source::f16)
    for (int k = 0; k < count; k++) out[k] = float_of_half(halves[k]);
}

// One panel of a matrix, as it is being written.
struct Panel {
  const Matrix& matrix;
  int index;
  uint8_t* values() const { return static_cast<uint8_t*>(const_cast<void*>(matrix.values)) + index * panel_bytes(matrix); }
  size_t scale_index(int group, int row) const { return (size_t(index) * num_groups(matrix) + group) * PANEL_ROWS + row; }

  void put_floats(const float* lanes) const {  // [columns][16], padded by zeros to whole steps
    if (matrix.kind == Kind::f32) {
      std::memcpy(values(), lanes, panel_bytes(matrix));
      return;
    }
    uint16_t* to = reinterpret_cast<uint16_t*>(values());
    for (int step = 0; step < num_steps(matrix); step++, lanes += 2 * LANES, to += 2 * LANES)
      for (int row = 0; row < LANES; row++) {
        to[2 * row] = bf16_of(lanes[row]);
        to[2 * row + 1] = bf16_of(lanes[LANES + row]);
      }
  }

  void put_code_lanes(const int8_t* codes) const {  // of quantize_lanes, padded to whole steps
    uint8_t* to = values();
    const bool is_wide = matrix.kind == Kind::u8;
    for (int step = 0; step < num_steps(matrix); step++, codes += (is_wide ? 4 : 8) * LANES, to += RAW_BYTES)
      for (int row = 0; row < LANES; row++)
        for (int j = 0; j < 4; j++) {
          const uint8_t code = uint8_t(codes[j * LANES + row]);
          to[4 * row + j] = is_wide ? code ^ 0x80 : uint8_t(code | codes[(4 + j) * LANES + row] << 4);
        }
  }

  void put_codes(int row, const uint8_t* codes) const {  // padded to whole steps
    uint8_t* to = values() + 4 * row;
    const int steps = num_steps(matrix);
    if (matrix.kind == Kind::u8) {
      for (int step = 0; step < steps; step++) std::memcpy(to + size_t(step) * RAW_BYTES, codes + 4 * step, 4);
      return;
    }
    for (int step = 0; step < steps; step++)
      for (int j = 0; j < 4; j++) to[size_t(step) * RAW_BYTES + j] = uint8_t(codes[8 * step + j] | codes[8 * step + 4 + j] << 4);
  }

  void put_scale(int row, int group, float scale) const {
    void* scales = const_cast<void*>(matrix.scales);
    if (matrix.group)
      static_cast<uint16_t*>(scales)[scale_index(group, row)] = half_of(scale);
    else
      static_cast<float*>(scales)[scale_index(group, row)] = scale;
  }

  void put_offset(int row, int group, float offset) const {
    static_cast<float*>(const_cast<void*>(matrix.offsets))[scale_index(group, row)] = offset;
  }

  void clear() const {
    std::memset(values(), 0, panel_bytes(matrix));
    if (!is_integer(matrix.kind)) return;
    for (int group = 0; group < num_groups(matrix); group++)
      for (int row = 0; row < PANEL_ROWS; row++) {
        put_scale(row, group, 0);
        if (matrix.offsets) put_offset(row, group, 0);
      }
  }
};

float scale_at(const Matrix& matrix, int row, int group) {
  const size_t at = (size_t(row / PANEL_ROWS) * num_groups(matrix) + group) * PANEL_ROWS + row % PANEL_ROWS;
  return matrix.group ? float_of_half(static_cast<const uint16_t*>(matrix.scales)[at]) : static_cast<const float*>(matrix.scales)[at];
}

// What is taken from a code before it is scaled, and after.
struct Offset {
  int before;
  float after;
};

Offset offset_at(const Matrix& matrix, int row, int group) {
  const size_t at = (size_t(row / PANEL_ROWS) * num_groups(matrix) + group) * PANEL_ROWS + row % PANEL_ROWS;
  return matrix.offsets ? Offset{0, static_cast<const float*>(matrix.offsets)[at]} : Offset{zero_point(matrix.kind), 0};
}

int code_at(const Matrix& matrix, const uint8_t* row_start, int column) {
  if (matrix.kind == Kind::u8) return row_start[size_t(column / 4) * RAW_BYTES + column % 4];
  return row_start[size_t(column / 8) * RAW_BYTES + column % 4] >> (column % 8 >= 4 ? 4 : 0) & 15;
}

void quantize_panel(const Panel& panel, const float* lanes, int8_t* codes) {
  const Matrix& matrix = panel.matrix;
  const int group_columns = matrix.group ? matrix.group : matrix.columns;
  float scales[LANES];
  for (int k = 0, group = 0; k < matrix.columns; k += group_columns, group++) {
    const int count = matrix.columns - k < group_columns ? matrix.columns - k : group_columns;
    store(scales, scales_of(lanes + size_t(k) * LANES, count, matrix.kind));
    for (int row = 0; row < LANES; row++) {
      panel.put_scale(row, group, scales[row]);
      scales[row] = scale_at(matrix, panel.index * PANEL_ROWS + row, group);  // as it was rounded
    }
    quantize_lanes(lanes + size_t(k) * LANES, count, scales, matrix.kind, codes + size_t(k) * LANES);
  }
  panel.put_code_lanes(codes);
}

}  // namespace

void read_row(const Matrix& matrix, int row, float* out) {
  const uint8_t* panel = static_cast<const uint8_t*>(matrix.values) + row / PANEL_ROWS * panel_bytes(matrix);
  const int lane = row % PANEL_ROWS;
  if (matrix.kind == Kind::f32) {
    for (int k = 0; k < matrix.columns; k++) out[k] = reinterpret_cast<const float*>(panel)[size_t(k) * PANEL_ROWS + lane];
  } else if (matrix.kind == Kind::bf16) {
    const uint16_t* pairs = reinterpret_cast<const uint16_t*>(panel) + 2 * lane;
    for (int k = 0; k < matrix.columns; k++) out[k] = float_of_bf16(pairs[size_t(k / 2) * 2 * PANEL_ROWS + k % 2]);
  } else {
    const int group_columns = matrix.group ? matrix.group : matrix.columns;
    for (int first = 0, group = 0; first < matrix.columns; first += group_columns, group++) {
      const float scale = scale_at(matrix, row, group);
      const Offset offset = offset_at(matrix, row, group);
      const int end = first + group_columns < matrix.columns ? first + group_columns : matrix.columns;
      for (int k = first; k < end; k++) out[k] = scale * float(code_at(matrix, panel + 4 * lane, k) - offset.before) - offset.after;
    }
  }
}

}  // namespace kd

using namespace kd;

// Rows [first_row, end_row) of row-major floats, of which `source` is row `first_row` and `stride` the numbers from one to the next; kept
// as they are, rounded to bfloat16, or quantized.
KD_EXPORT void kd_pack(const Matrix* matrix, int first_row, int end_row, const void* source, int64_t stride, int32_t source_kind) {
  const size_t padded = rounded_up(matrix->columns, 8);
  std::vector<float> values(padded), lanes(padded * LANES);
  std::vector<int8_t> codes(padded * LANES);
  for (int first = first_row; first < end_row; first += PANEL_ROWS) {
    const int count = end_row - first < PANEL_ROWS ? end_row - first : PANEL_ROWS;
    if (count < PANEL_ROWS) std::fill(lanes.begin(), lanes.end(), 0.0f);
    for (int row = 0; row < count; row++) {
      read_source(source, Source(source_kind), size_t(first - first_row + row) * stride, matrix->columns, values.data());
      for (int k = 0; k < matrix->columns; k++) lanes[size_t(k) * LANES + row] = values[k];
    }
    const Panel panel = {*matrix, first / PANEL_ROWS};
    if (is_integer(matrix->kind))
      quantize_panel(panel, lanes.data(), codes.data());
    else
      panel.put_floats(lanes.data());
  }
}

// The same of integers, one in a byte, with float32 scales and offsets (null: symmetric) [rows][groups] of these rows.
KD_EXPORT void kd_pack_codes(const Matrix* matrix, int first_row, int end_row, const uint8_t* codes, int64_t stride, const float* scales,
                             const float* offsets) {
  std::vector<uint8_t> padded(rounded_up(matrix->columns, LANES), 0);
  const int groups = num_groups(*matrix);
  for (int row = first_row; row < end_row; row++) {
    const Panel panel = {*matrix, row / PANEL_ROWS};
    const size_t at = size_t(row - first_row);
    if (row % PANEL_ROWS == 0) panel.clear();
    std::memcpy(padded.data(), codes + at * stride, matrix->columns);
    panel.put_codes(row % PANEL_ROWS, padded.data());
    for (int group = 0; group < groups; group++) {
      panel.put_scale(row % PANEL_ROWS, group, scales[at * groups + group]);
      if (matrix->offsets) panel.put_offset(row % PANEL_ROWS, group, offsets[at * groups + group]);
    }
  }
}

// Rows as float32, row-major.
KD_EXPORT void kd_unpack(const Matrix* matrix, int first_row, int end_row, float* out, int64_t stride) {
  for (int row = first_row; row < end_row; row++) read_row(*matrix, row, out + size_t(row - first_row) * stride);
}

// Rows of `units` 32-bit units, whatever these hold, as panels: sixteen rows on their side, the last panel filled up with zeros.
KD_EXPORT void kd_turn(const uint32_t* source, size_t rows, size_t units, uint32_t* panels) {
  for (size_t first = 0; first < rows; first += PANEL_ROWS, panels += PANEL_ROWS * units) {
    const size_t count = rows - first < PANEL_ROWS ? rows - first : PANEL_ROWS;
    if (count < PANEL_ROWS) std::memset(panels, 0, sizeof(uint32_t) * PANEL_ROWS * units);
    for (size_t row = 0; row < count; row++)
      for (size_t unit = 0; unit < units; unit++) panels[unit * PANEL_ROWS + row] = source[(first + row) * units + unit];
  }
}
