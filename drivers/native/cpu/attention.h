// What the files of attention share: blocks of keys, the queries of an item, and what is known of a query so far.
#pragma once

#include "kernels.h"
#include "isa.h"

namespace kd {

constexpr int BLOCK_KEYS = 128;
constexpr int PARTITION_KEYS = 1024;
constexpr int GROUP_KEYS = 16;  // as many as are side by side in a page for sure
constexpr int GROUPS = BLOCK_KEYS / GROUP_KEYS;
constexpr int LINE_BYTES = 64;
constexpr int ITEM_QUERIES = 96;  // of an item at most: their sums, 24 KB at 64 dimensions, stay near while keys pass by
constexpr int RECORD_EXTRA = 16;  // floats of a partial beside its sums: the maximum, the total, and room to keep 64 bytes

#if KD_AVX512
constexpr int TILE_QUERIES = 6;  // whose sums fill the registers: 6 x 4 of 32
#else
constexpr int TILE_QUERIES = 4;
#endif

// What f8 is attended as.
#if KD_AVX512
using Wide = uint16_t;
constexpr Kind WIDE = Kind::bf16;
#else
using Wide = float;
constexpr Kind WIDE = Kind::f32;
#endif

// Keys of a block and their values, in groups. A group that no query of the item sees is an alias of one that is seen.
struct Block {
  const uint8_t* keys[GROUPS];
  const uint8_t* values[GROUPS];
  const float* key_scales[GROUPS];
  const float* value_scales[GROUPS];
};

struct BlockShape {
  int head_dim, num_words;
  size_t word_stride;   // bytes from one word of a token's key to the next
  size_t value_stride;  // bytes from one token's values to the next
};

// The queries of a tile: words[w][part][query]; u8 has two parts, the upper and the lower digit of sixteen bits.
struct TileQueries {
  const uint32_t* words;
  const float* factors;     // of the scores, by query
  const int32_t* offsets;   // u8: [part][query], what every sum of products begins with
  float softcap;
};

// The online softmax of some queries: sum of exp(score - most) and of that times the values.
struct Sums {
  float* most;
  float* total;
  float* mixed;  // [query][head_dim]
};

// Keys [first, end) of a block.
struct Seen {
  int first, end;
};

inline int item_tokens(int num_heads, int kv_heads) { return ITEM_QUERIES * kv_heads >= num_heads ? ITEM_QUERIES * kv_heads / num_heads : 1; }

// The keys that the token at `position` sees: [first, position].
inline int first_seen(int position, int window) { return window > 0 && position >= window ? position - window + 1 : 0; }

// A query as words of one tile: `at` is the first, `step` from one to the next, `part` from the upper digits to the lower.
void pack_query(Kind kind, const float* x, int head_dim, uint32_t* at, int step, int part, float* factor, int32_t* offsets);

// A block of f8 as one of WIDE, in `room`, [2][BLOCK_KEYS][head_dim]; `next`: the block that will be widened after it, or the same.
Block widen(const BlockShape& kept, const Block& block, const Block& next, Wide* room);

// One block for the queries of one tile; `next`: the block that will be attended after it, or null.
void attend_block(Kind kind, const BlockShape& shape, const TileQueries& queries, int num_queries, const Seen* seen, const Block& block,
                  const Block* next, const Sums& sums);

}  // namespace kd
