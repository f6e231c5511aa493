// The inner loops of attention: some queries over one block of sixty-four keys.
//
// Every element is summed up in one order, whatever stands beside it: a score over the dimensions from the first on, a mixed value over the
// keys that its query sees from the first on. What a query does not see is never added, not even times zero: it might be no number.
//
// Each line of a block fetches the same line of the next one: over 2 KB pieces in no order, one Zen 5 core so reads 27 GB/s of bfloat16, 11
// without; a plain loop over such pieces reads 34. Fetching two blocks ahead (24), into the second cache only (22) or evenly spread (24)
// was slower. Out of the caches it is 64 GB/s.
#include <type_traits>

#include "attention.h"
#include "functions.h"
#include "products.h"

namespace kd {

namespace {

#if KD_GENERIC
#define KD_UNROLLED  // there is no register to win, and compiling took 30 s
#else
#define KD_UNROLLED _Pragma("GCC unroll 8")
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

// scores[query][key] of groups [first, first + NUM).
template <Kind KIND, int QUERIES, int NUM>
KD_INLINE void score_groups(const BlockShape& shape, const TileQueries& queries, const Block& block, const Block& next, int first,
                            float* scores) {
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
      __builtin_prefetch(next.keys[first + g] + at);
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

template <Kind KIND>
KD_INLINE Floats values_at(const uint8_t* p) {
  if constexpr (KIND == Kind::f32) return load(reinterpret_cast<const float*>(p));
  if constexpr (KIND == Kind::bf16) return from_bf16(reinterpret_cast<const uint16_t*>(p));
  if constexpr (KIND == Kind::u8) return from_i8(reinterpret_cast<const int8_t*>(p));
}

template <Kind KIND>
constexpr int ITEM_BYTES = KIND == Kind::f32 ? 4 : KIND == Kind::bf16 ? 2 : 1;

// mixed = mixed * rescale + the weighted values of keys [first, end), for sixteen times VECTORS dimensions from `dim` on.
template <Kind KIND, int QUERIES, int VECTORS>
KD_INLINE void mix_dims(const BlockShape& shape, const Block& block, const Block& next, Seen keys, const float* weights,
                        const float* rescale, int dim, float* mixed) {
  Floats sums[QUERIES][VECTORS];
  KD_UNROLLED for (int q = 0; q < QUERIES; q++)
    KD_UNROLLED for (int v = 0; v < VECTORS; v++)
      sums[q][v] = load(mixed + q * shape.head_dim + dim + v * LANES) * all(rescale[q]);
  const size_t offset = size_t(dim) * ITEM_BYTES<KIND>;
  for (int group = keys.first / GROUP_KEYS; group * GROUP_KEYS < keys.end; group++) {
    const int begin = group * GROUP_KEYS, first = keys.first > begin ? keys.first : begin;
    const int end = keys.end < begin + GROUP_KEYS ? keys.end : begin + GROUP_KEYS;
    const size_t skipped = (first - begin) * shape.value_stride + offset;
    const uint8_t *at = block.values[group] + skipped, *ahead = next.values[group] + skipped;
    for (int key = first; key < end; key++, at += shape.value_stride, ahead += shape.value_stride) {
      Floats values[VECTORS];
      KD_UNROLLED for (int v = 0; v < VECTORS; v++) values[v] = values_at<KIND>(at + v * LANES * ITEM_BYTES<KIND>);
      KD_UNROLLED for (int line = 0; line < VECTORS * LANES * ITEM_BYTES<KIND>; line += 64) __builtin_prefetch(ahead + line);
      KD_UNROLLED for (int q = 0; q < QUERIES; q++) {
        const Floats weight = all(weights[q * BLOCK_KEYS + key]);
        KD_UNROLLED for (int v = 0; v < VECTORS; v++) sums[q][v] = fma(weight, values[v], sums[q][v]);
      }
    }
  }
  KD_UNROLLED for (int q = 0; q < QUERIES; q++)
    KD_UNROLLED for (int v = 0; v < VECTORS; v++) store(mixed + q * shape.head_dim + dim + v * LANES, sums[q][v]);
}

template <Kind KIND, int QUERIES>
void mix(const BlockShape& shape, const Block& block, const Block& next, Seen keys, const float* weights, const float* rescale,
         float* mixed) {
  constexpr int step = VECTORS_AT_ONCE * LANES;
  int dim = 0;
  for (; dim + step <= shape.head_dim; dim += step)
    mix_dims<KIND, QUERIES, VECTORS_AT_ONCE>(shape, block, next, keys, weights, rescale, dim, mixed);
  for (; dim < shape.head_dim; dim += LANES) mix_dims<KIND, QUERIES, 1>(shape, block, next, keys, weights, rescale, dim, mixed);
}

// Scores become weights, exp(score - most); `rescale` is what older sums are to be multiplied by.
template <Kind KIND, int QUERIES>
KD_INLINE void weigh(const TileQueries& queries, const Seen* seen, const Block& block, float* scores, const Sums& sums, float* rescale) {
  float older[LANES] = {};
  for (int q = 0; q < QUERIES; q++) {
    if (seen[q].first >= seen[q].end) continue;  // nothing changes
    float* row = scores + q * BLOCK_KEYS;
    Floats most = all(-INFINITE);
    KD_UNROLLED for (int g = 0; g < GROUPS; g++) {
      Floats score = load(row + g * LANES);
      if (queries.softcap > 0.0f) score = all(queries.softcap) * tanh(score / all(queries.softcap));
      const int first = seen[q].first - g * LANES, end = seen[q].end - g * LANES;
      const Mask mask = lanes(first < 0 ? 0 : first > LANES ? LANES : first, end < 0 ? 0 : end > LANES ? LANES : end);
      score = select(mask, score, all(-INFINITE));
      store(row + g * LANES, score);
      most = greatest(score, most);
    }
    const float found = greatest_of(most), held = sums.most[q];
    sums.most[q] = found > held ? found : held;
    older[q] = held - sums.most[q];
  }
  const Floats factors = exp(load(older));  // those of all queries at once
  store_part(rescale, factors, QUERIES);
  for (int q = 0; q < QUERIES; q++) {
    if (seen[q].first >= seen[q].end) continue;
    float* row = scores + q * BLOCK_KEYS;
    const Floats most = all(sums.most[q]);
    Floats weights[GROUPS];
    KD_UNROLLED for (int g = 0; g < GROUPS; g++) weights[g] = exp(load(row + g * LANES) - most);
    sums.total[q] = sums.total[q] * rescale[q] + sum((weights[0] + weights[1]) + (weights[2] + weights[3]));
    KD_UNROLLED for (int g = 0; g < GROUPS; g++) {
      if constexpr (KIND == Kind::u8) weights[g] = weights[g] * load(block.value_scales[g]);
      store(row + g * LANES, weights[g]);
    }
  }
}

template <Kind KIND, int QUERIES>
void attend(const BlockShape& shape, const TileQueries& queries, const Seen* seen, const Block& block, const Block& next,
            const Sums& sums) {
  constexpr int at_once = GROUPS_AT_ONCE<KIND, QUERIES>;
  alignas(64) float scores[QUERIES * BLOCK_KEYS];
  float rescale[LANES];
  if constexpr (KIND == Kind::u8) {  // 16.5 GB/s without, 22.6 with: eight lines that nothing else would ask for in time
    for (int g = 0; g < GROUPS; g++) __builtin_prefetch(next.key_scales[g]), __builtin_prefetch(next.value_scales[g]);
  }
  for (int g = 0; g < GROUPS; g += at_once) score_groups<KIND, QUERIES, at_once>(shape, queries, block, next, g, scores);
  weigh<KIND, QUERIES>(queries, seen, block, scores, sums, rescale);
  Seen common{0, BLOCK_KEYS};
  for (int q = 0; q < QUERIES; q++) {
    common.first = seen[q].first > common.first ? seen[q].first : common.first;
    common.end = seen[q].end < common.end ? seen[q].end : common.end;
  }
  if (common.first >= common.end) common.first = common.end = BLOCK_KEYS;  // each by itself
  // Keys that some queries see and others do not come before and behind those that all see.
  const auto edge = [&](Seen keys) {
    for (int q = 0; q < QUERIES; q++) {
      const Seen own{seen[q].first > keys.first ? seen[q].first : keys.first, seen[q].end < keys.end ? seen[q].end : keys.end};
      if (own.first >= own.end) continue;
      mix<KIND, 1>(shape, block, next, own, scores + q * BLOCK_KEYS, rescale + q, sums.mixed + q * shape.head_dim);
      rescale[q] = 1.0f;
    }
  };
  edge({0, common.first});
  if (common.first < common.end) {
    mix<KIND, QUERIES>(shape, block, next, common, scores, rescale, sums.mixed);
    for (int q = 0; q < QUERIES; q++) rescale[q] = 1.0f;
  }
  edge({common.end, BLOCK_KEYS});
}

template <Kind KIND>
void attend_some(const BlockShape& shape, const TileQueries& queries, int num_queries, const Seen* seen, const Block& block,
                 const Block& next, const Sums& sums) {
  switch (num_queries) {
    case 1: return attend<KIND, 1>(shape, queries, seen, block, next, sums);
    case 2: return attend<KIND, 2>(shape, queries, seen, block, next, sums);
    case 3: return attend<KIND, 3>(shape, queries, seen, block, next, sums);
    case 4: return attend<KIND, 4>(shape, queries, seen, block, next, sums);
#if KD_AVX512
    case 5: return attend<KIND, 5>(shape, queries, seen, block, next, sums);
    case 6: return attend<KIND, 6>(shape, queries, seen, block, next, sums);
#endif
  }
}

}  // namespace

void attend_block(Kind kind, const BlockShape& shape, const TileQueries& queries, int num_queries, const Seen* seen, const Block& block,
                  const Block* next, const Sums& sums) {
  const Block& soon = next ? *next : block;
  if (kind == Kind::f32) return attend_some<Kind::f32>(shape, queries, num_queries, seen, block, soon, sums);
  if (kind == Kind::bf16) return attend_some<Kind::bf16>(shape, queries, num_queries, seen, block, soon, sums);
  attend_some<Kind::u8>(shape, queries, num_queries, seen, block, soon, sums);
}

}  // namespace kd
