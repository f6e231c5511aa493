// products.h for every other processor, in loops of sixteen that the compiler may make vectors of.
#pragma once

namespace kd {

struct Ints {
  int32_t v[LANES];
};
struct Raw {
  uint32_t v[LANES];
};
struct Pairs {
  Floats even, odd;
};
struct Quads {
  Ints bytes[4];
};
struct Pair {
  float even, odd;
};
struct Quad {
  int32_t bytes[4];
};

template <typename Each>
KD_INLINE Ints each_int(Each one) {
  Ints y;
  for (int i = 0; i < LANES; i++) y.v[i] = one(i);
  return y;
}
KD_INLINE float float_of_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
KD_INLINE uint32_t bits_of_float(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

KD_INLINE Floats load_halves(const uint16_t* p) {  // finite ones
  return each([&](int i) {
    const float size = float_of_bits(uint32_t(p[i] & 0x7fff) << 13) * 0x1p112f;
    return float_of_bits(bits_of_float(size) | uint32_t(p[i] & 0x8000) << 16);
  });
}
KD_INLINE void store_bf16(uint16_t* p, Floats a) {
  for (int i = 0; i < LANES; i++) p[i] = bf16_of(a.v[i]);
}

KD_INLINE Ints all_ints(int32_t x) {
  return each_int([&](int) { return x; });
}
KD_INLINE Ints operator+(Ints a, Ints b) {  // modulo 2^32, as the other levels have it
  return each_int([&](int i) { return int32_t(uint32_t(a.v[i]) + uint32_t(b.v[i])); });
}
KD_INLINE Ints larger(Ints a, Ints b) {
  return each_int([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
KD_INLINE int32_t sum(Ints a) {
  int32_t total = 0;
  for (int i = 0; i < LANES; i++) total += a.v[i];
  return total;
}
KD_INLINE int32_t largest_of(Ints a) {
  int32_t largest = a.v[0];
  for (int i = 1; i < LANES; i++) largest = a.v[i] > largest ? a.v[i] : largest;
  return largest;
}
KD_INLINE Floats floats_of(Ints a) {
  return each([&](int i) { return float(a.v[i]); });
}
KD_INLINE Ints nearest_ints(Floats a) {  // ties to even, for |a| < 2^22
  return each_int([&](int i) { return int32_t(bits_of_float(a.v[i] + 0x1.8p23f)) - 0x4b400000; });
}
KD_INLINE Ints magnitude_bits(Floats a) {
  return each_int([&](int i) { return int32_t(bits_of_float(a.v[i]) & 0x7fffffff); });
}
KD_INLINE void store_bytes(int8_t* p, Ints a) {
  for (int i = 0; i < LANES; i++) p[i] = int8_t(a.v[i]);
}

KD_INLINE Raw load_raw(const void* p) {
  Raw raw;
  std::memcpy(raw.v, p, sizeof raw.v);
  return raw;
}
KD_INLINE Pairs pairs_of(Raw raw) {
  return {each([&](int i) { return float_of_bits(raw.v[i] << 16); }), each([&](int i) { return float_of_bits(raw.v[i] & 0xffff0000u); })};
}
KD_INLINE Quads bytes_of(Raw raw, int shift, uint32_t mask) {
  Quads quads;
  for (int byte = 0; byte < 4; byte++)
    for (int i = 0; i < LANES; i++) quads.bytes[byte].v[i] = int32_t(raw.v[i] >> (8 * byte + shift) & mask);
  return quads;
}
KD_INLINE Quads quads_of(Raw raw) { return bytes_of(raw, 0, 255); }
KD_INLINE Quads low_quads(Raw raw) { return bytes_of(raw, 0, 15); }
KD_INLINE Quads high_quads(Raw raw) { return bytes_of(raw, 4, 15); }

KD_INLINE Pair load_pair(const void* p) {
  uint32_t pair;
  std::memcpy(&pair, p, 4);
  return {float_of_bits(pair << 16), float_of_bits(pair & 0xffff0000u)};
}
KD_INLINE Quad load_quad(const void* p) {
  const int8_t* bytes = static_cast<const int8_t*>(p);
  return {{bytes[0], bytes[1], bytes[2], bytes[3]}};
}
KD_INLINE Floats dot(Floats sum, Pairs weights, Pair x) { return fma(weights.odd, all(x.odd), fma(weights.even, all(x.even), sum)); }
KD_INLINE Ints dot(Ints sum, Quads weights, Quad x) {
  for (int byte = 0; byte < 4; byte++) sum = sum + each_int([&](int i) { return weights.bytes[byte].v[i] * x.bytes[byte]; });
  return sum;
}

}  // namespace kd
