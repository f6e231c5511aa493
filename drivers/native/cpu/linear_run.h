// How panels and tokens are cut into tiles.
#pragma once

#include "linear_tile.h"

namespace kd {

using Tile = void (*)(const Work&, int panel, int token, const Block&, void* carry);

// Shapes of tiles, as measured on a Zen 5 at 4.4 GHz, on which vdpbf16ps takes 6 cycles and vpdpbusd and vfmadd take 4, two of them in a
// cycle, and one core reads 45 GB/s from memory.
//
// One tile for all tokens takes panels one after the other: memory is read from front to back, as the processor's own prefetching likes it
// best, and even one token's chain of sums takes 64 bytes in 6 cycles, 47 GB/s. (Four panels side by side: 10 to 40 % slower up to 8.)
// Where several tiles go over a panel it is in the cache; two panels side by side and 6 to 12 tokens then fill both multipliers: 515 of
// 570 GFLOP/s in bfloat16. Groups need registers for two sums of each output, so that their tiles have 8 tokens.
struct Shapes {
  int max_tokens, min_pair;  // of a tile; of one that has two panels
};

#ifdef KD_AVX512
constexpr Shapes shapes_of(bool is_grouped) { return is_grouped ? Shapes{8, 4} : Shapes{12, 6}; }
#else
constexpr Shapes shapes_of(bool) { return {4, 5}; }
#endif

constexpr int CARRY_TOKENS = 48;   // tokens for which a block of panels stays in the cache
constexpr int BLOCK_STEPS = 1024;  // 64 KiB of a panel

constexpr int parts_of(int size, int largest) { return (size + largest - 1) / largest; }

// Size of the first of as few parts as can be, all of about the same size.
constexpr int even_part(int size, int largest) { return parts_of(size, parts_of(size, largest)); }

// Tiles of one kind, of one panel and of two, by number of tokens.
template <class Steps, bool is_grouped>
struct Tiles {
  static constexpr Shapes SHAPES = shapes_of(is_grouped);
  Tile single[SHAPES.max_tokens], pair[SHAPES.max_tokens];
  template <int T>
  constexpr void fill() {
    single[T - 1] = tile<Steps, is_grouped, T, 1>;
    if constexpr (T >= SHAPES.min_pair) pair[T - 1] = tile<Steps, is_grouped, T, 2>;
    if constexpr (T > 1) fill<T - 1>();
  }
  constexpr Tiles() : single(), pair() { fill<SHAPES.max_tokens>(); }
};

// Some panels side by side, and where the part that is being computed ends.
struct Span {
  int panel, width, end_panel;
};

// What to fetch during tile `index` of `num_tiles` over a block, so that the next block is in the second-level cache when its turn comes.
// Memory then works while tiles compute, and not only during the first of them: up to a third faster at 8 to 32 tokens. Behind the last
// panel that is where the thread goes on, another op's panels mostly: with one token, 129 linears of 6 MB each lost 8 us at every start.
inline void look_ahead(const Work& work, const Span& span, int index, int num_tiles, Block& block) {
  const int each = parts_of(span.width, num_tiles), first = index * each, step = block.is_last ? 0 : block.end_step;
  const int panel = (block.is_last ? span.panel + span.width : span.panel) + first;
  const bool is_inside = panel < span.end_panel;
  const uint8_t* from = is_inside ? static_cast<const uint8_t*>(work.matrix.values) + panel * panel_bytes(work.matrix)
                                  : work.next + first * panel_bytes(work.matrix);
  const int there = first >= span.width ? 0 : is_inside ? span.end_panel - panel : work.next ? each : 0;
  block.num_ahead = there < each ? there : each;
  block.ahead = from + size_t(step) * RAW_BYTES;
}

// All tokens of some panels. Where several tiles go over wide panels, columns are cut into blocks that stay in the cache, in whole groups,
// and tokens into as many as there is room for their sums between two blocks.
inline void run_span(const Work& work, const Tile* tiles, const Span& span, int num_tokens, int max_tokens) {
  alignas(64) uint8_t carry[CARRY_TOKENS * 2 * RAW_BYTES];
  const int steps = num_steps(work.matrix);
  const bool is_cut = num_tokens > max_tokens && steps > BLOCK_STEPS;
  const int group_steps = work.matrix.group ? work.matrix.group / columns_of_step(work.matrix.kind) : 1;
  const int block_steps = is_cut ? int(rounded_up(BLOCK_STEPS, group_steps)) : steps;
  for (int first_token = 0, size; first_token < num_tokens; first_token += size) {
    size = is_cut ? even_part(num_tokens - first_token, CARRY_TOKENS) : num_tokens;
    for (int step = 0; step < steps; step += block_steps) {
      const int end_step = step + block_steps < steps ? step + block_steps : steps;
      Block block = {step, end_step, step == 0, end_step == steps, nullptr, 0};
      for (int token = 0, count, index = 0; token < size; token += count, index++) {
        count = even_part(size - token, max_tokens);
        look_ahead(work, span, index, parts_of(size, max_tokens), block);
        tiles[count - 1](work, span.panel, first_token + token, block, carry + size_t(is_cut ? token : 0) * span.width * RAW_BYTES);
      }
    }
  }
}

template <class Steps, bool is_grouped>
void run(const Work& work, int num_tokens, int first_panel, int end_panel) {
  static constexpr Tiles<Steps, is_grouped> tiles;
  constexpr Shapes shapes = shapes_of(is_grouped);
  int panel = first_panel;
  const bool is_single = num_tokens <= (is_grouped ? shapes.min_pair : shapes.max_tokens);
  if (shapes.min_pair <= shapes.max_tokens && !is_single)
    for (; panel + 2 <= end_panel; panel += 2) run_span(work, tiles.pair, {panel, 2, end_panel}, num_tokens, shapes.max_tokens);
  for (; panel < end_panel; panel++) run_span(work, tiles.single, {panel, 1, end_panel}, num_tokens, shapes.max_tokens);
}

}  // namespace kd
