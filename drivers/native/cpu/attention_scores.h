// Scores of some queries over a block: products of the words of queries and of keys.
#pragma once

#include "attention.h"
#include "functions.h"
#include "products.h"

#if KD_GENERIC
#define KD_UNROLLED  // there is no register to win, and compiling took 30 s
#else
#define KD_UNROLLED _Pragma("GCC unroll 8")
#endif

namespace kd {

// A value that is in a register stays there: GCC 12 loads it again for every use.
#if KD_AVX512
KD_INLINE void hold(__m512i& raw) { asm("" : "+v"(raw)); }
KD_INLINE void hold(Floats& a) { asm("" : "+v"(a.v)); }
#else
template <typename Value>
KD_INLINE void hold(Value&) {}
#endif

template <Kind KIND>
constexpr int PARTS = KIND == Kind::u8 ? 2 : 1;

#if KD_AVX512
KD_INLINE Raw plus_128(Raw bytes) { return _mm512_xor_si512(bytes, _mm512_set1_epi8(-128)); }
template <Kind KIND, int QUERIES>
constexpr int GROUPS_AT_ONCE = PARTS<KIND> * QUERIES * 4 <= 24 ? 4 : 2;  // 24 sums, 4 keys and a query in 32 registers
constexpr int VECTORS_AT_ONCE = 4;
#else
#if KD_AVX2
KD_INLINE Raw plus_128(Raw bytes) {
  const __m256i sign = _mm256_set1_epi8(-128);
  return {_mm256_xor_si256(bytes.low, sign), _mm256_xor_si256(bytes.high, sign)};
}
#else
KD_INLINE Raw plus_128(Raw bytes) { return {bytes.v ^ 0x80808080u}; }
#endif
template <Kind KIND, int QUERIES>
constexpr int GROUPS_AT_ONCE = 1;
constexpr int VECTORS_AT_ONCE = 1;
#endif

template <Kind KIND>
struct Product;  // of words of keys and of queries

template <>
struct Product<Kind::f32> {
  using Sum = Floats;
  static KD_INLINE Sum begin(int32_t) { return all(0.0f); }
  static KD_INLINE Floats keys(const void* p) { return load(static_cast<const float*>(p)); }
  static KD_INLINE float query(const uint32_t* p) {
    float x;
    std::memcpy(&x, p, 4);
    return x;
  }
  static KD_INLINE Sum add(Sum sum, Floats keys, float query) { return fma(keys, all(query), sum); }
};

template <>
struct Product<Kind::bf16> {
  using Sum = Floats;
  static KD_INLINE Sum begin(int32_t) { return all(0.0f); }
  static KD_INLINE Pairs keys(const void* p) { return pairs_of(load_raw(p)); }
  static KD_INLINE Pair query(const uint32_t* p) { return load_pair(p); }
  static KD_INLINE Sum add(Sum sum, Pairs keys, Pair query) { return dot(sum, keys, query); }
};

template <>
struct Product<Kind::u8> {
  using Sum = Ints;
  static KD_INLINE Sum begin(int32_t offset) { return all_ints(offset); }
  static KD_INLINE Quads keys(const void* p) { return quads_of(plus_128(load_raw(p))); }
  static KD_INLINE Quad query(const uint32_t* p) { return load_quad(p); }
  static KD_INLINE Sum add(Sum sum, Quads keys, Quad query) { return dot(sum, keys, query); }
};

// The sum of all keys, lane by lane.
KD_INLINE Floats total_of(const Floats* groups) {
  Floats halves[2] = {groups[0], groups[GROUPS / 2]};
  KD_UNROLLED for (int g = 1; g < GROUPS / 2; g++) halves[0] = halves[0] + groups[g], halves[1] = halves[1] + groups[GROUPS / 2 + g];
  return halves[0] + halves[1];
}

// scores[query][key] of groups [first, first + NUM).
template <Kind KIND, int QUERIES, int NUM>
KD_INLINE void score_groups(const BlockShape& shape, const TileQueries& queries, const Block& block, int first, float* scores) {
  using P = Product<KIND>;
  constexpr int parts = PARTS<KIND>;
  typename P::Sum sums[parts][QUERIES][NUM];
  KD_UNROLLED for (int part = 0; part < parts; part++)
    KD_UNROLLED for (int q = 0; q < QUERIES; q++)
      KD_UNROLLED for (int g = 0; g < NUM; g++) sums[part][q][g] = P::begin(parts == 2 ? queries.offsets[part * QUERIES + q] : 0);
  const uint32_t* words = queries.words;
  size_t at = 0;
  for (int w = 0; w < shape.num_words; w++, at += shape.word_stride, words += parts * QUERIES) {
    decltype(P::keys(nullptr)) keys[NUM];
    KD_UNROLLED for (int g = 0; g < NUM; g++) {
      keys[g] = P::keys(block.keys[first + g] + at);
      hold(keys[g]);
      __builtin_prefetch(block.values[first + g] + w * LINE_BYTES);
    }
    KD_UNROLLED for (int part = 0; part < parts; part++)
      KD_UNROLLED for (int q = 0; q < QUERIES; q++) {
        const auto query = P::query(words + part * QUERIES + q);
        KD_UNROLLED for (int g = 0; g < NUM; g++) sums[part][q][g] = P::add(sums[part][q][g], keys[g], query);
      }
  }
  KD_UNROLLED for (int q = 0; q < QUERIES; q++)
    KD_UNROLLED for (int g = 0; g < NUM; g++) {
      Floats score;
      if constexpr (KIND == Kind::u8) {
        score = fma(floats_of(sums[0][q][g]), all(256.0f), floats_of(sums[parts - 1][q][g]));
        score = score * all(queries.factors[q]) * load(block.key_scales[first + g]);
      } else {
        score = sums[0][q][g] * all(queries.factors[q]);
      }
      store(scores + q * BLOCK_KEYS + (first + g) * GROUP_KEYS, score);
    }
}

}  // namespace kd
