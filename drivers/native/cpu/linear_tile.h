// One tile of a linear: the outputs of a few tokens and a few panels, summed up in registers.
//
// Every output has one accumulator, to which the columns are added in order, whatever the tile's width (kernels.h, rule 1): floats step by
// step; integers exactly within a group, then the groups in order. Where columns are cut into blocks, so that panels stay in the cache for
// many tokens, accumulators are carried over in memory, which rounds nothing.
#pragma once

#include <type_traits>

#include "linear.h"

namespace kd {

struct Work {
  Matrix matrix;
  Prepared layout;
  const uint8_t* prepared;
  const float* bias;
  float* y;
  size_t y_stride;
  bool adds;
  const uint8_t* next;  // panels that are read after these, or null
};

struct Block {
  int first_step, end_step;
  bool is_first, is_last;  // of the columns
  const uint8_t* ahead;    // what will be wanted next: as many lines with every step as there are panels to fetch
  int num_ahead;           // 0, 1 or 2 panels
};

// How the numbers of a kind are multiplied: `add` takes one step over P panels for T tokens.
struct FloatSteps {
  using Sum = Floats;
  static constexpr int COLUMNS = 1, X_BYTES = 4;
  template <int T, int P>
  static KD_INLINE void add(Sum (&sums)[T][P], const uint8_t* weights, size_t panel, const uint8_t* x, size_t x_stride) {
    Floats w[P];
    for (int p = 0; p < P; p++) w[p] = load(reinterpret_cast<const float*>(weights + p * panel));
    for (int t = 0; t < T; t++) {
      const Floats value = all(*reinterpret_cast<const float*>(x + t * x_stride));
      for (int p = 0; p < P; p++) sums[t][p] = fma(w[p], value, sums[t][p]);
    }
  }
};

struct PairSteps {
  using Sum = Floats;
  static constexpr int COLUMNS = 2, X_BYTES = 4;
  template <int T, int P>
  static KD_INLINE void add(Sum (&sums)[T][P], const uint8_t* weights, size_t panel, const uint8_t* x, size_t x_stride) {
    Pairs w[P];
    for (int p = 0; p < P; p++) w[p] = pairs_of(load_raw(weights + p * panel));
    for (int t = 0; t < T; t++) {
      const Pair value = load_pair(x + t * x_stride);
      for (int p = 0; p < P; p++) sums[t][p] = dot(sums[t][p], w[p], value);
    }
  }
};

struct ByteSteps {
  using Sum = Ints;
  static constexpr int COLUMNS = 4, X_BYTES = 4;
  template <int T, int P>
  static KD_INLINE void add(Sum (&sums)[T][P], const uint8_t* weights, size_t panel, const uint8_t* x, size_t x_stride) {
    Quads w[P];
    for (int p = 0; p < P; p++) w[p] = quads_of(load_raw(weights + p * panel));
    for (int t = 0; t < T; t++) {
      const Quad value = load_quad(x + t * x_stride);
      for (int p = 0; p < P; p++) sums[t][p] = dot(sums[t][p], w[p], value);
    }
  }
};

struct NibbleSteps {
  using Sum = Ints;
  static constexpr int COLUMNS = 8, X_BYTES = 8;
  template <int T, int P>
  static KD_INLINE void add(Sum (&sums)[T][P], const uint8_t* weights, size_t panel, const uint8_t* x, size_t x_stride) {
    Raw raw[P];
    Quads w[P];
    for (int p = 0; p < P; p++) raw[p] = load_raw(weights + p * panel);
    for (int p = 0; p < P; p++) w[p] = low_quads(raw[p]);
    for (int t = 0; t < T; t++) {
      const Quad value = load_quad(x + t * x_stride);
      for (int p = 0; p < P; p++) sums[t][p] = dot(sums[t][p], w[p], value);
    }
    for (int p = 0; p < P; p++) w[p] = high_quads(raw[p]);
    for (int t = 0; t < T; t++) {
      const Quad value = load_quad(x + t * x_stride + 4);
      for (int p = 0; p < P; p++) sums[t][p] = dot(sums[t][p], w[p], value);
    }
  }
};

template <class Steps, bool is_grouped>
using Total = std::conditional_t<is_grouped, Floats, typename Steps::Sum>;

// Where the numbers of one tile lie.
struct Place {
  const uint8_t* weights;  // of the first panel
  const uint8_t* x;        // of the first token
  size_t panel, x_stride;
  const int32_t* corrections;  // of the first token; floats where there are offsets
  const float* x_scales;
  int groups, first_panel;
};

KD_INLINE float float_at(const int32_t* corrections, size_t index) {
  float value;
  std::memcpy(&value, corrections + index, 4);
  return value;
}

KD_INLINE void fetch(const uint8_t* ahead, size_t panel, int num_panels) {
  if (num_panels == 0) return;
  __builtin_prefetch(ahead, 0, 2);
  if (num_panels > 1) __builtin_prefetch(ahead + panel, 0, 2);
}

template <class Steps, int T, int P>
KD_INLINE void add_steps(typename Steps::Sum (&sums)[T][P], const Place& at, const Block& block, int first, int end) {
  const uint8_t* weights = at.weights + size_t(first) * RAW_BYTES;
  const uint8_t* x = at.x + size_t(first) * Steps::X_BYTES;
  const uint8_t* ahead = block.ahead + size_t(first - block.first_step) * RAW_BYTES;
  const int num_ahead = block.num_ahead;
  for (int step = first; step < end; step++, weights += RAW_BYTES, x += Steps::X_BYTES, ahead += RAW_BYTES) {
    fetch(ahead, at.panel, num_ahead);
    Steps::template add<T, P>(sums, weights, at.panel, x, at.x_stride);
  }
}

// The corrections that sums of group `group` begin with.
template <int T, int P>
KD_INLINE void begin(Ints (&sums)[T][P], const Work& work, const Place& at, int group) {
  for (int t = 0; t < T; t++) {
    const Ints start = all_ints(work.matrix.offsets ? 0 : at.corrections[t * at.groups + group]);
    for (int p = 0; p < P; p++) sums[t][p] = start;
  }
}
template <int T, int P>
KD_INLINE void begin(Floats (&sums)[T][P], const Work&, const Place&, int) {
  for (int t = 0; t < T; t++)
    for (int p = 0; p < P; p++) sums[t][p] = all(0);
}

template <int T, int P>
KD_INLINE void add_offsets(Floats (&totals)[T][P], const Work& work, const Place& at, int group) {
  for (int p = 0; p < P; p++) {
    const size_t index = size_t(at.first_panel + p) * at.groups + group;
    const Floats offset = load(static_cast<const float*>(work.matrix.offsets) + index * PANEL_ROWS);
    for (int t = 0; t < T; t++) totals[t][p] = fma(offset, all(float_at(at.corrections, t * at.groups + group)), totals[t][p]);
  }
}

template <class Steps, int T, int P>
KD_INLINE void add_groups(Floats (&totals)[T][P], const Work& work, const Place& at, const Block& block) {
  const int steps = work.matrix.group / Steps::COLUMNS;
  const uint16_t* scales = static_cast<const uint16_t*>(work.matrix.scales);
  for (int first = block.first_step, group = first / steps; first < block.end_step; first += steps, group++) {
    Ints sums[T][P];
    begin(sums, work, at, group);
    add_steps<Steps, T, P>(sums, at, block, first, first + steps < block.end_step ? first + steps : block.end_step);
    for (int p = 0; p < P; p++) {
      const Floats scale = load_halves(scales + (size_t(at.first_panel + p) * at.groups + group) * PANEL_ROWS);
      for (int t = 0; t < T; t++) totals[t][p] = fma(floats_of(sums[t][p]), scale, totals[t][p]);
    }
    if (work.matrix.offsets) add_offsets<T, P>(totals, work, at, group);
  }
}

// Totals of floats are outputs; those of groups lack the token's scale; those of whole rows the row's too.
template <int T, int P>
KD_INLINE void scale_rows(Floats (&scaled)[T][P], const Ints (&sums)[T][P], const Work& work, const Place& at) {
  for (int p = 0; p < P; p++) {
    const Floats scale = load(static_cast<const float*>(work.matrix.scales) + size_t(at.first_panel + p) * PANEL_ROWS);
    for (int t = 0; t < T; t++) scaled[t][p] = floats_of(sums[t][p]) * scale;
  }
  if (work.matrix.offsets) add_offsets<T, P>(scaled, work, at, 0);
}

template <bool is_integer, int T, int P>
KD_INLINE void write(const Floats (&totals)[T][P], const Work& work, const Place& at, int token) {
  for (int p = 0; p < P; p++) {
    const int row = (at.first_panel + p) * PANEL_ROWS;
    const int count = work.matrix.rows - row < PANEL_ROWS ? work.matrix.rows - row : PANEL_ROWS;
    const Floats bias = !work.bias ? all(0) : count == PANEL_ROWS ? load(work.bias + row) : load_part(work.bias + row, count);
    for (int t = 0; t < T; t++) {
      float* y = work.y + (token + t) * work.y_stride + row;
      Floats value = totals[t][p];
      if (is_integer) value = value * all(at.x_scales[t]);
      if (work.bias) value = value + bias;
      if (count == PANEL_ROWS) {
        store(y, work.adds ? load(y) + value : value);
      } else {
        store_part(y, work.adds ? load_part(y, count) + value : value, count);
      }
    }
  }
}

template <class Steps, bool is_grouped, int T, int P>
void tile(const Work& work, int panel, int token, const Block& block, void* carry) {
  constexpr bool is_integer = std::is_same_v<typename Steps::Sum, Ints>;
  const Prepared& layout = work.layout;
  const Place at = {static_cast<const uint8_t*>(work.matrix.values) + panel * panel_bytes(work.matrix),
                    work.prepared + token * layout.stride,
                    panel_bytes(work.matrix),
                    layout.stride,
                    reinterpret_cast<const int32_t*>(work.prepared + layout.corrections) + size_t(token) * layout.groups,
                    reinterpret_cast<const float*>(work.prepared + layout.scales) + token,
                    layout.groups,
                    panel};
  Total<Steps, is_grouped> totals[T][P];
  if (block.is_first)
    begin(totals, work, at, 0);
  else
    std::memcpy(totals, carry, sizeof totals);
  if constexpr (is_grouped)
    add_groups<Steps, T, P>(totals, work, at, block);
  else
    add_steps<Steps, T, P>(totals, at, block, block.first_step, block.end_step);
  if (!block.is_last) {
    std::memcpy(carry, totals, sizeof totals);
  } else if constexpr (is_integer && !is_grouped) {
    Floats scaled[T][P];
    scale_rows<T, P>(scaled, totals, work, at);
    write<is_integer, T, P>(scaled, work, at, token);
  } else {
    write<is_integer, T, P>(totals, work, at, token);
  }
}

}  // namespace kd
