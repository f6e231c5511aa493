// Entry points of sampling, and the numbers of a draw. Python's side is drivers/native/sampling.py.

#include <algorithm>
#include <cmath>

#include "engine.h"
#include "sampling.h"

namespace kd {
namespace {

constexpr uint64_t WORD = 0xffffffffu;

// Whether all tokens named are in the vocabulary.
bool is_sound(const Rows& rows, int64_t num_rows) {
  for (int64_t idx = 0; idx < num_rows; idx++) {
    const Draw& draw = rows.draws[idx];
    if (draw.given >= rows.width) return false;
    for (const Seen* seen = rows.seen + draw.first_seen; seen != rows.seen + draw.first_seen + draw.num_seen; seen++)
      if (seen->token < 0 || seen->token >= rows.width) return false;
  }
  return true;
}

Outcome draw(Engine& engine, const Rows& rows, int64_t num_rows) {
  if (!is_sound(rows, num_rows)) return WRONG_TOKEN;
  if (!engine.draws.reserve(draw_room_bytes(rows.width) * engine.threads.count())) return NO_MEMORY;
  draw_rows(engine.threads, rows, static_cast<int>(num_rows), engine.draws.get());
  return FINE;
}

}  // namespace

// Philox-4x32-10 of the counter (position, 0) under the key `seed`.
uint64_t uniform_bits(uint64_t seed, uint64_t position) {
  uint64_t c0 = position & WORD, c1 = position >> 32, c2 = 0, c3 = 0, k0 = seed & WORD, k1 = seed >> 32;
  for (int round = 0; round < 10; round++) {
    const uint64_t one = c0 * 0xD2511F53u, two = c2 * 0xCD9E8D57u;
    c0 = (two >> 32) ^ c1 ^ k0, c1 = two & WORD, c2 = (one >> 32) ^ c3 ^ k1, c3 = one & WORD;
    k0 = (k0 + 0x9E3779B9u) & WORD, k1 = (k1 + 0xBB67AE85u) & WORD;
  }
  return c0 >> 5 << 26 | c1 >> 6;
}

double natural_log(double x) {
  int power;
  double part = std::frexp(x, &power);
  if (part < 0.70710678118654752) part *= 2.0, power--;
  const double z = (part - 1.0) / (part + 1.0), square = z * z;
  double series = 0.0;
  for (int odd = 25; odd > 0; odd -= 2) series = series * square + 2.0 / odd;
  return power * 0.693147180369123816490 + (power * 1.90821492927058770002e-10 + z * series);
}

}  // namespace kd

using namespace kd;

#define KD_ENTRY extern "C" __attribute__((visibility("default")))

KD_ENTRY int kd_logits(Engine* engine, const Program* program, const float* hidden, const int64_t* rows, int64_t num_rows,
                       const uint64_t* bases, int first_op, float* logits, int64_t* likeliest);

// Draws of logits that are there; penalties stay in them.
KD_ENTRY int kd_draw(Engine* engine, const Rows* rows, int64_t num_rows) { return draw(*engine, *rows, num_rows); }

// Logits of rows of `hidden`, `most` rows at a time, and what is drawn of them, without handing them out. `rows->logits` is not read.
KD_ENTRY int kd_head_draw(Engine* engine, const Program* program, const float* hidden, const int64_t* places, int64_t num_rows,
                          const uint64_t* bases, int first_op, const Rows* rows, int64_t most) {
  const size_t row_bytes = rows->width * sizeof(float);
  for (int64_t first = 0; first < num_rows; first += most) {
    const int64_t num = std::min(most, num_rows - first);
    if (!engine->logits.reserve(num * row_bytes)) return NO_MEMORY;
    Rows some = *rows;
    some.logits = reinterpret_cast<float*>(engine->logits.get());
    some.draws += first, some.drawn += first, some.likeliest += first * rows->most_likeliest;
    int outcome = kd_logits(engine, program, hidden, places + first, num, bases, first_op, some.logits, nullptr);
    if (outcome == FINE) outcome = draw(*engine, some, num);
    if (outcome != FINE) return outcome;
  }
  return FINE;
}
