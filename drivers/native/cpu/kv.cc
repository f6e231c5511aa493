// Where keys and values of a token lie in a page (kernels.h), and how they are written there.
//
// Keys are written as words of four bytes: one float32, two bfloat16, or four int8 or e4m3 of one token. Word w of a token at offset o of
// its page is word w * page_tokens + o of the head's keys.
#include "functions.h"
#include "kernels.h"
#include "kv.h"

namespace kd {

namespace {

constexpr float MOST_E4M3 = 448.0f;

float greatest_size(const float* x, int width) {
  float most = 0.0f;
  for (int d = 0; d < width; d++) {
    const float size = std::fabs(x[d]);
    most = size <= most || most != most ? most : size;  // NaN is taken, and kept
  }
  return most;
}

// int8 by token and head: x = scale * q, q in [-127, 127]. A value that is not finite makes the scale so, and with it every score.
float quantize(const float* x, int width, int8_t* q) {
  const float most = greatest_size(x, width);
  const float inverse = most > 0.0f && most < INFINITE ? 127.0f / most : 0.0f;
  for (int d = 0; d < width; d++) {
    const float scaled = x[d] * inverse;
    q[d] = scaled == scaled ? static_cast<int8_t>(std::nearbyint(scaled)) : 0;
  }
  return most / 127.0f;
}

// e4m3 of what is no greater than 448, but for rounding: to nearest, ties to even. Neither NaN nor 480, which has no place, comes of it.
uint8_t e4m3_of(float x) {
  const float size = std::fabs(x), small = size + 0x1p14f;  // whose last bit is 2^-9, the step of what is below 2^-6
  uint32_t bits, small_bits;
  std::memcpy(&bits, &size, 4), std::memcpy(&small_bits, &small, 4);
  const uint32_t code = size < 0x1p-6f ? small_bits & 15 : ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - (120 << 3);
  return uint8_t(code | (std::signbit(x) ? 0x80 : 0));
}

// The same in e4m3, of which the greatest of a head is 448: x = scale * q.
float quantize_e4m3(const float* x, int width, uint8_t* q) {
  const float most = greatest_size(x, width);
  const float inverse = most > 0x1p-100f && most < INFINITE ? MOST_E4M3 / most : 0.0f;
  for (int d = 0; d < width; d++) q[d] = e4m3_of(inverse > 0.0f ? x[d] * inverse : 0.0f);
  return most / MOST_E4M3;
}

// The words of one head, row after row of sixty-four bytes or more: `row` has room for head_dim float32.
float packed(Kind kind, const float* x, int head_dim, uint8_t* row) {
  if (kind == Kind::u8) return quantize(x, head_dim, reinterpret_cast<int8_t*>(row));
  if (kind == Kind::f8) return quantize_e4m3(x, head_dim, row);
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
  return 2 * slots * pages.head_dim * item_bytes(pages.kind) + (has_scales(pages.kind) ? 2 * slots * sizeof(float) : 0);
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
    if (has_scales(pages.kind)) place.key_scales[slot] = key_scale, place.value_scales[slot] = value_scale;
  }
}

void clear_tail(const Pages& pages, int64_t frame, int num_tokens) {
  const int tokens = pages.page_tokens, rest = tokens - num_tokens;
  const int num_words = pages.head_dim * item_bytes(pages.kind) / 4;
  for (int head = 0; head < pages.kv_heads; head++) {
    const HeadOfPage place = head_of_page(pages, frame, head);
    for (int word = 0; word < num_words; word++) std::memset(place.keys + (size_t(word) * tokens + num_tokens) * 4, 0, rest * 4);
    std::memset(place.values + size_t(num_tokens) * num_words * 4, 0, size_t(rest) * num_words * 4);
    if (has_scales(pages.kind)) {
      std::memset(place.key_scales + num_tokens, 0, rest * sizeof(float));
      std::memset(place.value_scales + num_tokens, 0, rest * sizeof(float));
    }
  }
}

}  // namespace kd
