// The inner loops of attention: some queries over one block of 128 keys.
//
// Every element is summed up in one order, whatever stands beside it: a score over the dimensions from the first on, a mixed value over the
// keys that its query sees from the first on. What a query does not see is never added, not even times zero, where it might be no number.
//
// Each line of keys fetches one of the block's values, each line of values one of the next block's keys. Measured on one Zen 5 core, 135M
// shape, bfloat16: 85 GB/s out of the second cache with 12 instructions a line (61 with 18, weights in float32, blocks of 64 keys), 28 to
// 29 out of memory (27), over 2 KB pieces in no order; a loop that does nothing but read them, 40, and one with eight sums a line, 30 to
// 33. Int8: 44 (32) and 24 (24). Blocks of 64 keys (76), fetching into the second cache only (25 out of memory) and fetching four groups
// of keys in turns (no difference) were not better.
#include "attention_plain.h"
#if KD_AVX512
#include "attention_rounded.h"
#endif

namespace kd {

namespace {

template <Kind KIND, int QUERIES>
void attend(const BlockShape& shape, const TileQueries& queries, const Seen* seen, const Block& block, const Block& next,
            const Sums& sums) {
  constexpr int at_once = GROUPS_AT_ONCE<KIND, QUERIES>;
  alignas(64) float scores[QUERIES * BLOCK_KEYS];
  float rescale[LANES];
  Seen any{BLOCK_KEYS, 0};
  for (int q = 0; q < QUERIES; q++) {
    if (seen[q].first >= seen[q].end) continue;
    any.first = seen[q].first < any.first ? seen[q].first : any.first, any.end = seen[q].end > any.end ? seen[q].end : any.end;
  }
  for (int g = any.first / GROUP_KEYS / at_once * at_once; g * GROUP_KEYS < any.end; g += at_once)
    score_groups<KIND, QUERIES, at_once>(shape, queries, block, g, scores);
  if constexpr (KIND == Kind::u8) {
    for (int g = 0; g < GROUPS; g++) __builtin_prefetch(next.key_scales[g]), __builtin_prefetch(next.value_scales[g]);
  }
#if KD_AVX512
  if constexpr (KIND != Kind::f32) {
    Rounded<KIND, QUERIES> weights;
    weigh_rounded(queries, seen, block, scores, sums, rescale, &weights);
    return mix_rounded(shape, block, next, seen, weights, rescale, sums.mixed);
  }
#endif
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
