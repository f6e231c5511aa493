// Queries and keys of one token: normed, turned by their position, written to their page.
#include "isa.h"
#include "kernels.h"

namespace kd {

namespace {

void norm_heads(const float* weight, const RopeSettings& settings, int num_heads, int head_dim, float* heads) {
  if (settings.is_over_all_heads) return rms_norm(heads, weight, settings.eps, num_heads * head_dim, heads);
  for (int head = 0; head < num_heads; head++)
    rms_norm(heads + head * head_dim, weight, settings.eps, head_dim, heads + head * head_dim);
}

void turn(float* head, int half, const float* cos, const float* sin) {
  for (int d = 0; d < half; d += LANES) {
    const int n = half - d < LANES ? half - d : LANES;
    const Floats low = load_part(head + d, n), high = load_part(head + half + d, n);
    const Floats c = load_part(cos + d, n), s = load_part(sin + d, n);
    store_part(head + d, low * c - high * s, n);
    store_part(head + half + d, high * c + low * s, n);
  }
}

}  // namespace

void rope_kv_write(const Pages& pages, const RopeSettings& settings, const AttentionRow& row, int token, const float* cos,
                   const float* sin, float* qkv) {
  const int head_dim = pages.head_dim, num_turned = settings.num_heads + pages.kv_heads;
  float* keys = qkv + settings.num_heads * head_dim;
  if (settings.query_norm) norm_heads(settings.query_norm, settings, settings.num_heads, head_dim, qkv);
  if (settings.key_norm) norm_heads(settings.key_norm, settings, pages.kv_heads, head_dim, keys);
  if (settings.num_dims > 0)
    for (int head = 0; head < num_turned; head++) turn(qkv + head * head_dim, settings.num_dims / 2, cos, sin);
  kv_write(pages, row, token, keys, keys + pages.kv_heads * head_dim);
}

}  // namespace kd
