// A linear with what comes before it and what comes after it:
//
//     x --[norm]--> prepared --> panels of outputs --[+ delta of adapters]--[activation | sum with the residual]--> y
//
// Parts are runs of panels over all tokens. What comes after a panel is done by the thread that computed it, while it is in its cache.

#include <cmath>
#include <limits>

#include "engine.h"
#include "linear.h"

namespace kd {
namespace {

constexpr int FEW_TOKENS = 8;

// Panels that are cut into parts.
int panels_of(const Matrix& matrix, const Op& op) {
  const int panels = (matrix.rows + PANEL - 1) / PANEL;
  return op.epilogue == Epilogue::act_mul ? panels / 2 : panels;
}

// The linear that runs next, as a thread comes to it: panels of which each thread begins with the first of its own.
struct Next {
  const uint8_t* values = nullptr;  // null: there is none
  size_t panel_bytes = 0;
  int num_panels = 0;

  Next(const Pass& pass, const Op& op) {
    const Op* after = &op + 1;
    const Op* end = pass.program.ops.data() + pass.program.ops.size();
    while (after < end && after->code != Code::linear) after++;
    if (after == end) return;
    const Matrix matrix = pass.matrix(after->weight);
    values = static_cast<const uint8_t*>(matrix.values);
    panel_bytes = kd::panel_bytes(matrix);
    num_panels = panels_of(matrix, *after);
  }
  const uint8_t* start(int thread, int num_threads) const {
    return values == nullptr ? nullptr : values + first_part(thread, num_threads, num_panels) * panel_bytes;
  }
};

// Panels [first, end), and what is read after them.
struct Span {
  int first, end;
  const uint8_t* next;
};

struct Linear {
  Pass& pass;
  const Op& op;
  Matrix matrix;
  const float *bias, *norm_weight, *norm_bias;
  const float* x;
  float* y;
  int x_width, y_width, num_tokens;
  bool is_alone;  // each thread prepares all inputs for itself
  int num_panels;
  uint8_t* prepared;
  Next next;

  Linear(Pass& pass, const Op& op)
      : pass(pass),
        op(op),
        matrix(pass.matrix(op.weight)),
        bias(pass.at(op.bias)),
        norm_weight(op.norm == Norm::none ? nullptr : pass.norm_weight(op.norm_weight, op.has_unit_offset != 0, 0)),
        norm_bias(pass.at(op.norm_bias)),
        x(pass.value(op.input)),
        y(pass.value(op.output)),
        x_width(pass.width(op.input)),
        y_width(pass.width(op.output)),
        num_tokens(pass.num_tokens),
        is_alone(prepares_alone(pass, matrix)),
        num_panels(panels_of(matrix, op)),
        prepared(pass.place(pass.room.prepared)),
        next(pass, op) {}

  void norm_row(int token, float* out) const {
    const float* row = x + static_cast<size_t>(token) * x_width;
    if (op.norm == Norm::rms) rms_norm(row, norm_weight, op.eps, x_width, out);
    else layer_norm(row, norm_weight, norm_bias, op.eps, x_width, out);
  }

  void prepare_range(int first, int end, int thread, void* to) const {
    if (op.norm == Norm::none) return prepare(matrix, x, x_width, first, end, num_tokens, to);
    float* lines = pass.line(thread);
    for (int token = first; token < end; token++) norm_row(token, lines + static_cast<size_t>(token - first) * x_width);
    prepare(matrix, lines - static_cast<ptrdiff_t>(first) * x_width, x_width, first, end, num_tokens, to);
  }

  void prepare_all() const {
    if (is_alone) return;
    double token_ns = 0.3 * x_width * (op.norm == Norm::none ? 1 : 2);
    int blocks = (num_tokens + TOKENS_AT_ONCE - 1) / TOKENS_AT_ONCE;
    pass.for_ranges(blocks, token_ns * TOKENS_AT_ONCE, [&](int first, int end, int thread) {
      for (int block = first; block < end; block++) {
        int last = (block + 1) * TOKENS_AT_ONCE;
        prepare_range(block * TOKENS_AT_ONCE, last < num_tokens ? last : num_tokens, thread, prepared);
      }
    });
  }

  // The prepared inputs as this thread sees them.
  const void* inputs(int thread) const {
    if (!is_alone) return prepared;
    uint8_t* own = pass.place(pass.room.prepared_own + thread * pass.room.own_bytes);
    if (pass.prepared_for[thread] != pass.op_number) {
      prepare_range(0, num_tokens, thread, own);
      pass.prepared_for[thread] = pass.op_number;
    }
    return own;
  }

  // What one panel takes, roughly: memory at 10 GB/s for each thread, or 100 products and sums a nanosecond.
  double panel_ns() const {
    double item_bytes = matrix.kind == Kind::f32 ? 4 : matrix.kind == Kind::bf16 ? 2 : matrix.kind == Kind::u8 ? 1 : 0.5;
    double bytes = matrix.columns * item_bytes * PANEL;
    double by_memory = bytes / 10, by_sums = double(num_tokens) * matrix.columns * PANEL / 100;
    return (by_memory > by_sums ? by_memory : by_sums) * (op.epilogue == Epilogue::act_mul ? 2 : 1);
  }

  // Two panels side by side share what is read of the inputs, which pays where there are tokens enough (linear_run.h).
  Cut cut(int most) const {
    Cut cut(num_panels, panel_ns(), pass.engine.threads.count(), num_tokens < FEW_TOKENS ? 1 : 2);
    cut.limit(most);
    return cut;
  }

  const uint8_t* panel(int idx) const { return static_cast<const uint8_t*>(matrix.values) + idx * panel_bytes(matrix); }

  // What a thread will read when it has done a part: the next of its own, or what it begins the next linear with.
  const uint8_t* after(const Cut& cut, int part, int thread) const {
    int count = pass.engine.threads.count();
    bool goes_on = part >= first_part(thread, count, cut.parts) && part + 1 < first_part(thread + 1, count, cut.parts);
    return goes_on ? panel(cut.first(part + 1)) : next.start(thread, count);
  }

  void for_panels(int most, void (Linear::*body)(Span, int)) {
    struct Work {
      Linear& linear;
      void (Linear::*body)(Span, int);
      Cut cut;
    } work{*this, body, cut(most)};
    auto part = [](void* of, int idx, int thread) {
      Work& work = *static_cast<Work*>(of);
      (work.linear.*work.body)({work.cut.first(idx), work.cut.first(idx + 1), work.linear.after(work.cut, idx, thread)}, thread);
    };
    pass.run(part, &work, work.cut.parts);
  }

  // Adds the adapters' change of outputs [first, end) to rows that begin with output `first`.
  void add_deltas(int first, int end, float* rows, size_t stride) const {
    if (op.place < 0 || pass.delta_of.empty()) return;
    const float* deltas = reinterpret_cast<const float*>(pass.place(pass.room.deltas));
    for (int token = 0; token < num_tokens; token++)
      if (pass.delta_of[token] >= 0)
        add(deltas + pass.delta_of[token] * pass.room.delta_width + first, end - first, rows + token * stride);
  }

  void plain_part(Span span, int thread) {
    int first = span.first * PANEL, end = span.end * PANEL < matrix.rows ? span.end * PANEL : matrix.rows;
    linear(matrix, inputs(thread), num_tokens, span.first, span.end, bias, y, y_width, op.epilogue == Epilogue::add, span.next);
    add_deltas(first, end, y + first, y_width);
    if (op.epilogue != Epilogue::act) return;
    for (int token = 0; token < num_tokens; token++) {
      float* row = y + static_cast<size_t>(token) * y_width + first;
      act(op.function, row, end - first, row);
    }
  }

  // Gate rows come first and up rows second: panel p goes with panel p + half.
  void act_mul_part(Span span, int thread) {
    int first = span.first * PANEL, width = (span.end - span.first) * PANEL, half = matrix.rows / 2, shift = half / PANEL;
    size_t stride = 2 * static_cast<size_t>(width);
    float *gate = pass.tile(thread), *up = gate + width;
    const void* from = inputs(thread);
    linear(matrix, from, num_tokens, span.first, span.end, bias, gate - first, stride, false, panel(span.first + shift));
    linear(matrix, from, num_tokens, span.first + shift, span.end + shift, bias, up - half - first, stride, false, span.next);
    add_deltas(first, first + width, gate, stride);
    add_deltas(half + first, half + first + width, up, stride);
    for (int token = 0; token < num_tokens; token++)
      act_mul(op.function, gate + token * stride, up + token * stride, width, y + static_cast<size_t>(token) * y_width + first);
  }

  void make_deltas() const {
    const Step& step = pass.step;
    float* deltas = reinterpret_cast<float*>(pass.place(pass.room.deltas));
    pass.for_ranges(static_cast<int>(step.num_lora_tokens), 3.0 * (matrix.columns + matrix.rows), [&](int first, int end, int thread) {
      for (int idx = first; idx < end; idx++) {
        int64_t token = step.lora_tokens[idx];
        const float* inputs = x + token * x_width;
        if (op.norm != Norm::none) norm_row(static_cast<int>(token), pass.line(thread)), inputs = pass.line(thread);
        const LoraPair& pair = step.lora_tables[pass.adapter_of[idx]][op.layer * 4 + op.place];
        lora_delta(pair, step.is_lora_bf16 != 0, inputs, matrix.columns, matrix.rows, deltas + idx * pass.room.delta_width);
      }
    });
  }
};

struct Likeliest {
  float value;
  int32_t idx;
  bool is_nan;
};

struct GreedyPart {
  Linear& linear;
  Cut cut;
  float cap;
  std::vector<Likeliest>& found;  // [parts][tokens]
};

void greedy_part(void* of, int idx, int thread) {
  GreedyPart& work = *static_cast<GreedyPart*>(of);
  Linear& one = work.linear;
  int first_panel = work.cut.first(idx), end_panel = work.cut.first(idx + 1);
  int first = first_panel * PANEL, end = end_panel * PANEL < one.matrix.rows ? end_panel * PANEL : one.matrix.rows;
  size_t stride = static_cast<size_t>(end_panel - first_panel) * PANEL;
  float* tile = one.pass.tile(thread);
  linear(one.matrix, one.inputs(thread), one.num_tokens, first_panel, end_panel, one.bias, tile - first, stride, false,
         one.after(work.cut, idx, thread));
  for (int token = 0; token < one.num_tokens; token++) {
    float* row = tile + token * stride;
    if (work.cap > 0) softcap(work.cap, end - first, row);
    Likeliest best{-std::numeric_limits<float>::infinity(), -1, false};
    for (int at = 0; at < end - first; at++) {
      if (row[at] != row[at]) best.is_nan = true;
      if (row[at] > best.value) best.value = row[at], best.idx = first + at;
    }
    work.found[static_cast<size_t>(idx) * one.num_tokens + token] = best;
  }
}

}  // namespace

void run_linear(Pass& pass, const Op& op) {
  Linear linear(pass, op);
  if (op.place >= 0 && !pass.delta_of.empty()) linear.make_deltas();
  linear.prepare_all();
  if (op.epilogue == Epilogue::act_mul) linear.for_panels(tile_panels(pass.num_tokens), &Linear::act_mul_part);
  else linear.for_panels(linear.num_panels + PANEL, &Linear::plain_part);
}

void run_greedy(Pass& pass, const Op& op, float cap, int64_t* likeliest) {
  Linear linear(pass, op);
  linear.prepare_all();
  Cut cut = linear.cut(2 * tile_panels(pass.num_tokens));
  int num_parts = cut.parts;
  std::vector<Likeliest> found(static_cast<size_t>(num_parts) * pass.num_tokens);
  GreedyPart work{linear, cut, cap, found};
  pass.run(greedy_part, &work, num_parts);
  for (int token = 0; token < pass.num_tokens; token++) {
    Likeliest best = found[token];
    for (int part = 1; part < num_parts; part++) {  // in the order of ids, so that the smallest of equals stays
      const Likeliest& next = found[static_cast<size_t>(part) * pass.num_tokens + token];
      best.is_nan |= next.is_nan;
      if (next.value > best.value) best.value = next.value, best.idx = next.idx;
    }
    likeliest[token] = best.is_nan || std::isinf(best.value) ? -1 : best.idx;
  }
}

}  // namespace kd
