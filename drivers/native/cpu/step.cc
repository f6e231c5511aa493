// What is done once for a step, before its first op.

#include <cmath>

#include "engine.h"

namespace kd {
namespace {

constexpr int ROW_FIELDS = 3;  // start, count, position; the pages of each group's table follow

int first_seen_page(const Program& program, int group, int position) {
  int window = program.groups[group].window;
  int first = window > 0 ? position - window + 1 : 0;
  return first > 0 ? first / program.shape.page_tokens : 0;
}

Outcome check_frames(const Program& program, const Step& step, Arena arena) {
  int fields = ROW_FIELDS + program.shape.num_groups;
  for (int group = 0; group < program.shape.num_groups; group++) {
    int64_t room = arena.size_bytes - program.groups[group].frame_bytes;
    int64_t last = room < 0 ? -1 : room / program.shape.granule_bytes;
    const int64_t* frames = step.frames[group];
    for (int64_t idx = 0; idx < step.num_rows; idx++) {
      const int32_t* row = step.rows + idx * fields;
      int first = first_seen_page(program, group, row[2]), end = (row[2] + row[1] - 1) / program.shape.page_tokens + 1;
      if (end > row[ROW_FIELDS + group]) return WRONG_ROW;
      for (int page = first; page < end; page++)
        if (frames[page] < 0 || frames[page] > last) return WRONG_FRAME;
      frames += row[ROW_FIELDS + group];
    }
  }
  return FINE;
}

Outcome check_adapters(const Step& step) {
  int64_t sum = 0;
  for (int64_t idx = 0; idx < step.num_adapters; idx++) {
    if (step.lora_counts[idx] < 0) return WRONG_ADAPTER;
    sum += step.lora_counts[idx];
  }
  if (sum != step.num_lora_tokens) return WRONG_ADAPTER;
  for (int64_t idx = 0; idx < sum; idx++)
    if (step.lora_tokens[idx] < 0 || step.lora_tokens[idx] >= step.num_tokens) return WRONG_ADAPTER;
  return FINE;
}

}  // namespace

Outcome check_step(const Program& program, const Step& step, Arena arena) {
  int fields = ROW_FIELDS + program.shape.num_groups;
  int64_t start = 0;
  for (int64_t idx = 0; idx < step.num_rows; idx++) {
    const int32_t* row = step.rows + idx * fields;
    if (row[0] != start || row[1] < 1 || row[1] > step.num_tokens - start) return WRONG_ROW;
    if (row[2] < 0 || row[2] > program.shape.max_positions - row[1]) return WRONG_POSITION;
    start += row[1];
  }
  if (start != step.num_tokens) return WRONG_ROW;
  for (int64_t idx = 0; idx < step.num_tokens; idx++)
    if (step.tokens[idx] < 0 || step.tokens[idx] >= program.shape.vocab_size) return WRONG_TOKEN;
  Outcome outcome = check_frames(program, step, arena);
  return outcome != FINE ? outcome : check_adapters(step);
}

void plan_step(Pass& pass) {
  const Program& program = pass.program;
  const Step& step = pass.step;
  int fields = ROW_FIELDS + program.shape.num_groups;
  pass.row_of.resize(step.num_tokens);
  pass.position_of.resize(step.num_tokens);
  for (int64_t idx = 0; idx < step.num_rows; idx++) {
    const int32_t* row = step.rows + idx * fields;
    for (int token = 0; token < row[1]; token++) {
      pass.row_of[row[0] + token] = static_cast<int32_t>(idx);
      pass.position_of[row[0] + token] = row[2] + token;
    }
  }
  pass.groups.resize(program.shape.num_groups);
  for (int group = 0; group < program.shape.num_groups; group++) {
    pass.groups[group].rows.resize(step.num_rows);
    const int64_t* frames = step.frames[group];
    for (int64_t idx = 0; idx < step.num_rows; idx++) {
      const int32_t* row = step.rows + idx * fields;
      pass.groups[group].rows[idx] = {row[0], row[1], row[2], first_seen_page(program, group, row[2]), frames};
      frames += row[ROW_FIELDS + group];
    }
  }
  if (step.num_lora_tokens == 0) return;
  pass.delta_of.assign(step.num_tokens, -1);
  for (int64_t idx = 0; idx < step.num_adapters; idx++) pass.adapter_of.resize(pass.adapter_of.size() + step.lora_counts[idx], idx);
  for (int64_t idx = 0; idx < step.num_lora_tokens; idx++) pass.delta_of[step.lora_tokens[idx]] = static_cast<int32_t>(idx);
}

// Angles are products of float32, as every framework takes them; sine and cosine of such a number in double precision are exact to float32
// for any position, which a reduction in float32 is not.
void turn_angles(Pass& pass) {
  for (int table = 0; table < pass.program.shape.num_tables; table++) {
    const Rotary& rotary = pass.program.rotary[table];
    size_t half = static_cast<size_t>(pass.num_tokens) * rotary.num_pairs;
    float* out = pass.angles(table);
    pass.for_ranges(pass.num_tokens, 15.0 * rotary.num_pairs, [&](int first, int end, int) {
      for (int token = first; token < end; token++)
        for (int pair = 0; pair < rotary.num_pairs; pair++) {
          float angle = static_cast<float>(pass.position_of[token]) * rotary.inverse_frequencies[pair];
          size_t at = static_cast<size_t>(token) * rotary.num_pairs + pair;
          out[at] = static_cast<float>(std::cos(static_cast<double>(angle))) * rotary.factor;
          out[half + at] = static_cast<float>(std::sin(static_cast<double>(angle))) * rotary.factor;
        }
    });
  }
}

}  // namespace kd
