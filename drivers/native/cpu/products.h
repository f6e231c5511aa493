// What linears need beyond isa.h: sixteen sums of products, of two bfloat16 or four bytes a lane at once, as panels have them.
//
//   Ints   sixteen int32          Raw    64 bytes as they lie in a panel
//   Pairs  16 x 2 bfloat16        Quads  16 x 4 unsigned bytes
//
// `Pair` and `Quad` are what one token brings to a product: the same two bfloat16, or four signed bytes, for all sixteen lanes. Products of
// bytes are exact on every level.
#pragma once

#include <cstddef>

#include "isa.h"

#define KD_EXPORT extern "C" __attribute__((visibility("default")))

#if KD_AVX512
#include "products_avx512.h"
#elif KD_AVX2
#include "products_avx2.h"
#else
#include "products_generic.h"
#endif

namespace kd {

KD_INLINE float float_of_bf16(uint16_t half) {
  const uint32_t word = uint32_t(half) << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

KD_INLINE float float_of_half(uint16_t half) {
  uint32_t word = uint32_t(half & 0x7fff) << 13;
  float value;
  std::memcpy(&value, &word, 4);
  value *= 0x1p112f;  // from a bias of 15 to one of 127; exact, for subnormal halves too
  std::memcpy(&word, &value, 4);
  if ((half & 0x7c00) == 0x7c00) word = 0x7f800000 | uint32_t(half & 0x3ff) << 13;
  word |= uint32_t(half & 0x8000) << 16;
  std::memcpy(&value, &word, 4);
  return value;
}

}  // namespace kd
