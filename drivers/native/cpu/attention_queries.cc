// The queries of a tile as words, in the kind that their keys are in.
#include "attention.h"
#include "functions.h"
#include "kv.h"
#include "products.h"

namespace kd {

namespace {

constexpr int DIGIT = 256;
constexpr float MOST_DIGITS = 127 * DIGIT + 127;  // the upper digit has to fit into eight bits, with its sign

// Sixteen bits by query, so that little is lost but what the keys have lost: 32639 steps from zero to the greatest.
void pack_digits(const float* x, int head_dim, uint32_t* at, int step, int part, float* factor, int32_t* offsets) {
  Ints bits = all_ints(0);  // of which NaN are the greatest
  for (int d = 0; d < head_dim; d += LANES) bits = larger(bits, magnitude_bits(load(x + d)));
  const int32_t most_bits = largest_of(bits);
  float most;
  std::memcpy(&most, &most_bits, 4);
  const Floats inverse = all(most > 0.0f && most < INFINITE ? MOST_DIGITS / most : 0.0f);
  *factor *= most / MOST_DIGITS;
  Floats highs = all(0.0f), lows = all(0.0f);
  for (int d = 0; d < head_dim; d += LANES) {
    const Floats scaled = load(x + d) * inverse, whole = nearest(select(is_nan(scaled), all(0.0f), scaled));
    const Floats high = nearest(fma(whole, all(1.0f / DIGIT), all(1.0f / (4 * DIGIT)))), low = fma(high, all(-DIGIT), whole);
    int8_t digits[2][LANES];  // the lower ones in [-128, 127]: halves go up
    store_bytes(digits[0], nearest_ints(high)), store_bytes(digits[1], nearest_ints(low));
    highs = highs + high, lows = lows + low;
    for (int w = 0; w < LANES / 4; w++)
      for (int p = 0; p < 2; p++) std::memcpy(at + ((d / 4 + w) * 2 + p) * step, digits[p] + 4 * w, 4);
  }
  offsets[0] = -128 * int32_t(sum(highs)), offsets[part] = -128 * int32_t(sum(lows));  // keys are taken 128 too large
}

}  // namespace

void pack_query(Kind kind, const float* x, int head_dim, uint32_t* at, int step, int part, float* factor, int32_t* offsets) {
  if (kind == Kind::u8) return pack_digits(x, head_dim, at, step, part, factor, offsets);
  if (kind == Kind::f32) {
    for (int d = 0; d < head_dim; d++) std::memcpy(at + d * step, x + d, 4);
  } else {
    alignas(64) uint16_t halves[MOST_HEAD_DIM];
    for (int d = 0; d < head_dim; d += LANES) store_bf16(halves + d, load(x + d));
    for (int w = 0; w < head_dim / 2; w++) std::memcpy(at + w * step, halves + 2 * w, 4);
  }
}

}  // namespace kd
