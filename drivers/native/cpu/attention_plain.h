// From scores to mixed values with weights in float32.
#pragma once

#include "attention_scores.h"

namespace kd {

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
  constexpr int row_bytes = VECTORS * LANES * ITEM_BYTES<KIND>;
  for (int group = keys.first / GROUP_KEYS; group * GROUP_KEYS < keys.end; group++) {
    const int begin = group * GROUP_KEYS, first = keys.first > begin ? keys.first : begin;
    const int end = keys.end < begin + GROUP_KEYS ? keys.end : begin + GROUP_KEYS;
    const uint8_t* at = block.values[group] + (first - begin) * shape.value_stride + size_t(dim) * ITEM_BYTES<KIND>;
    const int first_line = dim * ITEM_BYTES<KIND> * GROUP_KEYS / LINE_BYTES;
    for (int key = first; key < end; key++, at += shape.value_stride) {
      Floats values[VECTORS];
      KD_UNROLLED for (int v = 0; v < VECTORS; v++) values[v] = values_at<KIND>(at + v * LANES * ITEM_BYTES<KIND>);
      const int line = first_line + (key - begin) * row_bytes / LINE_BYTES;
      KD_UNROLLED for (int i = 0; i < row_bytes; i += LINE_BYTES)
        __builtin_prefetch(next.keys[group] + (line + i / LINE_BYTES) * shape.word_stride);
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
    sums.total[q] = sums.total[q] * rescale[q] + sum(total_of(weights));
    KD_UNROLLED for (int g = 0; g < GROUPS; g++) {
      if constexpr (KIND == Kind::u8) weights[g] = weights[g] * load(block.value_scales[g]);
      store(row + g * LANES, weights[g]);
    }
  }
}

}  // namespace kd
