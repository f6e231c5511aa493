// Where the values of a step lie. One stretch of memory that all models share: it is laid out anew for every step, and kept.

#include <cstdlib>
#include <cstring>

#include "engine.h"

namespace kd {
namespace {

constexpr size_t LINE = 64;  // bytes

size_t aligned(size_t size_bytes) { return (size_bytes + LINE - 1) / LINE * LINE; }

size_t take(Room& room, size_t size_bytes) {
  size_t start = room.size_bytes;
  room.size_bytes += aligned(size_bytes);
  return start;
}

void raise(size_t& most, size_t value) {
  if (value > most) most = value;
}

// The most that any linear of the program wants for inputs of so many tokens.
size_t most_prepared(const Program& program, int num_tokens) {
  size_t most = 0;
  for (const Op& op : program.ops)
    if (op.weight.segment >= 0 && op.code == Code::linear) raise(most, prepared_bytes(shape_of(op.weight), num_tokens));
  return most;
}

// The widest row that is normed, prepared, or changed by an adapter.
int widest(const Program& program) {
  int most = program.shape.head_dim;
  for (size_t idx = 0; idx < program.widths.size(); idx++)
    if (static_cast<int>(idx) != program.logits && program.widths[idx] > most) most = program.widths[idx];
  for (const Op& op : program.ops)
    if (op.place >= 0 && op.weight.rows > most) most = op.weight.rows;
  return most;
}

void lay_out_attention(Pass& pass, bool is_planned) {
  const Program& program = pass.program;
  int num_threads = pass.engine.threads.count();
  size_t partial_bytes = 0, counter_bytes = 0;
  std::vector<bool> is_done(program.shape.num_groups, false);
  for (const Op& op : program.ops) {
    if (op.code != Code::attention || is_done[op.group]) continue;
    is_done[op.group] = true;
    GroupStep& group = pass.groups[op.group];
    Pages pages = pass.pages(op);
    AttentionSettings settings = pass.attention_settings(op);
    AttentionRoom room = attention_room(pages, settings, num_threads);
    if (is_planned) {
      int num_rows = static_cast<int>(group.rows.size());
      group.items.resize(attention_items(pages, settings, group.rows.data(), num_rows, num_threads, nullptr));
      attention_items(pages, settings, group.rows.data(), num_rows, num_threads, group.items.data());
    }
    raise(partial_bytes, room.partial_bytes);
    raise(counter_bytes, room.counter_bytes);
    raise(pass.room.attention_bytes, aligned(room.thread_bytes));
  }
  pass.room.partials = take(pass.room, partial_bytes);
  pass.room.attention = take(pass.room, pass.room.attention_bytes * num_threads);
  std::vector<int32_t>& counters = pass.engine.counters;
  if (counters.size() * sizeof(int32_t) < counter_bytes) counters.assign(counter_bytes / sizeof(int32_t) + 1, 0);
}

}  // namespace

Buffer::~Buffer() { free(bytes_); }

bool Buffer::reserve(size_t size_bytes) {
  if (size_bytes <= size_bytes_) return true;
  free(bytes_);
  size_bytes_ = 0;
  bytes_ = static_cast<uint8_t*>(aligned_alloc(LINE, aligned(size_bytes)));
  if (bytes_ == nullptr) return false;
  memset(bytes_, 0, aligned(size_bytes));  // fresh pages in the middle of a step would cost more than its smaller ops
  size_bytes_ = aligned(size_bytes);
  return true;
}

int tile_panels(int num_tokens) { return num_tokens <= 64 ? 16 : 4; }

bool prepares_alone(const Pass& pass, const Matrix& matrix) {
  return pass.num_tokens * static_cast<size_t>(matrix.columns) <= OWN_ITEMS && prepared_bytes(matrix, pass.num_tokens) <= OWN_BYTES;
}

Matrix shape_of(const Weight& weight) {
  return {weight.kind, weight.rows, weight.columns, weight.group, nullptr, nullptr, nullptr};
}

bool lay_out(Pass& pass, Attended attended) {
  const Program& program = pass.program;
  Room& room = pass.room;
  size_t tokens = pass.num_tokens, threads = pass.engine.threads.count();
  room.values.assign(program.widths.size(), 0);
  // The residual of a pass is the caller's; that of rows whose logits are asked for is gathered here.
  for (size_t idx = attended == Attended::none ? 0 : 1; idx < program.widths.size(); idx++)
    if (static_cast<int>(idx) != program.logits) room.values[idx] = take(room, tokens * program.widths[idx] * sizeof(float));
  int width = widest(program);
  size_t prepared = most_prepared(program, pass.num_tokens);
  room.prepared = take(room, prepared);
  room.own_bytes = aligned(prepared < OWN_BYTES ? prepared : OWN_BYTES);
  room.prepared_own = take(room, room.own_bytes * threads);
  room.tile_bytes = aligned(tokens * 2 * PANEL * tile_panels(pass.num_tokens) * sizeof(float));
  room.tiles = take(room, room.tile_bytes * threads);
  room.line_bytes = aligned((OWN_ITEMS + static_cast<size_t>(TOKENS_AT_ONCE) * width) * sizeof(float));
  room.lines = take(room, room.line_bytes * threads);
  room.vector_bytes = aligned(width * sizeof(float));
  room.vectors = take(room, room.vector_bytes * 3);
  room.deltas = take(room, pass.step.num_lora_tokens * width * sizeof(float));
  room.delta_width = width;
  if (attended != Attended::none) {
    size_t pairs = 0;
    for (const Rotary& rotary : program.rotary) pairs += rotary.num_pairs;
    room.angles = take(room, tokens * 2 * pairs * sizeof(float));
    lay_out_attention(pass, attended == Attended::planned);
  }
  return pass.engine.workspace.reserve(room.size_bytes);
}

}  // namespace kd
