// Blocks of f8 become blocks of bf16 (avx512) or f32 (other levels), once for all queries of an item: the same code attends them.
//
// A value is q * scale. As bf16 it loses up to 1/512 of itself, where q had lost up to 1/16. In the place that they have in a float the
// bits of q are a number 2^-120 times as large; multiplied back it is exact, of subnormals too. That comes before the scale, which may be
// great. NaN is read as 480, and is never written: what is no number has a scale that is none.
//
// While a block is widened, the next one is fetched. Measured on a Zen 5, two threads, 135M shape, out of memory, over bfloat16's time:
// one token over 512 to 16,384 keys 0.7 to 1.2 (int8 0.6 to 0.75), a chunk of 512 tokens 1.05 to 1.15 (1.2); as avx2vnni 1.2 to 1.4 (0.75
// to 0.9) and 1.0 (1.0). There, widened to bf16, one token took 2.0 to 2.2 of it: rounding costs more than reading twice as much back.
#include "attention.h"
#include "functions.h"
#include "products.h"

namespace kd {

namespace {

KD_INLINE Floats widened(Raw words, int byte, Floats scales) { return e4m3_bits(words, byte) * all(0x1p120f) * scales; }

// The words of some bytes of sixteen keys.
KD_INLINE void store_words(Wide* p, const Floats* bytes) {
#if KD_AVX512
  store_pairs(p, bytes[0], bytes[1]), store_pairs(p + 2 * GROUP_KEYS, bytes[2], bytes[3]);
#else
  for (int byte = 0; byte < 4; byte++) store(p + byte * GROUP_KEYS, bytes[byte]);
#endif
}

KD_INLINE void store_values(Wide* p, Floats values) {
#if KD_AVX512
  store_bf16(p, values);
#else
  store(p, values);
#endif
}

// A group of keys, [words][16][4] to as many dimensions in wider words. `soon`: as many to be fetched.
void widen_keys(const BlockShape& kept, const uint8_t* keys, const float* scales_of_keys, const uint8_t* soon, Wide* wide) {
  const Floats scales = load(scales_of_keys);
  for (int w = 0; w < kept.num_words; w++, keys += kept.word_stride, soon += kept.word_stride, wide += 4 * GROUP_KEYS) {
    const Raw words = load_raw(keys);
    const Floats bytes[4] = {widened(words, 0, scales), widened(words, 1, scales), widened(words, 2, scales), widened(words, 3, scales)};
    store_words(wide, bytes);
    __builtin_prefetch(soon);
  }
}

void widen_values(const BlockShape& kept, const uint8_t* values, const float* scales, const uint8_t* soon, Wide* wide) {
  for (int key = 0; key < GROUP_KEYS; key++)
    for (int d = 0; d < kept.head_dim; d += LANES, values += LANES, soon += LANES, wide += LANES) {
      store_values(wide, widened(load_bytes(values), 0, all(scales[key])));
      if (d % LINE_BYTES == 0) __builtin_prefetch(soon);
    }
}

}  // namespace

Block widen(const BlockShape& kept, const Block& block, const Block& next, Wide* room) {
  const size_t group_size = size_t(GROUP_KEYS) * kept.head_dim;
  Block wide = block;
  for (int g = 0; g < GROUPS; g++) {
    if (g > 0 && block.keys[g] == block.keys[g - 1]) {  // an alias
      wide.keys[g] = wide.keys[g - 1], wide.values[g] = wide.values[g - 1];
      continue;
    }
    Wide *keys = room + g * group_size, *values = room + (GROUPS + g) * group_size;
    __builtin_prefetch(next.key_scales[g]), __builtin_prefetch(next.value_scales[g]);
    widen_keys(kept, block.keys[g], block.key_scales[g], next.keys[g], keys);
    widen_values(kept, block.values[g], block.value_scales[g], next.values[g], values);
    wide.keys[g] = reinterpret_cast<uint8_t*>(keys), wide.values[g] = reinterpret_cast<uint8_t*>(values);
  }
  return wide;
}

}  // namespace kd
