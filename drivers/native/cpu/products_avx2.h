// products.h in AVX2 with FMA and half floats, and with 8-bit dot products where the level has them: sixteen lanes are two registers.
#pragma once

namespace kd {

struct Ints {
  __m256i low, high;
};
using Raw = Ints;
struct Pairs {
  Floats even, odd;
};
struct Pair {
  __m256 even, odd;
};
#if defined(__AVXVNNI__)
using Quads = Ints;
using Quad = __m256i;
#else
struct Quads {  // bytes 0 and 2, and bytes 1 and 3, as 16 bits each
  Ints even, odd;
};
struct Quad {
  __m256i even, odd;
};
#endif

KD_INLINE Floats load_halves(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
KD_INLINE __m256i bf16_bits(__m256 a) {  // in the lower halves; to nearest, ties to even
  const __m256i bits = _mm256_castps_si256(a), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i to_nearest = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
  return _mm256_blendv_epi8(to_nearest, quiet, _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
}
KD_INLINE void store_bf16(uint16_t* p, Floats a) {
  const __m256i words = _mm256_packus_epi32(bf16_bits(a.low), bf16_bits(a.high));
  _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(words, 0xd8));
}
KD_INLINE __m256 e4m3_bits(__m256i words, int byte) {
  const __m256i moved = _mm256_srai_epi32(_mm256_slli_epi32(words, 24 - 8 * byte), 4);
  return _mm256_castsi256_ps(_mm256_and_si256(moved, _mm256_set1_epi32(int(0x87f00000))));
}
// The e4m3 in that byte of each word, times 2^-120.
KD_INLINE Floats e4m3_bits(Raw words, int byte) { return {e4m3_bits(words.low, byte), e4m3_bits(words.high, byte)}; }

KD_INLINE Ints all_ints(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
KD_INLINE Ints operator+(Ints a, Ints b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
KD_INLINE Ints larger(Ints a, Ints b) { return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)}; }
KD_INLINE int32_t sum(Ints a) {
  int32_t lanes[8], total = 0;
  _mm256_storeu_si256((__m256i*)lanes, _mm256_add_epi32(a.low, a.high));
  for (int lane = 0; lane < 8; lane++) total += lanes[lane];
  return total;
}
KD_INLINE int32_t largest_of(Ints a) {
  int32_t lanes[8], largest = INT32_MIN;
  _mm256_storeu_si256((__m256i*)lanes, _mm256_max_epi32(a.low, a.high));
  for (int lane = 0; lane < 8; lane++) largest = lanes[lane] > largest ? lanes[lane] : largest;
  return largest;
}
KD_INLINE Floats floats_of(Ints a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
KD_INLINE Ints nearest_ints(Floats a) { return {_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)}; }
KD_INLINE Ints magnitude_bits(Floats a) {
  const __m256i kept = _mm256_set1_epi32(0x7fffffff);
  return {_mm256_and_si256(_mm256_castps_si256(a.low), kept), _mm256_and_si256(_mm256_castps_si256(a.high), kept)};
}
KD_INLINE void store_bytes(int8_t* p, Ints a) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.low, a.high), 0xd8);
  _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

KD_INLINE Raw load_raw(const void* p) {
  const __m256i* words = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(words), _mm256_loadu_si256(words + 1)};
}
KD_INLINE Raw load_bytes(const void* p) {  // each in a word
  const __m128i bytes = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}
KD_INLINE __m256 even_bf16(__m256i raw) { return _mm256_castsi256_ps(_mm256_slli_epi32(raw, 16)); }
KD_INLINE __m256 odd_bf16(__m256i raw) { return _mm256_castsi256_ps(_mm256_and_si256(raw, _mm256_set1_epi32(int(0xffff0000)))); }
KD_INLINE Pairs pairs_of(Raw raw) { return {{even_bf16(raw.low), even_bf16(raw.high)}, {odd_bf16(raw.low), odd_bf16(raw.high)}}; }
KD_INLINE __m256i all_words(const void* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return _mm256_set1_epi32(word);
}
KD_INLINE Pair load_pair(const void* p) {
  const __m256i pair = all_words(p);
  return {even_bf16(pair), odd_bf16(pair)};
}
KD_INLINE Floats dot(Floats sum, Pairs weights, Pair x) {
  return fma(weights.odd, {x.odd, x.odd}, fma(weights.even, {x.even, x.even}, sum));
}
#if defined(__AVXVNNI__)
template <int kShift>
KD_INLINE Quads nibbles_of(Raw raw) {
  const __m256i kept = _mm256_set1_epi8(15);
  return {_mm256_and_si256(_mm256_srli_epi16(raw.low, kShift), kept), _mm256_and_si256(_mm256_srli_epi16(raw.high, kShift), kept)};
}
KD_INLINE Quads quads_of(Raw raw) { return raw; }
KD_INLINE Quads low_quads(Raw raw) { return nibbles_of<0>(raw); }
KD_INLINE Quads high_quads(Raw raw) { return nibbles_of<4>(raw); }
KD_INLINE Quad load_quad(const void* p) { return all_words(p); }
KD_INLINE Ints dot(Ints sum, Quads weights, Quad x) {
  return {_mm256_dpbusd_avx_epi32(sum.low, weights.low, x), _mm256_dpbusd_avx_epi32(sum.high, weights.high, x)};
}
#else
template <int kShift>
KD_INLINE Ints words_of(Raw raw, int mask) {
  const __m256i kept = _mm256_set1_epi32(mask);
  return {_mm256_and_si256(_mm256_srli_epi32(raw.low, kShift), kept), _mm256_and_si256(_mm256_srli_epi32(raw.high, kShift), kept)};
}
KD_INLINE Quads quads_of(Raw raw) { return {words_of<0>(raw, 0xff00ff), words_of<8>(raw, 0xff00ff)}; }
KD_INLINE Quads low_quads(Raw raw) { return {words_of<0>(raw, 0xf000f), words_of<8>(raw, 0xf000f)}; }
KD_INLINE Quads high_quads(Raw raw) { return {words_of<4>(raw, 0xf000f), words_of<12>(raw, 0xf000f)}; }
KD_INLINE Quad load_quad(const void* p) {
  const __m256i quad = all_words(p);
  return {_mm256_srai_epi16(_mm256_slli_epi16(quad, 8), 8), _mm256_srai_epi16(quad, 8)};
}
KD_INLINE Ints dot(Ints sum, Quads weights, Quad x) {  // products of 16 bits: those of pmaddubsw would saturate
  const Ints even = {_mm256_madd_epi16(weights.even.low, x.even), _mm256_madd_epi16(weights.even.high, x.even)};
  const Ints odd = {_mm256_madd_epi16(weights.odd.low, x.odd), _mm256_madd_epi16(weights.odd.high, x.odd)};
  return sum + even + odd;
}
#endif

}  // namespace kd
