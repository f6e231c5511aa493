// products.h for every other processor, in the compiler's own vectors, which it cuts into what the processor has.
#pragma once

namespace kd {

typedef uint32_t SixteenWords __attribute__((vector_size(64)));
typedef uint16_t SixteenHalves __attribute__((vector_size(32)));
typedef int8_t SixteenBytes __attribute__((vector_size(16)));

struct Ints {
  SixteenInts v;
};
struct Raw {
  SixteenWords v;
};
struct Pairs {
  Floats even, odd;
};
struct Quads {
  SixteenInts bytes[4];
};
struct Pair {
  float even, odd;
};
struct Quad {
  int32_t bytes[4];
};

KD_INLINE Floats load_halves(const uint16_t* p) {  // finite ones
  const SixteenInts halves = __builtin_convertvector(copied_from<SixteenHalves>(p), SixteenInts);
  const SixteenFloats sizes = (SixteenFloats)((halves & 0x7fff) << 13) * 0x1p112f;
  return {(SixteenFloats)((SixteenInts)sizes | (halves & 0x8000) << 16)};
}
KD_INLINE void store_bf16(uint16_t* p, Floats a) {  // to nearest, ties to even; NaN stays NaN
  const SixteenWords bits = (SixteenWords)a.v, quiet = bits >> 16 | 0x40;
  const SixteenWords is_nan = (SixteenWords)(a.v != a.v), to_nearest = (bits + (bits >> 16 & 1) + 0x7fff) >> 16;
  const SixteenHalves halves = __builtin_convertvector((quiet & is_nan) | (to_nearest & ~is_nan), SixteenHalves);
  std::memcpy(p, &halves, sizeof halves);
}
// The e4m3 in that byte of each word, times 2^-120.
KD_INLINE Floats e4m3_bits(Raw words, int byte) {
  return {(SixteenFloats)((SixteenInts)(words.v << (24 - 8 * byte)) >> 4 & int32_t(0x87f00000))};
}

KD_INLINE Ints all_ints(int32_t x) { return {SixteenInts{} + x}; }
KD_INLINE Ints operator+(Ints a, Ints b) { return {(SixteenInts)((SixteenWords)a.v + (SixteenWords)b.v)}; }  // modulo 2^32
KD_INLINE Ints larger(Ints a, Ints b) { return {a.v > b.v ? a.v : b.v}; }
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
KD_INLINE Floats floats_of(Ints a) { return {__builtin_convertvector(a.v, SixteenFloats)}; }
KD_INLINE Ints nearest_ints(Floats a) { return {(SixteenInts)(a.v + 0x1.8p23f) - 0x4b400000}; }  // ties to even, for |a| < 2^22
KD_INLINE Ints magnitude_bits(Floats a) { return {(SixteenInts)a.v & 0x7fffffff}; }
KD_INLINE void store_bytes(int8_t* p, Ints a) {
  const SixteenBytes bytes = __builtin_convertvector(a.v, SixteenBytes);
  std::memcpy(p, &bytes, sizeof bytes);
}

KD_INLINE Raw load_raw(const void* p) { return {copied_from<SixteenWords>(p)}; }
KD_INLINE Raw load_bytes(const void* p) {  // each in a word
  typedef uint8_t Bytes __attribute__((vector_size(16)));
  return {__builtin_convertvector(copied_from<Bytes>(p), SixteenWords)};
}
KD_INLINE Pairs pairs_of(Raw raw) { return {{(SixteenFloats)(raw.v << 16)}, {(SixteenFloats)(raw.v & 0xffff0000u)}}; }
KD_INLINE Quads bytes_of(SixteenWords words, uint32_t mask) {
  Quads quads;
  for (int byte = 0; byte < 4; byte++) quads.bytes[byte] = (SixteenInts)(words >> (8 * byte) & mask);
  return quads;
}
KD_INLINE Quads quads_of(Raw raw) { return bytes_of(raw.v, 255); }
KD_INLINE Quads low_quads(Raw raw) { return bytes_of(raw.v, 15); }
KD_INLINE Quads high_quads(Raw raw) { return bytes_of(raw.v >> 4, 15); }

KD_INLINE Pair load_pair(const void* p) {
  const uint32_t pair = copied_from<uint32_t>(p), even = pair << 16, odd = pair & 0xffff0000u;
  return {copied_from<float>(&even), copied_from<float>(&odd)};
}
KD_INLINE Quad load_quad(const void* p) {
  const int8_t* bytes = static_cast<const int8_t*>(p);
  return {{bytes[0], bytes[1], bytes[2], bytes[3]}};
}
KD_INLINE Floats dot(Floats sum, Pairs weights, Pair x) { return fma(weights.odd, all(x.odd), fma(weights.even, all(x.even), sum)); }
KD_INLINE Ints dot(Ints sum, Quads weights, Quad x) {
  for (int byte = 0; byte < 4; byte++) sum = sum + Ints{weights.bytes[byte] * x.bytes[byte]};
  return sum;
}

}  // namespace kd
