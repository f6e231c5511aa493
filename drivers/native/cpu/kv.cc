// Where keys and values of a token lie in a page (kernels.h), and how they are written there.
//
// Keys are written as words of four bytes: one float32, two bfloat16 or four int8 of one token. Word w of a token at offset o of its page
// is word w * page_tokens + o of the head's keys.
#include "functions.h"
#include "kernels.h"
#include "kv.h"

namespace kd {

namespace {

// int8 by token and head: x = scale * q, q in [-127, 127]. A value that is not finite makes the scale so, and with it every score.
float quantize(const float* x, int width, int8_t* q) {
  float most = 0.0f;
  for (int d = 0; d < width; d++) {
    const float size = std::fabs(x[d]);
    most = size <= most || most != most ? most : size;  // NaN is taken, and kept
  }
  const float inverse = most > 0.0f && most < INFINITE ? 127.0f / most : 0.0f;
  for (int d = 0; d < width; d++) {
    const float scaled = x[d] * inverse;
    q[d] = scaled == scaled ? static_cast<int8_t>(std::nearbyint(scaled)) : 0;
  }
  return most / 127.0f;
}

// The words of one head, row after row of sixty-four bytes or more: `row` has room for head_dim float32.
float packed(Kind kind, const float* x, int head_dim, uint8_t* row) {
  if (kind == Kind::u8) return quantize(x, head_dim, reinterpret_cast<int8_t*>(row));
  if (kind == Kind::bf16) {
    to_bf16(x, head_dim, reinterpret_cast<uint16_t*>(row));
  } else {
    std::memcpy(row, x, head_dim * sizeof(float));
  }
  return 0.0f;
}

}  // namespace

size_t layer_part_bytes(const Pages& pages) {
  const size_t slots = size_t(pages.page_tokens) * pages.kv_heads;
  return 2 * slots * pages.head_dim * item_bytes(pages.kind) + (pages.kind == Kind::u8 ? 2 * slots * sizeof(float) : 0);
}

void kv_write(const Pages& pages, const AttentionRow& row, int token, const float* keys, const float* values) {
  const int position = row.position + token, tokens = pages.page_tokens, head_dim = pages.head_dim;
  const int slot = position % tokens;
  const int num_words = head_dim * item_bytes(pages.kind) / 4;
  alignas(64) uint8_t row_of_words[MOST_HEAD_DIM * sizeof(float)];
  for (int head = 0; head < pages.kv_heads; head++) {
    const HeadOfPage place = head_of_page(pages, row.frames[position / tokens], head);
    const float key_scale = packed(pages.kind, keys + head * head_dim, head_dim, row_of_words);
    for (int word = 0; word < num_words; word++) std::memcpy(place.keys + (size_t(word) * tokens + slot) * 4, row_of_words + word * 4, 4);
    const float value_scale = packed(pages.kind, values + head * head_dim, head_dim, row_of_words);
    std::memcpy(place.values + size_t(slot) * num_words * 4, row_of_words, num_words * 4);
    if (pages.kind == Kind::u8) place.key_scales[slot] = key_scale, place.value_scales[slot] = value_scale;
  }
}

void clear_tail(const Pages& pages, int64_t frame, int num_tokens) {
  const int tokens = pages.page_tokens, rest = tokens - num_tokens;
  const int num_words = pages.head_dim * item_bytes(pages.kind) / 4;
  for (int head = 0; head < pages.kv_heads; head++) {
    const HeadOfPage place = head_of_page(pages, frame, head);
    for (int word = 0; word < num_words; word++) std::memset(place.keys + (size_t(word) * tokens + num_tokens) * 4, 0, rest * 4);
    std::memset(place.values + size_t(num_tokens) * num_words * 4, 0, size_t(rest) * num_words * 4);
    if (pages.kind == Kind::u8) {
      std::memset(place.key_scales + num_tokens, 0, rest * sizeof(float));
      std::memset(place.value_scales + num_tokens, 0, rest * sizeof(float));
    }
  }
}

}  // namespace kd
