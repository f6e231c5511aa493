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

enum class Kind : int32_t { f32 = 0, bf16 = 1, u8 = 2, u4 = 3, f8 = 4 };  // f8, OCP's e4m3: of pages alone

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
// `next`: panels that the caller will read afterwards, to be fetched during the last of these; null: nobody knows. A guess: it is not read.
void linear(const Matrix& matrix, const void* prepared, int num_tokens, int first_panel, int end_panel, const float* bias, float* y,
            size_t y_stride, bool adds, const void* next = nullptr);

// Row n of a matrix as float32 (embedding).
void read_row(const Matrix& matrix, int row, float* out);

// --- attention (attention.cc) ------------------------------------------------------------------------------------------------------------

// One layer's part of a page holds, from `layer_bytes` on behind the frame's start, for P = page_tokens (a multiple of 16), J kv heads, D:
//   keys    f32 [J][D][P]     bf16 [J][D / 2][P][2]     u8 (int8 values), f8 [J][D / 4][P][4]
//   values  [J][P][D]
//   scales  u8 and f8: float32 [J][P] of keys, then [J][P] of values
// so that one vector holds one dimension, or a few, of sixteen keys.
struct Pages {
  Kind kind;  // f32, bf16, u8 (signed 8 bit, symmetric by token and head), f8 (likewise)
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
void clear_tail(const Pages& pages, int64_t frame, int num_tokens);  // zeros at and beyond so many tokens of a page, in this layer

struct AttentionSettings {
  float scale, softcap;  // softcap 0: none
  int32_t window;        // 0: none
  int32_t num_heads;     // query heads are group-major: head h reads KV head h % kv_heads
};

// A step's attention is cut into items: some consecutive tokens of one row, one KV head, and all keys or one partition of them. Cut once
// for each KV group and step, they serve every layer of the group. An item is computed by one thread; whoever is the last of those that
// share tokens puts their partitions together, in order. How a step is cut changes no bit.
//
//   keys        |0            1023|1024         2047|2048    partitions: absolute positions, each summed up by itself, merged in order
//               |0 127|128 255| ...                          blocks: the unit of the online softmax
struct AttentionItem {
  int32_t row, kv_head;
  int32_t first_token, num_tokens;      // of the row's tokens of this step
  int32_t first_partition, num_partitions;
  int32_t num_siblings;                 // items that share the tokens; 1: nothing is to be merged
  int32_t first_partial, partial;       // where the partitions of all siblings lie among the partials, and which of them this one is
  int32_t counter;                      // which of the counters the siblings share
};

// What has to be there before any step, however many rows and tokens it has.
struct AttentionRoom {
  int64_t partial_bytes;  // shared by all threads, for one op at a time
  int64_t counter_bytes;  // zero before the first step; attention() leaves zeros
  int64_t thread_bytes;   // for each thread, from a multiple of 64 bytes on
};

struct AttentionScratch {
  void* partials;
  int32_t* counters;
  void* thread;  // the calling thread's own
};

AttentionRoom attention_room(const Pages& pages, const AttentionSettings& settings, int num_threads);

// Write the items of a step to `items`, unless that is null, and return how many they are. Needs no arena.
int attention_items(const Pages& pages, const AttentionSettings& settings, const AttentionRow* rows, int num_rows, int num_threads,
                    AttentionItem* items);

// Queries are q[t * q_stride + h * D], turned and not scaled; t counts the step's tokens. `lse`, where it is not null, gets the log-sum-exp
// of the scores, [t][num_heads].
struct AttentionValues {
  const float* queries;
  size_t q_stride;
  float* out;  // out[t * out_stride + h * D]
  size_t out_stride;
  float* lse;
};

void attention(const Pages& pages, const AttentionSettings& settings, const AttentionRow* rows, const AttentionItem& item,
               const AttentionValues& values, const AttentionScratch& scratch);

// --- one token's values (rows.cc, rope.cc) ----------------------------------------------------------------------------------------------

// `weight` has been made float32, with the unit offset in it where the model has one. In place is fine where x and y are the same.
void rms_norm(const float* x, const float* weight, float eps, int width, float* y);
void layer_norm(const float* x, const float* weight, const float* bias, float eps, int width, float* y);  // bias may be null
void norm_add(const float* x, const float* weight, float eps, int width, float* residual);                 // residual += rms_norm(x)
void add(const float* x, int width, float* residual);                                                       // residual += x
void scale(float factor, int width, float* x);

enum class Activation : int32_t { silu = 0, gelu = 1, gelu_tanh = 2 };

void act(Activation function, const float* x, int width, float* y);
void act_mul(Activation function, const float* gate, const float* up, int width, float* y);  // y = f(gate) * up
void softcap(float cap, int width, float* x);                                                 // x = cap * tanh(x / cap)

void to_bf16(const float* x, int width, uint16_t* y);  // nearest, ties to even
void from_bf16(const uint16_t* x, int width, float* y);

// The likeliest experts of a token, best first, the smaller of equals before the other, and their shares of a softmax over all of them
// (`is_normalized`: over the chosen ones). Not finite logits give shares that are NaN.
void top_experts(const float* logits, int num_experts, int top_k, bool is_normalized, int32_t* experts, float* shares);

// The index of the greatest, the first of equals; -1 where any is NaN or the greatest is infinite (drivers/sampling.py).
int argmax(const float* logits, int width);

struct RopeSettings {
  int32_t num_heads, num_dims;     // the first `num_dims` dimensions of each head are turned, half against half; 0: none
  const float* query_norm;         // null: no head norm; [D], or all heads' [num_heads * D]
  const float* key_norm;           // [D], or [kv_heads * D]
  float eps;
  bool is_over_all_heads;
};

// One token of a row: qkv [(num_heads + 2 * kv_heads) * D] is normed and turned in place, keys and values go to their page. `cos` and `sin`
// are float32 [num_dims / 2].
void rope_kv_write(const Pages& pages, const RopeSettings& settings, const AttentionRow& row, int token, const float* cos,
                   const float* sin, float* qkv);

}  // namespace kd
