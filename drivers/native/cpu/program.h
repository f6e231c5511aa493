// What lowering makes of a model (drivers/native/records.py has the same structures), and what one step brings. Lowering has checked the
// program; `check_step` checks the step; nothing behind them looks at bounds again.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace kd {

enum class Code : int32_t { embed, embed_positions, norm, linear, add, act, act_mul, rope_kv_write, attention, experts, softcap };
enum class Norm : int32_t { none, rms, layer };
enum class Epilogue : int32_t { none, add, act, act_mul };

// A place in a segment; the address of each segment comes with every pass.
struct Vector {
  int32_t segment;  // -1: there is none
  int32_t size;
  int64_t offset;
};

struct Weight {
  int32_t segment;  // -1: there is none
  Kind kind;
  int32_t rows, columns, group;
  int64_t values, scales, offsets;                       // of the first matrix; offsets -1: symmetric
  int64_t values_bytes, scales_bytes, offsets_bytes;     // from one matrix to the next
};

// One call. Which fields mean something depends on `code`.
struct Op {
  Code code;
  Norm norm;          // of the input, before anything else
  Epilogue epilogue;  // what becomes of a linear's outputs, or of a norm's
  Activation function;
  int32_t input, output;  // values
  int32_t layer;          // -1 outside of the layers
  int32_t place;          // of adapters: 0 qkv, 1 output, 2 gate_up, 3 down; -1: none
  int32_t group;          // of KV
  int32_t table, num_dims, is_over_all_heads;      // rope_kv_write
  int32_t has_unit_offset, has_head_unit_offset;   // norm weights are what is to be added to 1
  int32_t num_experts, top_k, is_normalized;
  int32_t profiled_as;
  float eps, head_eps, scale, cap;
  int64_t layer_bytes;  // of a frame
  Vector norm_weight, norm_bias, bias, query_norm, key_norm;
  Weight weight, down, router;
};

struct GroupShape {
  int64_t frame_bytes;
  int32_t window;  // 0: none
  int32_t reserved;
};

struct ModelShape {
  int32_t num_heads, kv_heads, head_dim, page_tokens;
  int32_t vocab_size, max_positions, num_groups, num_tables;
  Kind kv_kind;
  int32_t reserved;
  int64_t granule_bytes;
};

struct Rotary {
  const float* inverse_frequencies;
  int32_t num_pairs;
  float factor;
};

struct LoraBlock {  // drivers/native/lora.py, as all of this
  uint32_t first_rank, end_rank, first_row, end_row;
};

struct LoraPair {
  const void* down;
  const void* up;
  uint64_t num_blocks;
  LoraBlock blocks[3];
};

struct Step {
  int64_t num_tokens, num_rows;
  const int64_t* tokens;          // null: tokens are not embedded, and rows are not attended (logits)
  const int32_t* rows;            // [num_rows][3 + groups]: start, count, position, pages of each group's table
  const int64_t* const* frames;   // [groups]: tables of all rows, one behind the other
  int64_t num_lora_tokens, num_adapters;
  const int64_t* lora_tokens;
  const int64_t* lora_counts;          // [adapters]
  const LoraPair* const* lora_tables;  // [adapters][layers * 4]
  int32_t is_lora_bf16, reserved;
};

struct Arena {
  uint8_t* address;
  int64_t size_bytes;
};

// What a call of the engine answers; drivers/native/engine.py has a sentence for each.
enum Outcome : int32_t { FINE = 0, WRONG_TOKEN = 1, WRONG_POSITION = 2, WRONG_ROW = 3, WRONG_FRAME = 4, NO_MEMORY = 5, WRONG_ADAPTER = 6 };

}  // namespace kd
