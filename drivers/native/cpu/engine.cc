// Entry points, and the loop over ops. Python's side is drivers/native/engine.py.

#include "engine.h"
#include "sampling.h"

#include <cstring>
#include <ctime>


namespace kd {

namespace {

int64_t now_ns() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1000000000LL + time.tv_nsec;
}

struct TimedWork {
  Part part;
  void* work;
  int64_t* busy_ns;
};

void timed_part(void* of, int idx, int thread) {
  TimedWork& work = *static_cast<TimedWork*>(of);
  int64_t began = now_ns();
  work.part(work.work, idx, thread);
  work.busy_ns[thread * 8] += now_ns() - began;
}

bool run_op(Pass& pass, const Op& op) {
  pass.op_number++;
  switch (op.code) {
    case Code::linear: run_linear(pass, op); break;
    case Code::attention: run_attention(pass, op); break;
    case Code::experts: return run_experts(pass, op);
    default: run_rowwise(pass, op);
  }
  return true;
}

// Times what `body` does, where times are taken, as one call of `op`.
template <typename Body>
void timed(Pass& pass, const Op& op, Body body) {
  Engine& engine = pass.engine;
  if (!engine.is_profiling) return body();
  for (int64_t& busy : engine.busy_ns) busy = 0;
  OpTimes& times = engine.times[op.profiled_as];
  int64_t began = now_ns();
  body();
  times.wall_ns += now_ns() - began;
  times.calls++;
  for (int64_t busy : engine.busy_ns) times.busy_ns += busy;
}

Outcome run_ops(Pass& pass, int first, int end) {
  bool is_fine = true;
  for (int idx = first; idx < end && is_fine; idx++) {
    const Op& op = pass.program.ops[idx];
    timed(pass, op, [&] { is_fine = run_op(pass, op); });
  }
  return is_fine ? FINE : NO_MEMORY;
}

}  // namespace

void Pass::run(Part part, void* work, int num_parts) {
  if (!engine.is_profiling) return engine.threads.run(part, work, num_parts);
  TimedWork timed{part, work, engine.busy_ns.data()};
  engine.threads.run(timed_part, &timed, num_parts);
}

Matrix Pass::matrix(const Weight& weight, int idx) const {
  const uint8_t* base = reinterpret_cast<const uint8_t*>(bases[weight.segment]);
  bool has_scales = weight.kind == Kind::u8 || weight.kind == Kind::u4;
  return {weight.kind,
          weight.rows,
          weight.columns,
          weight.group,
          base + weight.values + idx * weight.values_bytes,
          has_scales ? base + weight.scales + idx * weight.scales_bytes : nullptr,
          weight.offsets < 0 ? nullptr : base + weight.offsets + idx * weight.offsets_bytes};
}

Pages Pass::pages(const Op& op) const {
  const ModelShape& shape = program.shape;
  return {shape.kv_kind, shape.page_tokens, shape.kv_heads, shape.head_dim, shape.granule_bytes, arena.address, op.layer_bytes};
}

AttentionSettings Pass::attention_settings(const Op& op) const {
  return {op.scale, op.cap, program.groups[op.group].window, program.shape.num_heads};
}

const float* Pass::norm_weight(const Vector& vector, bool has_unit_offset, int place_idx) const {
  const float* weight = at(vector);
  if (weight == nullptr || !has_unit_offset) return weight;
  float* sum = reinterpret_cast<float*>(place(room.vectors + place_idx * room.vector_bytes));
  for (int idx = 0; idx < vector.size; idx++) sum[idx] = 1.0f + weight[idx];
  return sum;
}

float* Pass::angles(int table) const {
  float* start = reinterpret_cast<float*>(place(room.angles));
  for (int idx = 0; idx < table; idx++) start += 2 * static_cast<size_t>(num_tokens) * program.rotary[idx].num_pairs;
  return start;
}

}  // namespace kd

using namespace kd;

#define KD_ENTRY extern "C" __attribute__((visibility("default")))

KD_ENTRY Engine* kd_engine_open(int num_threads, const int32_t* cpus) {
  Engine* engine = new Engine(num_threads, cpus);
  engine->busy_ns.assign(engine->threads.count() * 8, 0);
  return engine;
}

KD_ENTRY void kd_engine_close(Engine* engine) { delete engine; }

KD_ENTRY int kd_engine_threads(const Engine* engine) { return engine->threads.count(); }

KD_ENTRY int64_t kd_engine_bytes(const Engine* engine) {
  size_t size_bytes = engine->workspace.size_bytes() + engine->experts.size_bytes();
  return static_cast<int64_t>(size_bytes + engine->logits.size_bytes() + engine->draws.size_bytes());
}

// Switches times on or off, and writes those so far to `times` [MAX_PROFILED] (null: nowhere); switching on begins anew.
KD_ENTRY void kd_engine_profile(Engine* engine, int is_on, OpTimes* times) {
  if (times != nullptr) memcpy(times, engine->times, sizeof engine->times);
  if (is_on) memset(engine->times, 0, sizeof engine->times);
  engine->is_profiling = is_on != 0;
}

// The sizes of the records, by which Python sees that it means the same.
KD_ENTRY void kd_record_sizes(int32_t* sizes) {
  const size_t all[] = {sizeof(Op),       sizeof(ModelShape), sizeof(GroupShape), sizeof(Step), sizeof(LoraPair),
                        sizeof(OpTimes), sizeof(Draw),       sizeof(Drawn),      sizeof(Rows)};
  for (size_t idx = 0; idx < sizeof all / sizeof all[0]; idx++) sizes[idx] = static_cast<int32_t>(all[idx]);
}

KD_ENTRY Program* kd_program_open(const ModelShape* shape, const Op* ops, int num_ops, const int32_t* widths, int num_values, int logits,
                                   const GroupShape* groups, const float* frequencies, const int32_t* num_pairs, const float* factors) {
  Program* program = new Program;
  program->shape = *shape;
  program->ops.assign(ops, ops + num_ops);
  program->widths.assign(widths, widths + num_values);
  program->logits = logits;
  program->groups.assign(groups, groups + shape->num_groups);
  size_t total = 0;
  for (int idx = 0; idx < shape->num_tables; idx++) total += num_pairs[idx];
  program->frequencies.assign(frequencies, frequencies + total);
  size_t at = 0;
  for (int idx = 0; idx < shape->num_tables; at += num_pairs[idx++])
    program->rotary.push_back({program->frequencies.data() + at, num_pairs[idx], factors[idx]});
  return program;
}

KD_ENTRY void kd_program_close(Program* program) { delete program; }

// Takes the workspace for steps of so many tokens: of one row, which is what most of them are, or of as many rows.
KD_ENTRY int kd_reserve(Engine* engine, const Program* program, int64_t max_tokens) {
  Step step{};
  step.num_tokens = max_tokens;
  Pass pass(*engine, *program, step, nullptr, {});
  pass.groups.resize(program->shape.num_groups);
  bool is_fine = lay_out(pass, Attended::reserved);
  for (const Op& op : program->ops)
    if (is_fine && op.code == Code::experts) is_fine = reserve_experts(pass, op);
  return is_fine ? FINE : NO_MEMORY;
}

// Runs ops [first_op, end_op) of a step on `residual` [T, hidden].
KD_ENTRY int kd_run(Engine* engine, const Program* program, const Step* step, const uint64_t* bases, const Arena* arena, int first_op,
                     int end_op, float* residual) {
  Outcome outcome = check_step(*program, *step, *arena);
  if (outcome != FINE || step->num_tokens == 0) return outcome;
  Pass pass(*engine, *program, *step, bases, *arena);
  pass.residual = residual;
  plan_step(pass);
  if (!lay_out(pass, Attended::planned)) return NO_MEMORY;
  pass.prepared_for.assign(engine->threads.count(), 0);
  turn_angles(pass);
  return run_ops(pass, first_op, end_op);
}

// Logits of rows of `hidden`, or, where `logits` is null, the likeliest token of each (-1: not finite). `first_op` is the first op behind
// the layers.
KD_ENTRY int kd_logits(Engine* engine, const Program* program, const float* hidden, const int64_t* rows, int64_t num_rows,
                        const uint64_t* bases, int first_op, float* logits, int64_t* likeliest) {
  Step step{};
  step.num_tokens = num_rows;
  Pass pass(*engine, *program, step, bases, {});
  if (num_rows == 0) return FINE;
  if (!lay_out(pass, Attended::none)) return NO_MEMORY;
  pass.prepared_for.assign(engine->threads.count(), 0);
  size_t width = program->widths[0];
  pass.residual = reinterpret_cast<float*>(pass.place(pass.room.values[0]));
  for (int64_t idx = 0; idx < num_rows; idx++) memcpy(pass.residual + idx * width, hidden + rows[idx] * width, width * sizeof(float));
  pass.logits = logits;
  int end = static_cast<int>(program->ops.size());
  if (logits != nullptr) return run_ops(pass, first_op, end);
  const Op& last = program->ops[end - 1];
  bool is_capped = last.code == Code::softcap;
  int head = is_capped ? end - 2 : end - 1;
  Outcome outcome = run_ops(pass, first_op, head);
  if (outcome != FINE) return outcome;
  pass.op_number++;
  timed(pass, program->ops[head], [&] { run_greedy(pass, program->ops[head], is_capped ? last.cap : 0.0f, likeliest); });
  return FINE;
}
