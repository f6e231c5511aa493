// Ops of one token at a time, and attention, whose items the step brings.

#include "engine.h"

namespace kd {
namespace {

constexpr double ITEM_NS = 0.3;  // of one number, in an op that does little with it

void embed(Pass& pass, const Op& op) {
  Matrix table = pass.matrix(op.weight);
  bool adds = op.code == Code::embed_positions;
  pass.for_ranges(pass.num_tokens, ITEM_NS * table.columns, [&](int first, int end, int thread) {
    for (int token = first; token < end; token++) {
      float* row = pass.value(op.output) + static_cast<size_t>(token) * table.columns;
      if (adds) {
        read_row(table, pass.position_of[token], pass.line(thread));
        add(pass.line(thread), table.columns, row);
        continue;
      }
      read_row(table, static_cast<int>(pass.step.tokens[token]), row);
      if (op.scale != 1.0f) scale(op.scale, table.columns, row);
    }
  });
}

void norm(Pass& pass, const Op& op) {
  int width = pass.width(op.input);
  const float* weight = pass.norm_weight(op.norm_weight, op.has_unit_offset != 0, 0);
  const float* bias = pass.at(op.norm_bias);
  const float* x = pass.value(op.input);
  float* y = pass.value(op.output);
  bool adds = op.epilogue == Epilogue::add;
  pass.for_ranges(pass.num_tokens, 2 * ITEM_NS * width, [&](int first, int end, int thread) {
    for (int token = first; token < end; token++) {
      const float* from = x + static_cast<size_t>(token) * width;
      float* to = y + static_cast<size_t>(token) * width;
      if (op.norm == Norm::rms && adds) norm_add(from, weight, op.eps, width, to);
      else if (op.norm == Norm::rms) rms_norm(from, weight, op.eps, width, to);
      else layer_norm(from, weight, bias, op.eps, width, adds ? pass.line(thread) : to);
      if (op.norm == Norm::layer && adds) add(pass.line(thread), width, to);
    }
  });
}

void elementwise(Pass& pass, const Op& op) {
  int width = pass.width(op.output), x_width = pass.width(op.input);
  pass.for_ranges(pass.num_tokens, 2 * ITEM_NS * width, [&](int first, int end, int) {
    for (int token = first; token < end; token++) {
      const float* x = pass.value(op.input) + static_cast<size_t>(token) * x_width;
      float* y = pass.value(op.output) + static_cast<size_t>(token) * width;
      if (op.code == Code::add) add(x, width, y);
      else if (op.code == Code::act) act(op.function, x, width, y);
      else if (op.code == Code::act_mul) act_mul(op.function, x, x + width, width, y);
      else softcap(op.cap, width, y);
    }
  });
}

void rope(Pass& pass, const Op& op) {
  const ModelShape& shape = pass.program.shape;
  Pages pages = pass.pages(op);
  const GroupStep& group = pass.groups[op.group];
  int width = pass.width(op.input), pairs = op.num_dims / 2;
  bool has_offset = op.has_head_unit_offset != 0;
  RopeSettings settings{shape.num_heads,
                        op.num_dims,
                        pass.norm_weight(op.query_norm, has_offset, 1),
                        pass.norm_weight(op.key_norm, has_offset, 2),
                        op.head_eps,
                        op.is_over_all_heads != 0};
  const float* cos = op.num_dims > 0 ? pass.cosines(op.table) : nullptr;
  const float* sin = op.num_dims > 0 ? pass.sines(op.table) : nullptr;
  pass.for_ranges(pass.num_tokens, 3 * ITEM_NS * width, [&](int first, int end, int) {
    for (int token = first; token < end; token++) {
      const AttentionRow& row = group.rows[pass.row_of[token]];
      size_t at = static_cast<size_t>(token) * pairs;
      float* qkv = pass.value(op.input) + static_cast<size_t>(token) * width;
      rope_kv_write(pages, settings, row, token - row.start, cos == nullptr ? nullptr : cos + at, sin == nullptr ? nullptr : sin + at, qkv);
    }
  });
}

struct AttentionWork {
  Pass& pass;
  const GroupStep& group;
  Pages pages;
  AttentionSettings settings;
  AttentionValues values;
};

void attention_part(void* of, int idx, int thread) {
  AttentionWork& work = *static_cast<AttentionWork*>(of);
  Pass& pass = work.pass;
  AttentionScratch scratch{pass.place(pass.room.partials), pass.engine.counters.data(),
                           pass.place(pass.room.attention + thread * pass.room.attention_bytes)};
  attention(work.pages, work.settings, work.group.rows.data(), work.group.items[idx], work.values, scratch);
}

}  // namespace

void run_rowwise(Pass& pass, const Op& op) {
  switch (op.code) {
    case Code::embed:
    case Code::embed_positions: return embed(pass, op);
    case Code::norm: return norm(pass, op);
    case Code::rope_kv_write: return rope(pass, op);
    default: return elementwise(pass, op);
  }
}

void run_attention(Pass& pass, const Op& op) {
  const GroupStep& group = pass.groups[op.group];
  AttentionValues values{pass.value(op.input), static_cast<size_t>(pass.width(op.input)), pass.value(op.output),
                         static_cast<size_t>(pass.width(op.output)), nullptr};
  AttentionWork work{pass, group, pass.pages(op), pass.attention_settings(op), values};
  pass.run(attention_part, &work, static_cast<int>(group.items.size()));
}

}  // namespace kd
