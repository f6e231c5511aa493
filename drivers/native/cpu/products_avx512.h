// products.h in AVX-512 with bfloat16 and 8-bit dot products.
#pragma once

namespace kd {

struct Ints {
  __v16si v;  // as __m512i, of eight lanes, GCC 12 keeps a copy of every sum in memory: half the speed
};
using Raw = __m512i;
using Pairs = __m512i;
using Quads = __m512i;
using Pair = __m512i;
using Quad = __m512i;

KD_INLINE Floats load_halves(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
KD_INLINE void store_bf16(uint16_t* p, Floats a) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(a.v)); }

KD_INLINE void store_pairs(uint16_t* p, Floats even, Floats odd) {  // even[0], odd[0], even[1], ...
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(odd.v, even.v);
  const __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(halves));
  const __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(halves, 1));
  _mm512_storeu_si512(p, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}
// The e4m3 in that byte of each word, times 2^-120.
KD_INLINE Floats e4m3_bits(Raw words, int byte) {
  const __m512i moved = _mm512_srai_epi32(_mm512_slli_epi32(words, 24 - 8 * byte), 4);
  return {_mm512_castsi512_ps(_mm512_and_si512(moved, _mm512_set1_epi32(int(0x87f00000))))};
}

KD_INLINE Ints ints_of(__m512i a) { return {(__v16si)a}; }
KD_INLINE Ints all_ints(int32_t x) { return ints_of(_mm512_set1_epi32(x)); }
KD_INLINE Ints operator+(Ints a, Ints b) { return ints_of(_mm512_add_epi32((__m512i)a.v, (__m512i)b.v)); }
KD_INLINE Ints larger(Ints a, Ints b) { return ints_of(_mm512_max_epi32((__m512i)a.v, (__m512i)b.v)); }
KD_INLINE int32_t sum(Ints a) { return _mm512_reduce_add_epi32((__m512i)a.v); }
KD_INLINE int32_t largest_of(Ints a) { return _mm512_reduce_max_epi32((__m512i)a.v); }
KD_INLINE Floats floats_of(Ints a) { return {_mm512_cvtepi32_ps((__m512i)a.v)}; }
KD_INLINE Ints nearest_ints(Floats a) { return ints_of(_mm512_cvtps_epi32(a.v)); }
KD_INLINE Ints magnitude_bits(Floats a) { return ints_of(_mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(0x7fffffff))); }
KD_INLINE void store_bytes(int8_t* p, Ints a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)a.v)); }

KD_INLINE Raw load_raw(const void* p) { return _mm512_loadu_si512(p); }
KD_INLINE Raw load_bytes(const void* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }  // each in a word
KD_INLINE Pairs pairs_of(Raw raw) { return raw; }
KD_INLINE Quads quads_of(Raw raw) { return raw; }
KD_INLINE Quads low_quads(Raw raw) { return _mm512_and_si512(raw, _mm512_set1_epi8(15)); }
KD_INLINE Quads high_quads(Raw raw) { return _mm512_and_si512(_mm512_srli_epi16(raw, 4), _mm512_set1_epi8(15)); }

KD_INLINE __m512i all_words(const void* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
}
KD_INLINE Pair load_pair(const void* p) { return all_words(p); }
KD_INLINE Quad load_quad(const void* p) { return all_words(p); }
KD_INLINE Floats dot(Floats sum, Pairs weights, Pair x) { return {_mm512_dpbf16_ps(sum.v, (__m512bh)weights, (__m512bh)x)}; }
KD_INLINE Ints dot(Ints sum, Quads weights, Quad x) { return ints_of(_mm512_dpbusd_epi32((__m512i)sum.v, weights, x)); }

}  // namespace kd
