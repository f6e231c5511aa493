// From scores to mixed values with rounded weights, where one instruction multiplies and adds several tokens at once (AVX-512).
//
//   bf16   weights are bfloat16, two tokens at a time; their sum is that of the rounded ones, so that equal values mix to themselves
//   u8     weights times the scales of values are 16 bits, in steps of the greatest of the block, four tokens at a time; sums are exact
//
// Rows of values are interleaved in registers, once for all queries of a tile: lane i of vector v of the result holds dimension
// 16 * (i / 4) + 4 * v + i % 4 of four tokens (u8; v of four), or of two tokens 8 * (i / 4) + 4 * v + i % 4 (bf16; v of two).
#pragma once

#include "attention_scores.h"

namespace kd {

constexpr int PAIRS = BLOCK_KEYS / 2, QUADS = BLOCK_KEYS / 4;
constexpr float DIGITS = 65535.0f;

template <Kind KIND, int QUERIES>
struct Rounded;  // weights of a block

template <int QUERIES>
struct Rounded<Kind::bf16, QUERIES> {
  alignas(64) uint32_t pairs[QUERIES][PAIRS];
};

template <int QUERIES>
struct Rounded<Kind::u8, QUERIES> {
  alignas(64) uint32_t digits[2][QUERIES][QUADS];  // bytes of four tokens, the upper ones and the lower ones
  float unit[QUERIES];                             // of the lower ones
};

// 2^x within 3e-6 for x <= 0; NaN stays NaN.
KD_INLINE Floats power_of_two(Floats x) {
  const Floats held = greatest(all(-1000.0f), x), n = nearest(held), r = held - n;
  Floats p = fma(all(9.582852464e-3f), r, all(5.590642551e-2f));
  p = fma(p, r, all(2.402409863e-1f));
  p = fma(p, r, all(6.931241933e-1f));
  return times_power(fma(p, r, all(1.0f)), n);
}

KD_INLINE Mask seen_lanes(Seen seen, int group) {
  const int first = seen.first - group * LANES, end = seen.end - group * LANES;
  return lanes(first < 0 ? 0 : first > LANES ? LANES : first, end < 0 ? 0 : end > LANES ? LANES : end);
}

// The greatest score of a query so far, and by which power of e older sums shrink. Scores of keys that are not seen become -infinite.
KD_INLINE float raise_most(float softcap, Seen seen, float* row, float* most) {
  const bool is_whole = seen.first <= 0 && seen.end >= BLOCK_KEYS;
  Floats greatest_one = all(-INFINITE);
  KD_UNROLLED for (int g = 0; g < GROUPS; g++) {
    Floats score = load(row + g * LANES);
    if (softcap > 0.0f) score = all(softcap) * tanh(score / all(softcap));
    if (!is_whole) score = select(seen_lanes(seen, g), score, all(-INFINITE));
    if (!is_whole || softcap > 0.0f) store(row + g * LANES, score);
    greatest_one = greatest(score, greatest_one);
  }
  const float found = greatest_of(greatest_one), held = *most;
  *most = found > held ? found : held;
  return held - *most;
}

// Weights of a query as they are, and their sum; u8: their products with the scales of values go back to `row`, the greatest to `most`.
KD_INLINE Floats scale_weights(const Floats* weights, Seen seen, const Block& block, float* row, int32_t* most) {
  const bool is_whole = seen.first <= 0 && seen.end >= BLOCK_KEYS;
  Ints greatest_one = all_ints(0);  // as bits, of which NaN are the greatest, so that they spread
  KD_UNROLLED for (int g = 0; g < GROUPS; g++) {
    Floats scaled = weights[g] * load(block.value_scales[g]);
    if (!is_whole) scaled = select(seen_lanes(seen, g), scaled, all(0.0f));
    store(row + g * LANES, scaled);
    greatest_one = larger(greatest_one, magnitude_bits(scaled));
  }
  *most = largest_of(greatest_one);
  return total_of(weights);
}

KD_INLINE Floats round_weights(const Floats* weights, uint32_t* pairs) {
  const __m512i ones = _mm512_set1_epi32(0x3f803f80);
  Floats totals[2] = {all(0.0f), all(0.0f)};
  KD_UNROLLED for (int g = 0; g < GROUPS; g += 2) {
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(weights[g + 1].v, weights[g].v);
    _mm512_store_si512(pairs + g / 2 * LANES, both);
    totals[g / 2 % 2] = dot(totals[g / 2 % 2], both, ones);
  }
  return totals[0] + totals[1];
}

template <int QUERIES>
KD_INLINE void round_scaled(const Seen* seen, const float* scores, const int32_t* most, Rounded<Kind::u8, QUERIES>* rounded) {
  const Floats greatest_ones = load(reinterpret_cast<const float*>(most));
  float inverse[LANES];
  store_part(rounded->unit, greatest_ones * all(1 / DIGITS), QUERIES);
  store(inverse, select(is_less(all(0.0f), greatest_ones), all(DIGITS) / greatest_ones, all(0.0f)));
  KD_UNROLLED for (int q = 0; q < QUERIES; q++) {
    if (seen[q].first >= seen[q].end) continue;
    KD_UNROLLED for (int g = 0; g < GROUPS; g++) {
      const __m512i digits = (__m512i)nearest_ints(load(scores + q * BLOCK_KEYS + g * LANES) * all(inverse[q])).v;
      _mm_store_si128((__m128i*)rounded->digits[0][q] + g, _mm512_cvtepi32_epi8(_mm512_srli_epi32(digits, 8)));
      _mm_store_si128((__m128i*)rounded->digits[1][q] + g, _mm512_cvtepi32_epi8(digits));
    }
  }
}

// Scores become rounded weights; `rescale` is what older sums are to be multiplied by.
template <Kind KIND, int QUERIES>
KD_INLINE void weigh_rounded(const TileQueries& queries, const Seen* seen, const Block& block, float* scores, const Sums& sums,
                             float* rescale, Rounded<KIND, QUERIES>* rounded) {
  float older[LANES] = {};
  int32_t most[LANES] = {};
  KD_UNROLLED for (int q = 0; q < QUERIES; q++)
    if (seen[q].first < seen[q].end) older[q] = raise_most(queries.softcap, seen[q], scores + q * BLOCK_KEYS, sums.most + q);
  store_part(rescale, exp(load(older)), QUERIES);
  KD_UNROLLED for (int q = 0; q < QUERIES; q++) {
    if (seen[q].first >= seen[q].end) continue;
    float* row = scores + q * BLOCK_KEYS;
    Floats weights[GROUPS], total;
    KD_UNROLLED for (int g = 0; g < GROUPS; g++)
      weights[g] = power_of_two((load(row + g * LANES) - all(sums.most[q])) * all(1.44269504f));
    if constexpr (KIND == Kind::bf16) total = round_weights(weights, rounded->pairs[q]);
    if constexpr (KIND == Kind::u8) total = scale_weights(weights, seen[q], block, row, most + q);
    sums.total[q] = sums.total[q] * rescale[q] + sum(total);
  }
  if constexpr (KIND == Kind::u8) round_scaled(seen, scores, most, rounded);
}

// --- bf16 ----------------------------------------------------------------------------------------------------------------------------

constexpr int PAIR_DIMS = 32;  // of a vector of values

KD_INLINE void load_halves_of(const float* mixed, int num_dims, Floats* low, Floats* high) {
  const __m512 first = load(mixed).v, second = num_dims > LANES ? load(mixed + LANES).v : _mm512_setzero_ps();
  low->v = _mm512_shuffle_f32x4(first, second, 0x88), high->v = _mm512_shuffle_f32x4(first, second, 0xdd);
}
KD_INLINE void store_halves_of(float* mixed, int num_dims, Floats low, Floats high) {
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  store(mixed, {_mm512_permutex2var_ps(low.v, first, high.v)});
  if (num_dims > LANES) store(mixed + LANES, {_mm512_permutex2var_ps(low.v, _mm512_add_epi32(first, _mm512_set1_epi32(8)), high.v)});
}

// mixed = mixed * rescale + the weighted values of keys [first, end), for `num_dims` dimensions from `dim` on, 16 or 32 * VECTORS.
// `IS_EDGE`: one of a pair may not be seen; its values count as zeros, whatever they are. Weights of what is not seen are zero.
template <int QUERIES, int VECTORS, bool IS_EDGE>
KD_INLINE void mix_pairs(const BlockShape& shape, const Block& block, const Block& next, Seen keys, const uint32_t (*pairs)[PAIRS],
                         const float* rescale, int dim, int num_dims, float* mixed) {
  Floats sums[QUERIES][VECTORS][2];
  KD_UNROLLED for (int q = 0; q < QUERIES; q++)
    KD_UNROLLED for (int v = 0; v < VECTORS; v++) {
      Floats* two = sums[q][v];
      load_halves_of(mixed + q * shape.head_dim + dim + v * PAIR_DIMS, num_dims, two, two + 1);
      two[0] = two[0] * all(rescale[q]), two[1] = two[1] * all(rescale[q]);
    }
  const __mmask32 mask = num_dims < PAIR_DIMS ? 0xffff : 0xffffffff;
  for (int group = keys.first / GROUP_KEYS; group * GROUP_KEYS < keys.end; group++) {
    const int begin = group * GROUP_KEYS, first = keys.first > begin ? keys.first / 2 * 2 : begin;
    const int end = keys.end < begin + GROUP_KEYS ? keys.end : begin + GROUP_KEYS;
    const uint8_t* at = block.values[group] + (first - begin) * shape.value_stride + size_t(dim) * 2;
    const uint8_t* ahead = next.keys[group] + (dim / 2 + (first - begin) * VECTORS) * shape.word_stride;
    for (int key = first; key < end; key += 2, at += 2 * shape.value_stride) {
      const bool is_even_seen = !IS_EDGE || key >= keys.first, is_odd_seen = !IS_EDGE || key + 1 < end;
      __m512i values[VECTORS][2];
      KD_UNROLLED for (int v = 0; v < VECTORS; v++) {
        __m512i even = _mm512_maskz_loadu_epi16(is_even_seen ? mask : 0, at + v * 64);
        const __m512i odd = _mm512_maskz_loadu_epi16(is_odd_seen ? mask : 0, at + shape.value_stride + v * 64);
        hold(even);
        values[v][0] = _mm512_unpacklo_epi16(even, odd), values[v][1] = _mm512_unpackhi_epi16(even, odd);
      }
      KD_UNROLLED for (int line = 0; line < 2 * VECTORS; line++, ahead += shape.word_stride) __builtin_prefetch(ahead);
      KD_UNROLLED for (int q = 0; q < QUERIES; q++) {
        const Pair weights = load_pair(pairs[q] + key / 2);
        KD_UNROLLED for (int v = 0; v < VECTORS; v++)
          KD_UNROLLED for (int half = 0; half < 2; half++) sums[q][v][half] = dot(sums[q][v][half], values[v][half], weights);
      }
    }
  }
  KD_UNROLLED for (int q = 0; q < QUERIES; q++)
    KD_UNROLLED for (int v = 0; v < VECTORS; v++)
      store_halves_of(mixed + q * shape.head_dim + dim + v * PAIR_DIMS, num_dims, sums[q][v][0], sums[q][v][1]);
}

template <int QUERIES, bool IS_EDGE>
KD_INLINE void mix_some(const BlockShape& shape, const Block& block, const Block& next, Seen keys, const uint32_t (*pairs)[PAIRS],
                        const float* rescale, float* mixed) {
  int dim = 0;
  for (; dim + 2 * PAIR_DIMS <= shape.head_dim; dim += 2 * PAIR_DIMS)
    mix_pairs<QUERIES, 2, IS_EDGE>(shape, block, next, keys, pairs, rescale, dim, PAIR_DIMS, mixed);
  for (; dim < shape.head_dim; dim += PAIR_DIMS) {
    const int num_dims = shape.head_dim - dim < PAIR_DIMS ? shape.head_dim - dim : PAIR_DIMS;
    mix_pairs<QUERIES, 1, IS_EDGE>(shape, block, next, keys, pairs, rescale, dim, num_dims, mixed);
  }
}

// Pairs that some queries see wholly and others do not come before and behind those that all see.
template <int QUERIES>
KD_INLINE void mix_rounded(const BlockShape& shape, const Block& block, const Block& next, const Seen* seen,
                           const Rounded<Kind::bf16, QUERIES>& weights, float* rescale, float* mixed) {
  Seen common{0, BLOCK_KEYS};
  for (int q = 0; q < QUERIES; q++) {
    common.first = seen[q].first > common.first ? (seen[q].first + 1) / 2 * 2 : common.first;
    common.end = seen[q].end < common.end ? seen[q].end / 2 * 2 : common.end;
  }
  if (common.first >= common.end) common.first = common.end = BLOCK_KEYS;  // each by itself
  const auto edge = [&](Seen keys) {
    for (int q = 0; q < QUERIES; q++) {
      const Seen own{seen[q].first > keys.first ? seen[q].first : keys.first, seen[q].end < keys.end ? seen[q].end : keys.end};
      if (own.first >= own.end) continue;
      mix_some<1, true>(shape, block, next, own, weights.pairs + q, rescale + q, mixed + q * shape.head_dim);
      rescale[q] = 1.0f;
    }
  };
  edge({0, common.first});
  if (common.first < common.end) {
    mix_some<QUERIES, false>(shape, block, next, common, weights.pairs, rescale, mixed);
    for (int q = 0; q < QUERIES; q++) rescale[q] = 1.0f;
  }
  edge({common.end, BLOCK_KEYS});
}

// --- u8 ------------------------------------------------------------------------------------------------------------------------------

constexpr int QUAD_DIMS = 64;  // of a vector of values

// mixed = mixed * rescale + unit * sums, where sums are in the order of lanes above.
KD_INLINE void add_sums(const float (*sums)[LANES], float unit, float rescale, int num_dims, float* mixed) {
  const __m512 a = load(sums[0]).v, b = load(sums[1]).v, c = load(sums[2]).v, d = load(sums[3]).v;
  const __m512 ab = _mm512_shuffle_f32x4(a, b, 0x44), cd = _mm512_shuffle_f32x4(c, d, 0x44);
  const __m512 ab_high = _mm512_shuffle_f32x4(a, b, 0xee), cd_high = _mm512_shuffle_f32x4(c, d, 0xee);
  const Floats rows[4] = {{_mm512_shuffle_f32x4(ab, cd, 0x88)}, {_mm512_shuffle_f32x4(ab, cd, 0xdd)},
                          {_mm512_shuffle_f32x4(ab_high, cd_high, 0x88)}, {_mm512_shuffle_f32x4(ab_high, cd_high, 0xdd)}};
  KD_UNROLLED for (int v = 0; v < 4; v++)
    if (v * LANES < num_dims) store(mixed + v * LANES, fma(rows[v], all(unit), load(mixed + v * LANES) * all(rescale)));
}

// The sums of keys [first, end), multiples of four, for vectors [FIRST, FIRST + VECTORS) of sixty-four dimensions from `dim` on.
template <int QUERIES, int FIRST, int VECTORS>
KD_INLINE void sum_quads(const BlockShape& shape, const Block& block, const Block& next, Seen keys,
                         const uint32_t (*digits)[QUERIES][QUADS], int dim, __mmask64 mask, float (*found)[4][LANES]) {
  Ints sums[2][QUERIES][VECTORS];
  KD_UNROLLED for (int part = 0; part < 2; part++)
    KD_UNROLLED for (int q = 0; q < QUERIES; q++)
      KD_UNROLLED for (int v = 0; v < VECTORS; v++) sums[part][q][v] = all_ints(0);
  for (int group = keys.first / GROUP_KEYS; group * GROUP_KEYS < keys.end; group++) {
    const int begin = group * GROUP_KEYS, first = keys.first > begin ? keys.first : begin;
    const int end = keys.end < begin + GROUP_KEYS ? keys.end : begin + GROUP_KEYS;
    const uint8_t* at = block.values[group] + (first - begin) * shape.value_stride + dim;
    const uint8_t* ahead = next.keys[group] + (dim / 4 + first - begin) * shape.word_stride;
    for (int key = first; key < end; key += 4, at += 4 * shape.value_stride) {
      __m512i rows[4], twos[2][2], values[VECTORS];
      KD_UNROLLED for (int row = 0; row < 4; row++) {
        rows[row] = _mm512_maskz_loadu_epi8(mask, at + row * shape.value_stride);
        hold(rows[row]);
        if (FIRST == 0) __builtin_prefetch(ahead), ahead += shape.word_stride;
      }
      KD_UNROLLED for (int two = 0; two < 2; two++) {
        twos[two][0] = _mm512_unpacklo_epi8(rows[2 * two], rows[2 * two + 1]);
        twos[two][1] = _mm512_unpackhi_epi8(rows[2 * two], rows[2 * two + 1]);
      }
      KD_UNROLLED for (int v = 0; v < VECTORS; v += 2) {
        const int half = (FIRST + v) / 2;
        values[v] = _mm512_unpacklo_epi16(twos[0][half], twos[1][half]);
        values[v + 1] = _mm512_unpackhi_epi16(twos[0][half], twos[1][half]);
      }
      KD_UNROLLED for (int part = 0; part < 2; part++)
        KD_UNROLLED for (int q = 0; q < QUERIES; q++) {
          const Quads weights = load_quad(digits[part][q] + key / 4);  // unsigned; values are not
          KD_UNROLLED for (int v = 0; v < VECTORS; v++) sums[part][q][v] = dot(sums[part][q][v], weights, values[v]);
        }
    }
  }
  KD_UNROLLED for (int q = 0; q < QUERIES; q++)
    KD_UNROLLED for (int v = 0; v < VECTORS; v++) {
      const __m512i upper = _mm512_slli_epi32((__m512i)sums[0][q][v].v, 8);
      store(found[q][FIRST + v], floats_of(ints_of(upper) + sums[1][q][v]));
    }
}

// Weights of what is not seen are zero, and any byte times zero is zero.
template <int QUERIES>
KD_INLINE void mix_rounded(const BlockShape& shape, const Block& block, const Block& next, const Seen* seen,
                           const Rounded<Kind::u8, QUERIES>& weights, const float* rescale, float* mixed) {
  Seen keys{BLOCK_KEYS, 0};
  for (int q = 0; q < QUERIES; q++) {
    if (seen[q].first >= seen[q].end) continue;
    keys.first = seen[q].first < keys.first ? seen[q].first : keys.first, keys.end = seen[q].end > keys.end ? seen[q].end : keys.end;
  }
  keys.first = keys.first < 0 ? 0 : keys.first / 4 * 4, keys.end = keys.end > BLOCK_KEYS ? BLOCK_KEYS : (keys.end + 3) / 4 * 4;
  for (int dim = 0; dim < shape.head_dim; dim += QUAD_DIMS) {
    const int num_dims = shape.head_dim - dim < QUAD_DIMS ? shape.head_dim - dim : QUAD_DIMS;
    const __mmask64 mask = ~__mmask64(0) >> (QUAD_DIMS - num_dims);
    alignas(64) float found[QUERIES][4][LANES];
    if constexpr (QUERIES <= 3) {
      sum_quads<QUERIES, 0, 4>(shape, block, next, keys, weights.digits, dim, mask, found);
    } else {
      sum_quads<QUERIES, 0, 2>(shape, block, next, keys, weights.digits, dim, mask, found);
      sum_quads<QUERIES, 2, 2>(shape, block, next, keys, weights.digits, dim, mask, found);
    }
    for (int q = 0; q < QUERIES; q++)
      if (seen[q].first < seen[q].end) add_sums(found[q], weights.unit[q], rescale[q], num_dims, mixed + q * shape.head_dim + dim);
  }
}

}  // namespace kd
