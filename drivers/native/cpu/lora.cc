// What one adapter changes of one token's linear: delta = (x down^T) up, with down [rank, columns], up [rank, rows], its scale in up.
//
// Everything is float32 but the weights; sums are kept in sixteen lanes, in the order of the columns, whatever else the step has. Up is
// zero outside of its blocks, which are not read.

#include <cstring>

#include "engine.h"
#include "functions.h"

namespace kd {
namespace {

KD_INLINE Floats weights_at(const float* from) { return load(from); }
KD_INLINE Floats weights_at(const uint16_t* from) { return from_bf16(from); }
KD_INLINE float weight_at(const float* from) { return *from; }
KD_INLINE float weight_at(const uint16_t* from) {
  float value;
  from_bf16(from, 1, &value);
  return value;
}

template <class Item>
float dot(const Item* row, const float* x, int columns) {
  Floats sums = all(0.0f);
  int at = 0;
  for (; at + LANES <= columns; at += LANES) sums = fma(weights_at(row + at), load(x + at), sums);
  float total = sum(sums);
  for (; at < columns; at++) total += weight_at(row + at) * x[at];
  return total;
}

template <class Item>
void add_scaled(const Item* row, float factor, int width, float* to) {
  int at = 0;
  for (; at + LANES <= width; at += LANES) store(to + at, fma(weights_at(row + at), all(factor), load(to + at)));
  for (; at < width; at++) to[at] += weight_at(row + at) * factor;
}

template <class Item>
void change(const LoraPair& pair, const float* x, int columns, int rows, float* delta) {
  const Item *down = static_cast<const Item*>(pair.down), *up = static_cast<const Item*>(pair.up);
  for (uint64_t idx = 0; idx < pair.num_blocks; idx++) {
    const LoraBlock& block = pair.blocks[idx];
    for (size_t rank = block.first_rank; rank < block.end_rank; rank++) {
      float inner = dot(down + rank * columns, x, columns);
      add_scaled(up + rank * rows + block.first_row, inner, static_cast<int>(block.end_row - block.first_row), delta + block.first_row);
    }
  }
}

}  // namespace

void lora_delta(const LoraPair& pair, bool is_bf16, const float* x, int columns, int rows, float* delta) {
  memset(delta, 0, rows * sizeof(float));
  is_bf16 ? change<uint16_t>(pair, x, columns, rows, delta) : change<float>(pair, x, columns, rows, delta);
}

}  // namespace kd
