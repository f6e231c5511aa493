// The engine: runs the ops of a program one after the other, each in parts on all threads.
//
//     engine.cc        entry points, the loop over ops, times of ops
//     step.cc          checks a step, and makes of it what all layers share: rows, adapters, angles
//     workspace.cc     where the values of a step lie, and its items of attention
//     linears.cc       linears with what comes before and after them        lora.cc      what adapters add to them
//     rowwise.cc       ops of one token at a time, attention                 experts.cc   mixture of experts
//
// Ops are separated by waiting for all threads. There is no more of it than this for each layer of a decoder, with T tokens of width W:
// qkv, rope and write, attention, output, gate and up, down: six; and one before each of the four linears where T * W is large enough that
// normalizing and preparing its inputs is worth sharing. Where it is not, each thread prepares all of them for itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "program.h"
#include "threads.h"

namespace kd {

struct Program {
  ModelShape shape;
  std::vector<Op> ops;
  std::vector<int32_t> widths;  // of values; value 0 is the residual
  std::vector<GroupShape> groups;
  std::vector<Rotary> rotary;
  std::vector<float> frequencies;  // of all tables
  int32_t num_layers = 0;
  int32_t logits = -1;  // value
};

// Memory that stays where it is until more is asked for; never smaller, never zeroed.
class Buffer {
 public:
  Buffer() = default;
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  bool reserve(size_t size_bytes);  // false: there is no memory; what was there is lost
  size_t size_bytes() const { return size_bytes_; }
  uint8_t* get() const { return bytes_; }

 private:
  uint8_t* bytes_ = nullptr;
  size_t size_bytes_ = 0;
};

struct OpTimes {
  int64_t calls, wall_ns, busy_ns;  // busy: of all threads together, inside of parts
};

constexpr int MAX_PROFILED = 32;

struct Engine {
  Engine(int num_threads, const int32_t* cpus) : threads(num_threads, cpus) {}
  Threads threads;
  Buffer workspace, experts;
  Buffer logits, draws;           // of the rows that are drawn; they grow with them
  std::vector<int32_t> counters;  // of attention: zero between steps
  std::vector<int64_t> busy_ns;   // of each thread, 64 bytes apart
  OpTimes times[MAX_PROFILED] = {};
  bool is_profiling = false;
};

// What all layers share of one KV group.
struct GroupStep {
  std::vector<AttentionRow> rows;
  std::vector<AttentionItem> items;
};

// Pieces of the workspace, for one step.
struct Room {
  std::vector<size_t> values;  // offsets
  size_t prepared = 0, prepared_own = 0, own_bytes = 0;
  size_t tiles = 0, tile_bytes = 0;      // of each thread: outputs of a part that go on to an activation or to a maximum
  size_t lines = 0, line_bytes = 0;      // of each thread: one token's row
  size_t vectors = 0, vector_bytes = 0;  // norm weights with their unit offset in them: three
  size_t angles = 0;                     // [tables][cos, sin][T][pairs]
  size_t deltas = 0, delta_width = 0;    // [lora tokens][widest]
  size_t partials = 0, attention = 0, attention_bytes = 0;
  size_t size_bytes = 0;
};

struct Pass {
  Pass(Engine& engine, const Program& program, const Step& step, const uint64_t* bases, Arena arena)
      : engine(engine), program(program), step(step), bases(bases), arena(arena), num_tokens(static_cast<int>(step.num_tokens)) {}

  Engine& engine;
  const Program& program;
  const Step& step;
  const uint64_t* bases;
  Arena arena;
  int num_tokens;
  float* residual = nullptr;
  float* logits = nullptr;
  Room room;
  std::vector<GroupStep> groups;
  std::vector<int32_t> row_of, position_of;  // of each token
  std::vector<int32_t> delta_of;             // of each token: its row of deltas, or -1; empty where there are no adapters
  std::vector<int32_t> adapter_of;           // of each token with an adapter
  std::vector<uint32_t> prepared_for;        // of each thread: the number of the op that its own prepared inputs are for
  uint32_t op_number = 0;
  const Op* op = nullptr;

  float* value(int32_t idx) const {
    if (idx == 0) return residual;
    if (idx == program.logits && logits != nullptr) return logits;
    return reinterpret_cast<float*>(place(room.values[idx]));
  }
  int32_t width(int32_t idx) const { return program.widths[idx]; }
  uint8_t* place(size_t offset) const { return engine.workspace.get() + offset; }
  float* tile(int thread) const { return reinterpret_cast<float*>(place(room.tiles + thread * room.tile_bytes)); }
  float* line(int thread) const { return reinterpret_cast<float*>(place(room.lines + thread * room.line_bytes)); }
  const float* at(const Vector& vector) const {
    return vector.segment < 0 ? nullptr : reinterpret_cast<const float*>(bases[vector.segment] + vector.offset);
  }
  Matrix matrix(const Weight& weight, int idx = 0) const;
  Pages pages(const Op& op) const;
  AttentionSettings attention_settings(const Op& op) const;
  // The vector itself, or 1 + it in the workspace, in one of three places.
  const float* norm_weight(const Vector& vector, bool has_unit_offset, int place_idx) const;
  const float* cosines(int table) const { return angles(table); }
  const float* sines(int table) const { return angles(table) + static_cast<size_t>(num_tokens) * program.rotary[table].num_pairs; }
  float* angles(int table) const;

  void run(Part part, void* work, int num_parts);
  // Calls body(first, end, thread) for runs of [0, count) that take some microseconds each, `item_ns` being what one takes.
  template <typename Body>
  void for_ranges(int count, double item_ns, Body body);
};

constexpr double PART_NS = 4000;   // of a part: long against taking it (0.1 us) and waiting for others (0.2 us)
constexpr double LEAST_NS = 1000;  // of a part where there are many threads
constexpr double ALONE_NS = 2000;  // less than that is done by the caller alone
constexpr int ROUNDS = 8;          // parts for each thread at most

// Some items cut into parts that differ by `unit` items at most.
struct Cut {
  int count, unit, parts;

  Cut(int count, double item_ns, int num_threads, int unit = 1) : count(count), unit(unit), parts(1) {
    double total_ns = count * item_ns, rounds = total_ns / num_threads / PART_NS;
    if (total_ns < ALONE_NS) return;
    int wanted = num_threads * (rounds < 1 ? 1 : rounds > ROUNDS ? ROUNDS : static_cast<int>(rounds)), most = units();
    if (most * LEAST_NS > total_ns) most = static_cast<int>(total_ns / LEAST_NS);
    parts = wanted < most ? wanted : most > 1 ? most : 1;
  }
  // Makes parts so small that none has more than `most` items, a multiple of the unit.
  void limit(int most) {
    int needed = (units() + most / unit - 1) / (most / unit);
    if (parts < needed) parts = needed;
  }
  int units() const { return (count + unit - 1) / unit; }
  int first(int part) const {
    int item = static_cast<int>(static_cast<int64_t>(units()) * part / parts) * unit;
    return item < count ? item : count;
  }
};

template <typename Body>
void Pass::for_ranges(int count, double item_ns, Body body) {
  struct Work {
    Body& body;
    Cut cut;
  } work{body, Cut(count, item_ns, engine.threads.count())};
  auto part = [](void* of, int idx, int thread) {
    Work& work = *static_cast<Work*>(of);
    work.body(work.cut.first(idx), work.cut.first(idx + 1), thread);
  };
  if (count > 0) run(part, &work, work.cut.parts);
}

constexpr int PANEL = 16;             // rows
constexpr int TOKENS_AT_ONCE = 8;     // normed at once, before they are prepared
constexpr size_t OWN_ITEMS = 8192;    // inputs that each thread rather prepares for itself than waits for others to do
constexpr size_t OWN_BYTES = 64 << 10;  // what they take at most, prepared

int tile_panels(int num_tokens);  // panels that a tile has room for, twice
bool prepares_alone(const Pass& pass, const Matrix& matrix);
Matrix shape_of(const Weight& weight);  // without its memory

Outcome check_step(const Program& program, const Step& step, Arena arena);
void plan_step(Pass& pass);  // rows, items, adapters; before `lay_out`
void turn_angles(Pass& pass);
enum class Attended { none, planned, reserved };  // reserved: room for any step of so many tokens
bool lay_out(Pass& pass, Attended attended);      // false: no memory

void run_linear(Pass& pass, const Op& op);
void run_rowwise(Pass& pass, const Op& op);
void run_attention(Pass& pass, const Op& op);
bool run_experts(Pass& pass, const Op& op);      // false: no memory
bool reserve_experts(Pass& pass, const Op& op);  // the same
// The likeliest of each token's outputs, from the linear `op` on, softly capped where cap > 0; -1: not finite.
void run_greedy(Pass& pass, const Op& op, float cap, int64_t* likeliest);
// One token's delta [width of the linear], from its normed inputs.
void lora_delta(const LoraPair& pair, bool is_bf16, const float* x, int columns, int rows, float* delta);

}  // namespace kd
