// From logits to tokens: penalties, draws and log-probabilities of rows, by drivers/ops/drawing.py and drivers/sampling.py.
//
//     logits --[penalties]--> scores --[/ temperature]--> scaled --[top_k, top_p, min_p]--> kept --[uniform number]--> token
//            of the row, in place                 never written
//
// What a row draws is a function of its logits and its settings alone: weights are whole numbers (weights.h), everything else that is
// rounded is rounded once and in one order. Rules where the definition leaves them to rounding:
//
// 1. A token weighs round(2^42 exp(scaled - greatest scaled)), so that one of less than 2^-43 of the likeliest is never drawn.
// 2. Kept by top_p are the fewest of the first whose weights reach top_p of the weight of all that top_k has kept.
// 3. Kept by min_p is what is within log(min_p) of the greatest scaled score.
// 4. Drawn is the first, in the order of ids, up to which more has been weighed than floor(uniform * weight of all that is kept).
// 5. Where the greatest scaled score is not finite any more, the likeliest token is drawn; where penalties leave none that is, none (-1).
#pragma once

#include <cstddef>
#include <cstdint>

#include "threads.h"

namespace kd {

// How one row draws (drivers/native/sampling.py has the same structure).
struct Draw {
  double top_p;
  uint64_t seed;
  int64_t position;
  float temperature;  // 0: the likeliest
  float min_p;
  float repetition, presence, frequency;  // 1, 0, 0: none
  int32_t top_k;                          // 0: off
  int32_t num_logprobs;                   // -1: none; 0: of the token; n: and of the n likeliest
  int32_t given;                          // the token, where it is not to be drawn; -1: it is
  int32_t first_seen, num_seen;           // tokens before it, each once
};

struct Seen {
  int32_t token, count;  // count: of the output
};

struct Drawn {
  int32_t token;  // -1: logits are not finite
  float logprob;  // of the raw logits
};

struct Rows {
  float* logits;  // [rows][width]; penalties stay in them
  int32_t width;
  const Draw* draws;
  const Seen* seen;
  Drawn* drawn;
  Drawn* likeliest;  // [rows][most_likeliest], best first, the smaller of equals before the other
  int32_t most_likeliest;
};

size_t draw_room_bytes(int width);  // for each thread
// Rows go to threads one by one; where they are fewer than threads, each goes to all threads in pieces.
void draw_rows(Threads& threads, const Rows& rows, int num_rows, uint8_t* room);

// The number in [0, 1) of (seed, position), times 2^53: drivers/philox.py.
uint64_t uniform_bits(uint64_t seed, uint64_t position);

// Within 2e-16 of the natural logarithm of a positive number; the same on every machine.
double natural_log(double x);

// --- order (ranking.cc) -----------------------------------------------------------------------------------------------------------------

// The first of an order by score, ties by id: all above `value`, and the first `num_equal` of those that are equal to it.
struct Border {
  float value;
  uint64_t num_equal, weight;  // weight: of all kept
  bool is_all;                 // nothing was cut
};

// Scores of a row, and what they are divided by.
struct Scaled {
  const float* scores;
  float temperature;
  float most;  // the greatest, scaled

  float at(int32_t id) const { return scores[id] / temperature; }
};

// Some tokens of a row, by ascending ids.
struct Ids {
  const int32_t* first;
  int num;
};

// The shortest beginning of the order that has `most_tokens` tokens or weighs `least_weight`, both at least 1. `some` has room for all ids.
Border cut_off(const Scaled& row, Ids all, uint64_t most_tokens, uint64_t least_weight, int32_t* some);
// The token up to which the kept ones weigh more than `uniform` / 2^53 of all kept, in the order of ids; scores below `limit` are not kept.
int32_t drawn_of(const Scaled& row, Ids all, const Border& border, float limit, uint64_t uniform);
// The ids that are kept, in the order of rank.
int kept_in_order(const Scaled& row, Ids all, const Border& border, int32_t* kept);

}  // namespace kd
