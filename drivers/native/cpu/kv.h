// Addresses inside a page.
#pragma once

#include "kernels.h"

namespace kd {

constexpr int MOST_HEAD_DIM = 256;

inline bool has_scales(Kind kind) { return kind == Kind::u8 || kind == Kind::f8; }

inline int item_bytes(Kind kind) { return kind == Kind::f32 ? 4 : kind == Kind::bf16 ? 2 : 1; }

// One KV head's part of one layer's part of a frame.
struct HeadOfPage {
  uint8_t* keys;
  uint8_t* values;
  float* key_scales;  // where the kind has them
  float* value_scales;
};

inline HeadOfPage head_of_page(const Pages& pages, int64_t frame, int head) {
  const size_t head_bytes = size_t(pages.page_tokens) * pages.head_dim * item_bytes(pages.kind);
  uint8_t* part = pages.arena + frame * pages.granule_bytes + pages.layer_bytes;
  uint8_t* scales = part + 2 * head_bytes * pages.kv_heads;
  float* key_scales = reinterpret_cast<float*>(scales) + size_t(head) * pages.page_tokens;
  return {part + head_bytes * head, part + head_bytes * (pages.kv_heads + head), key_scales,
          key_scales + size_t(pages.kv_heads) * pages.page_tokens};
}

}  // namespace kd
