// Matrices into panels and back: at load time, some rows at a time, by several threads.
//
// Rows [first_row, end_row) must begin at a multiple of 16 and end at one or at the matrix's end; what pads the last panel is written with
// it. Integers are symmetric here: w = scale * (q - zero point).
#include <vector>

#include "linear.h"

namespace kd {
namespace {

enum class Source : int32_t { f32 = 0, bf16 = 1, f16 = 2 };

constexpr int CANDIDATES = 9;  // scales tried to either side of the plain one, a tenth of a step apart

uint16_t half_of(float x) {  // nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (size >= 0x477ff000) return uint16_t(sign | 0x7c00);
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

struct Range {
  float magnitude, extreme;  // largest magnitude, and the value that has it
  bool is_finite;
};

Range range_of(const float* values, int count) {
  Range range = {0, 0, true};
  for (int k = 0; k < count; k++) {
    const float size = std::fabs(values[k]);
    if (!(size <= 3.4028235e38f)) range.is_finite = false;
    if (size > range.magnitude) range = {size, values[k], range.is_finite};
  }
  return range;
}

// How well `values` are told by integers of at most 4 bits with the inverse scale: what a scale fitted to them takes off the squared error,
// and that scale. `count` is padded to a multiple of 16 by zeros.
struct Fit {
  float gain, scale;
};

Fit fit_of(const float* values, int count, float inverse) {
  Floats products = all(0), squares = all(0);
  for (int k = 0; k < count; k += LANES) {
    const Floats value = load(values + k), q = least(greatest(nearest(value * all(inverse)), all(-8)), all(7));
    products = fma(q, value, products);
    squares = fma(q, q, squares);
  }
  const float product = sum(products), square = sum(squares);
  return square > 0 ? Fit{product * product / square, product / square} : Fit{0, 0};
}

// The scale of some values. That of 4 bits is searched for: the extreme value near -8, and then the scale of least squared error. On normal
// random weights in groups of 32 it takes a fifth off the squared error of the largest magnitude over 7.
float scale_of(const float* values, int count, int padded, Kind kind) {
  const Range range = range_of(values, count);
  if (!range.is_finite) return range.magnitude + NAN;
  if (range.magnitude < 0x1p-100f) return 0;
  if (kind == Kind::u8) return range.magnitude / 127;
  Fit best = {0, 0};
  for (int candidate = -CANDIDATES; candidate <= CANDIDATES; candidate++) {
    const Fit fit = fit_of(values, padded, -(8 + 0.1f * candidate) / range.extreme);
    if (fit.gain > best.gain) best = fit;
  }
  return best.scale;
}

void quantize(const float* values, int count, float scale, Kind kind, uint8_t* codes) {
  const int zero = zero_point(kind);
  const float inverse = scale != 0 && std::isfinite(scale) ? 1 / scale : 0;
  for (int k = 0; k < count; k++) {
    const float q = inverse == 0 ? 0 : std::nearbyint(values[k] * inverse);
    codes[k] = uint8_t(zero + (q < -zero ? -zero : q > zero - 1 ? zero - 1 : int(q)));
  }
}

// One panel of a matrix, as it is being written.
struct Panel {
  const Matrix& matrix;
  int index;
  uint8_t* values() const { return static_cast<uint8_t*>(const_cast<void*>(matrix.values)) + index * panel_bytes(matrix); }
  size_t scale_index(int group, int row) const { return (size_t(index) * num_groups(matrix) + group) * PANEL_ROWS + row; }

  void put_floats(int row, const float* source) const {
    if (matrix.kind == Kind::f32) {
      float* to = reinterpret_cast<float*>(values()) + row;
      for (int k = 0; k < matrix.columns; k++) to[size_t(k) * PANEL_ROWS] = source[k];
    } else {
      uint16_t* to = reinterpret_cast<uint16_t*>(values()) + 2 * row;
      for (int k = 0; k < matrix.columns; k++) to[size_t(k / 2) * 2 * PANEL_ROWS + k % 2] = bf16_of(source[k]);
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

void quantize_row(const Panel& panel, int row, const float* values, uint8_t* codes) {
  const Matrix& matrix = panel.matrix;
  const int group_columns = matrix.group ? matrix.group : matrix.columns;
  std::vector<float> padded(rounded_up(group_columns, LANES), 0.0f);
  for (int k = 0, group = 0; k < matrix.columns; k += group_columns, group++) {
    const int count = matrix.columns - k < group_columns ? matrix.columns - k : group_columns;
    std::memcpy(padded.data(), values + k, sizeof(float) * count);
    std::fill(padded.begin() + count, padded.end(), 0.0f);
    panel.put_scale(row, group, scale_of(padded.data(), count, int(padded.size()), matrix.kind));
    quantize(values + k, count, scale_at(matrix, panel.index * PANEL_ROWS + row, group), matrix.kind, codes + k);  // as it was rounded
  }
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
  std::vector<float> values(rounded_up(matrix->columns, LANES), 0.0f);
  std::vector<uint8_t> codes(rounded_up(matrix->columns, LANES), 0);
  for (int row = first_row; row < end_row; row++) {
    const Panel panel = {*matrix, row / PANEL_ROWS};
    if (row % PANEL_ROWS == 0) panel.clear();
    read_source(source, Source(source_kind), size_t(row - first_row) * stride, matrix->columns, values.data());
    if (!is_integer(matrix->kind)) {
      panel.put_floats(row % PANEL_ROWS, values.data());
    } else {
      quantize_row(panel, row % PANEL_ROWS, values.data(), codes.data());
      panel.put_codes(row % PANEL_ROWS, codes.data());
    }
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
