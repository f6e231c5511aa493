// Attention and the row kernels for callers outside of the engine: the check at load, and tests.
#include <cstdlib>

#include "functions.h"
#include "kernels.h"
#include "products.h"
#include "threads.h"

namespace kd {

namespace {

// Memory of a call; the kernels themselves take none.
struct Memory {
  void* at;

  explicit Memory(size_t size_bytes) : at(std::malloc(size_bytes)) {
    if (!at) std::abort();  // as any other allocation of this library would end
  }
  ~Memory() { std::free(at); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
};

enum class RowOp : int32_t { rms_norm, layer_norm, norm_add, add, act, act_mul, softcap, exp, tanh, erf };

// What a row kernel is given: which of these mean something depends on the op.
struct RowCall {
  const float *x, *other, *bias;
  float* y;
  float number;
  Activation function;
};

template <typename Function>
void map(const float* x, int width, float* y, Function function) {
  for (int i = 0; i < width; i += LANES) {
    const int n = width - i < LANES ? width - i : LANES;
    store_part(y + i, function(load_part(x + i, n)), n);
  }
}

struct Attending {
  const Pages& pages;
  const AttentionSettings& settings;
  const AttentionRow* rows;
  AttentionItem* items;
  const AttentionValues& values;
  void* partials;
  int32_t* counters;
  uint8_t* own;  // `own_bytes` for each thread
  int64_t own_bytes;
};

void attend_part(void* of, int part, int thread) {
  const Attending& work = *static_cast<Attending*>(of);
  const AttentionScratch scratch{work.partials, work.counters, work.own + thread * work.own_bytes};
  attention(work.pages, work.settings, work.rows, work.items[part], work.values, scratch);
}

}  // namespace

KD_EXPORT size_t kd_layer_part_bytes(const Pages* pages) { return layer_part_bytes(*pages); }

// Keys and values [token][kv_heads][head_dim] of a step's tokens, `stride` floats from one token to the next.
KD_EXPORT void kd_kv_write(const Pages* pages, const AttentionRow* rows, int num_rows, const float* keys, const float* values,
                           size_t stride) {
  for (int r = 0; r < num_rows; r++)
    for (int token = 0; token < rows[r].count; token++)
      kv_write(*pages, rows[r], token, keys + (rows[r].start + token) * stride, values + (rows[r].start + token) * stride);
}

KD_EXPORT void kd_clear_tail(const Pages* first_layer, int64_t frame, int num_tokens, int num_layers) {
  Pages pages = *first_layer;
  for (int layer = 0; layer < num_layers; layer++, pages.layer_bytes += layer_part_bytes(pages)) clear_tail(pages, frame, num_tokens);
}

// `num_threads`: how many the step is cut for. Who computes: `threads`, or where that is null the caller alone, from the last item to the
// first, every `order`-th of them at a time. Returns the number of items, or -1 where a counter was not left at zero.
KD_EXPORT int kd_attention(const Pages* pages, const AttentionSettings* settings, const AttentionRow* rows, int num_rows,
                           const AttentionValues* values, int num_threads, int order, Threads* threads) {
  const AttentionRoom room = attention_room(*pages, *settings, num_threads);
  const int most_items = attention_items(*pages, *settings, rows, num_rows, num_threads, nullptr);
  const Memory items(most_items * sizeof(AttentionItem)), partials(room.partial_bytes), counters(room.counter_bytes),
      own(room.thread_bytes * (threads ? threads->count() : 1));
  Attending work{*pages, *settings, rows, static_cast<AttentionItem*>(items.at), *values, partials.at, static_cast<int32_t*>(counters.at),
                 static_cast<uint8_t*>(own.at), room.thread_bytes};
  std::memset(counters.at, 0, room.counter_bytes);
  const int num_items = attention_items(*pages, *settings, rows, num_rows, num_threads, work.items);
  if (threads) {
    threads->run(attend_part, &work, num_items);
  } else {
    for (int first = 0; first < order; first++)
      for (int i = first; i < num_items; i += order) attend_part(&work, num_items - 1 - i, 0);
  }
  for (size_t i = 0; i < room.counter_bytes / sizeof(int32_t); i++)
    if (work.counters[i] != 0) return -1;
  return num_items;
}

KD_EXPORT void kd_rope_kv_write(const Pages* pages, const RopeSettings* settings, const AttentionRow* rows, int num_rows, const float* cos,
                              const float* sin, float* qkv) {
  const size_t width = size_t(settings->num_heads + 2 * pages->kv_heads) * pages->head_dim, half = settings->num_dims / 2;
  for (int r = 0; r < num_rows; r++)
    for (int token = 0; token < rows[r].count; token++) {
      const size_t at = rows[r].start + token;
      rope_kv_write(*pages, *settings, rows[r], token, cos + at * half, sin + at * half, qkv + at * width);
    }
}

KD_EXPORT void kd_row(RowOp op, const RowCall* call, int num_rows, int width) {
  for (int r = 0; r < num_rows; r++) {
    const size_t at = size_t(r) * width;
    const float* x = call->x + at;
    float* y = call->y + at;
    switch (op) {
      case RowOp::rms_norm: rms_norm(x, call->other, call->number, width, y); break;
      case RowOp::layer_norm: layer_norm(x, call->other, call->bias, call->number, width, y); break;
      case RowOp::norm_add: norm_add(x, call->other, call->number, width, y); break;
      case RowOp::add: add(x, width, y); break;
      case RowOp::act: act(call->function, x, width, y); break;
      case RowOp::act_mul: act_mul(call->function, x, call->other + at, width, y); break;
      case RowOp::softcap: softcap(call->number, width, y); break;
      case RowOp::exp: map(x, width, y, [](Floats a) { return exp(a); }); break;
      case RowOp::tanh: map(x, width, y, [](Floats a) { return tanh(a); }); break;
      case RowOp::erf: map(x, width, y, [](Floats a) { return erf(a); }); break;
    }
  }
}

KD_EXPORT void kd_argmax(const float* logits, int num_rows, int width, int32_t* found) {
  for (int r = 0; r < num_rows; r++) found[r] = argmax(logits + size_t(r) * width, width);
}

KD_EXPORT void kd_top_experts(const float* logits, int num_rows, int num_experts, int top_k, bool is_normalized, int32_t* experts,
                            float* shares) {
  for (int r = 0; r < num_rows; r++)
    top_experts(logits + size_t(r) * num_experts, num_experts, top_k, is_normalized, experts + size_t(r) * top_k,
                shares + size_t(r) * top_k);
}

}  // namespace kd
