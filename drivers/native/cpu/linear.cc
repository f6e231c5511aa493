// Linears: how panels and tokens are cut into tiles.
#include "linear_tile.h"

namespace kd {
namespace {

using Tile = void (*)(const Work&, int panel, int token, const Block&, void* carry);

#if KD_AVX512
constexpr int MAX_TOKENS = 6;
#else
constexpr int MAX_TOKENS = 4;
#endif

constexpr int WIDTHS[] = {4, 2, 1};  // panels side by side in a tile

// Which of them first, for tiles of so many tokens.
constexpr int first_width(int tokens, bool is_grouped) {
#if KD_AVX512
  return is_grouped && tokens > 3 ? 1 : 0;
#else
  return tokens == 1 && !is_grouped ? 1 : 2;
#endif
}

constexpr int CARRY_TOKENS = 48;  // tokens for which a block of panels stays in the cache
constexpr int BLOCK_BYTES = 64 * 1024;  // of one panel

// Tiles of one kind, by width and number of tokens.
template <class Steps, bool is_grouped>
struct Tiles {
  Tile of[3][MAX_TOKENS];
  template <int T>
  constexpr void fill() {
    of[0][T - 1] = tile<Steps, is_grouped, T, WIDTHS[0]>;
    of[1][T - 1] = tile<Steps, is_grouped, T, WIDTHS[1]>;
    of[2][T - 1] = tile<Steps, is_grouped, T, WIDTHS[2]>;
    if constexpr (T > 1) fill<T - 1>();
  }
  constexpr Tiles() : of() { fill<MAX_TOKENS>(); }
};

// Tokens of the first of as few tiles as can be, all of about the same size.
int tile_tokens(int num_tokens) {
  const int num_tiles = (num_tokens + MAX_TOKENS - 1) / MAX_TOKENS;
  return (num_tokens + num_tiles - 1) / num_tiles;
}

// All tokens of some panels; columns in blocks where there are tokens to make use of them.
void run_panels(const Work& work, const Tile* tiles, int panel, int num_panels, int num_tokens) {
  alignas(64) uint8_t carry[CARRY_TOKENS * WIDTHS[0] * RAW_BYTES];
  const int steps = num_steps(work.matrix);
  int block_steps = BLOCK_BYTES / RAW_BYTES;
  if (work.matrix.group) block_steps = int(rounded_up(block_steps, work.matrix.group / columns_of_step(work.matrix.kind)));
  const bool is_cut = num_tokens > 2 * MAX_TOKENS && steps > block_steps;
  const int at_once = is_cut ? CARRY_TOKENS : num_tokens;
  if (!is_cut) block_steps = steps;
  for (int first_token = 0; first_token < num_tokens; first_token += at_once) {
    const int end_token = first_token + at_once < num_tokens ? first_token + at_once : num_tokens;
    for (int step = 0; step < steps; step += block_steps) {
      const int end_step = step + block_steps < steps ? step + block_steps : steps;
      const Block block = {step, end_step, step == 0, end_step == steps};
      for (int token = first_token, count; token < end_token; token += count) {
        count = tile_tokens(end_token - token);
        tiles[count - 1](work, panel, token, block, carry + size_t(is_cut ? token - first_token : 0) * num_panels * RAW_BYTES);
      }
    }
  }
}

template <class Steps, bool is_grouped>
void run(const Work& work, int num_tokens, int first_panel, int end_panel) {
  static constexpr Tiles<Steps, is_grouped> tiles;
  int panel = first_panel;
  for (int width = first_width(tile_tokens(num_tokens), is_grouped); width < 3; width++)
    for (; panel + WIDTHS[width] <= end_panel; panel += WIDTHS[width]) run_panels(work, tiles.of[width], panel, WIDTHS[width], num_tokens);
}

}  // namespace

void linear(const Matrix& matrix, const void* prepared, int num_tokens, int first_panel, int end_panel, const float* bias, float* y,
            size_t y_stride, bool adds) {
  if (num_tokens == 0) return;
  const Work work = {matrix, prepared_layout(matrix, num_tokens), static_cast<const uint8_t*>(prepared), bias, y, y_stride, adds};
  if (matrix.kind == Kind::f32) run<FloatSteps, false>(work, num_tokens, first_panel, end_panel);
  if (matrix.kind == Kind::bf16) run<PairSteps, false>(work, num_tokens, first_panel, end_panel);
  if (matrix.kind == Kind::u8 && matrix.group) run<ByteSteps, true>(work, num_tokens, first_panel, end_panel);
  if (matrix.kind == Kind::u8 && !matrix.group) run<ByteSteps, false>(work, num_tokens, first_panel, end_panel);
  if (matrix.kind == Kind::u4 && matrix.group) run<NibbleSteps, true>(work, num_tokens, first_panel, end_panel);
  if (matrix.kind == Kind::u4 && !matrix.group) run<NibbleSteps, false>(work, num_tokens, first_panel, end_panel);
}

}  // namespace kd

using namespace kd;

KD_EXPORT size_t kd_prepared_bytes(const Matrix* matrix, int num_tokens) { return prepared_bytes(*matrix, num_tokens); }

KD_EXPORT void kd_prepare(const Matrix* matrix, const float* x, size_t x_stride, int num_tokens, void* prepared) {
  prepare(*matrix, x, x_stride, 0, num_tokens, num_tokens, prepared);
}

KD_EXPORT void kd_linear(const Matrix* matrix, const void* prepared, int num_tokens, int first_panel, int end_panel, const float* bias, float* y,
                         size_t y_stride, bool adds) {
  linear(*matrix, prepared, num_tokens, first_panel, end_panel, bias, y, y_stride, adds);
}
