// The inner loops of the CPU driver: what one thread does of one op. Threads, and the order of ops, are the engine's.
//
// Values of a step are float32, row after row: x[t * width]. Weights are in panels (drivers/models/storage.py). Keys and values are in
// pages (below). Every function is pure but for its outputs, allocates nothing, and may be called by several threads for different parts.
//
// Rule 1, batch invariance: the bits of a token's result are a function of that token's inputs alone. Whatever rows stand beside it,
// however a step was cut into parts, and whether it was computed by itself or in a prefill, every sum is taken in the same order with the
// same instructions. Tiles may be wider or narrower; they may not change the order of one element's additions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kd {

enum class Kind : int32_t { f32 = 0, bf16 = 1, u8 = 2, u4 = 3 };

// A matrix in panels. `rows` is the true number; panels are padded to a multiple of 16 rows.
struct Matrix {
  Kind kind;
  int32_t rows;     // outputs
  int32_t columns;  // inputs
  int32_t group;    // columns of one scale, a multiple of 32; 0: a whole row, scales are float32; else float16
  const void* values;
  const void* scales;
  const void* offsets;  // float32; null: symmetric
};

// --- linears (linear.cc) ---------------------------------------------------------------------------------------------------------------

// Inputs of a linear are prepared once for all threads: float32 as they are, bfloat16 rounded, or int8 with one scale for each token and,
// for each group, the sum of its values.
size_t prepared_bytes(const Matrix& matrix, int num_tokens);
void prepare(const Matrix& matrix, const float* x, size_t x_stride, int first_token, int end_token, int num_tokens, void* prepared);

// y[t * y_stride + n] = sum_k w[n, k] x[t, k] (+ bias[n]) for n of panels [first_panel, end_panel) and all tokens; `adds`: += instead.
void linear(const Matrix& matrix, const void* prepared, int num_tokens, int first_panel, int end_panel, const float* bias, float* y,
            size_t y_stride, bool adds);

// Row n of a matrix as float32 (embedding).
void read_row(const Matrix& matrix, int row, float* out);

// --- attention (attention.cc) ------------------------------------------------------------------------------------------------------------

// One layer's part of a page holds, from `layer_bytes` on behind the frame's start, for P = page_tokens (a multiple of 16), J kv heads, D:
//   keys    f32 [J][D][P]     bf16 [J][D / 2][P][2]     u8 (int8 values) [J][D / 4][P][4]
//   values  [J][P][D]
//   scales  u8 only: float32 [J][P] of keys, then [J][P] of values
// so that one vector holds one dimension, or a few, of sixteen keys.
struct Pages {
  Kind kind;  // f32, bf16, u8 (signed 8 bit, symmetric by token and head)
  int32_t page_tokens, kv_heads, head_dim;
  int64_t granule_bytes;
  uint8_t* arena;       // frame f starts at arena + f * granule_bytes
  int64_t layer_bytes;  // where this layer's part begins in a frame
};

struct AttentionRow {
  int32_t start, count;  // tokens of the step
  int32_t position;      // of the first of them
  int32_t first_page;    // frames before it may name anything
  const int64_t* frames;
};

size_t layer_part_bytes(const Pages& pages);
void kv_write(const Pages& pages, const AttentionRow& row, int token, const float* keys, const float* values);  // [J][D] each

struct AttentionSettings {
  float scale, softcap;  // softcap 0: none
  int32_t window;        // 0: none
  int32_t num_heads;     // query heads are group-major: head h reads KV head h % kv_heads
};

}  // namespace kd
