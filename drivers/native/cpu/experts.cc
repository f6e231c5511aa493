// A mixture of experts: each token goes through `top_k` of many feed-forward blocks, and gets the sum of what they say by their shares.
//
//     x --router--> top_k experts and shares of each token
//     tokens sorted by expert; each expert that has any is one product over its own tokens, as if they were a step of their own
//     y[token] = sum of share * answer in the order of the token's experts, whatever the others' order is (rule 1)
//
//     place     | expert 0: its tokens, ascending | expert 1 | ...           T * top_k places

#include <cstring>

#include "engine.h"

namespace kd {
namespace {

size_t lines_of(size_t size_bytes) { return (size_bytes + 63) / 64 * 64; }

struct Expert {
  int idx, first, count;  // places [first, first + count)
  size_t prepared;        // where its prepared inputs lie, for the product at hand
};

struct Experts {
  Pass& pass;
  const Op& op;
  int num_tokens, width, inner, num_places;
  std::vector<Expert> busy;
  std::vector<int32_t> chosen, token_at, place_of;  // [T, k], [places], [T, k]
  float *logits = nullptr, *shares = nullptr, *middle = nullptr, *answers = nullptr;
  uint8_t* prepared = nullptr;

  Experts(Pass& pass, const Op& op)
      : pass(pass),
        op(op),
        num_tokens(pass.num_tokens),
        width(op.router.columns),
        inner(op.down.columns),
        num_places(pass.num_tokens * op.top_k),
        chosen(num_places),
        token_at(num_places),
        place_of(num_places) {}

  // How tokens spread is known when the router has spoken; until then the worst is taken: each expert's share rounded up by one product.
  bool make_room() {
    Matrix up = shape_of(op.weight), down = shape_of(op.down), router = shape_of(op.router);
    size_t spread = num_places < op.num_experts ? num_places : op.num_experts;
    size_t most = prepared_bytes(router, num_tokens);
    for (const Matrix& matrix : {up, down}) {
      size_t bytes = 2 * prepared_bytes(matrix, num_places) + spread * lines_of(prepared_bytes(matrix, PANEL) + 64);
      if (bytes > most) most = bytes;
    }
    size_t sizes[] = {lines_of(num_tokens * op.num_experts * sizeof(float)), lines_of(num_places * sizeof(float)),
                      lines_of(static_cast<size_t>(num_places) * inner * sizeof(float)),
                      lines_of(static_cast<size_t>(num_places) * width * sizeof(float))};
    float** places[] = {&logits, &shares, &middle, &answers};
    if (!pass.engine.experts.reserve(sizes[0] + sizes[1] + sizes[2] + sizes[3] + lines_of(most))) return false;
    uint8_t* at = pass.engine.experts.get();
    for (int idx = 0; idx < 4; at += sizes[idx++]) *places[idx] = reinterpret_cast<float*>(at);
    prepared = at;
    return true;
  }

  const float* x() const { return pass.value(op.input); }

  void route() {
    Matrix router = pass.matrix(op.router);
    double token_ns = 0.1 * router.rows * width;
    pass.for_ranges((num_tokens + TOKENS_AT_ONCE - 1) / TOKENS_AT_ONCE, token_ns, [&](int first, int end, int) {
      int last = end * TOKENS_AT_ONCE < num_tokens ? end * TOKENS_AT_ONCE : num_tokens;
      prepare(router, x(), width, first * TOKENS_AT_ONCE, last, num_tokens, prepared);
    });
    pass.for_ranges((router.rows + PANEL - 1) / PANEL, token_ns * num_tokens / (1 + router.rows / PANEL), [&](int first, int end, int) {
      linear(router, prepared, num_tokens, first, end, nullptr, logits, op.num_experts, false);
    });
    pass.for_ranges(num_tokens, 10.0 * op.num_experts, [&](int first, int end, int) {
      for (int token = first; token < end; token++)
        top_experts(logits + static_cast<size_t>(token) * op.num_experts, op.num_experts, op.top_k, op.is_normalized != 0,
                    chosen.data() + token * op.top_k, shares + token * op.top_k);
    });
  }

  void sort() {
    std::vector<int> next(op.num_experts + 1, 0);
    for (int32_t expert : chosen) next[expert + 1]++;
    for (int expert = 0; expert < op.num_experts; expert++) {
      if (next[expert + 1] > 0) busy.push_back({expert, next[expert], next[expert + 1], 0});
      next[expert + 1] += next[expert];
    }
    for (int idx = 0; idx < num_places; idx++) {
      int place = next[chosen[idx]]++;
      place_of[idx] = place;
      token_at[place] = idx / op.top_k;
    }
  }

  // Prepares each busy expert's inputs: the tokens' own, or `from` by place.
  void prepare_each(const Weight& weight, const float* from) {
    size_t at = 0;
    for (Expert& expert : busy) {
      expert.prepared = at;
      at += lines_of(prepared_bytes(shape_of(weight), expert.count));
    }
    int columns = weight.columns;
    pass.for_ranges(static_cast<int>(busy.size()), 0.5 * columns * num_places / busy.size(), [&](int first, int end, int thread) {
      for (int idx = first; idx < end; idx++) {
        const Expert& expert = busy[idx];
        Matrix matrix = pass.matrix(weight, expert.idx);
        for (int token = 0; token < expert.count; token += TOKENS_AT_ONCE) {
          int last = token + TOKENS_AT_ONCE < expert.count ? token + TOKENS_AT_ONCE : expert.count;
          const float* rows = from == nullptr ? pass.line(thread) : from + static_cast<size_t>(expert.first + token) * columns;
          for (int row = token; from == nullptr && row < last; row++) {
            const float* own = x() + static_cast<size_t>(token_at[expert.first + row]) * columns;
            memcpy(pass.line(thread) + static_cast<size_t>(row - token) * columns, own, columns * sizeof(float));
          }
          prepare(matrix, rows - static_cast<ptrdiff_t>(token) * columns, columns, token, last, expert.count, prepared + expert.prepared);
        }
      }
    });
  }

  // Runs body(expert, matrix, first panel, end panel, thread) over all busy experts.
  template <typename Body>
  void for_panels(const Weight& weight, int num_panels, Body body) {
    double ns = weight.columns * 16.0 * (0.1 + 0.01 * num_places / busy.size());
    Cut cut(num_panels, ns, 1, 4);
    cut.limit(tile_panels(num_tokens));
    pass.for_ranges(static_cast<int>(busy.size()) * cut.parts, num_panels * ns / cut.parts, [&](int first, int end, int thread) {
      for (int idx = first; idx < end; idx++) {
        const Expert& expert = busy[idx / cut.parts];
        int part = idx % cut.parts;
        body(expert, pass.matrix(weight, expert.idx), cut.first(part), cut.first(part + 1), thread);
      }
    });
  }

  void compute() {
    prepare_each(op.weight, nullptr);
    int half = inner / PANEL;
    for_panels(op.weight, half, [&](const Expert& expert, const Matrix& matrix, int first, int end, int thread) {
      int width = (end - first) * PANEL;
      size_t stride = 2 * static_cast<size_t>(width);
      float *gate = pass.tile(thread), *up = gate + width;
      const uint8_t* inputs = prepared + expert.prepared;
      linear(matrix, inputs, expert.count, first, end, nullptr, gate - first * PANEL, stride, false);
      linear(matrix, inputs, expert.count, first + half, end + half, nullptr, up - (first + half) * PANEL, stride, false);
      for (int token = 0; token < expert.count; token++)
        act_mul(op.function, gate + token * stride, up + token * stride, width,
                middle + static_cast<size_t>(expert.first + token) * inner + first * PANEL);
    });
    prepare_each(op.down, middle);
    for_panels(op.down, (width + PANEL - 1) / PANEL, [&](const Expert& expert, const Matrix& matrix, int first, int end, int) {
      float* y = answers + static_cast<size_t>(expert.first) * width;
      linear(matrix, prepared + expert.prepared, expert.count, first, end, nullptr, y, width, false);
    });
  }

  void sum_up() {
    float* y = pass.value(op.output);
    pass.for_ranges(num_tokens, 0.3 * op.top_k * width, [&](int first, int end, int) {
      for (int token = first; token < end; token++) {
        float* row = y + static_cast<size_t>(token) * width;
        memset(row, 0, width * sizeof(float));
        for (int idx = token * op.top_k; idx < (token + 1) * op.top_k; idx++) {
          const float* answer = answers + static_cast<size_t>(place_of[idx]) * width;
          for (int at = 0; at < width; at++) row[at] += shares[idx] * answer[at];
        }
      }
    });
  }
};

}  // namespace

bool reserve_experts(Pass& pass, const Op& op) { return Experts(pass, op).make_room(); }

bool run_experts(Pass& pass, const Op& op) {
  Experts experts(pass, op);
  if (!experts.make_room()) return false;
  experts.route();
  experts.sort();
  experts.compute();
  experts.sum_up();
  return true;
}

}  // namespace kd
