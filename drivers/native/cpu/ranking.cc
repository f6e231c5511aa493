// What is kept of an order, without making the order: the score at which it ends is found digit by digit, from histograms of counts and
// weights, each over what the digits before have left.

#include <algorithm>

#include "sampling.h"
#include "weights.h"

namespace kd {
namespace {

constexpr int BUCKETS = 1 << 11;
constexpr int SHIFTS[] = {21, 10, 0};  // of three digits, the last one of ten bits
constexpr uint64_t EVERYTHING = ~uint64_t(0);

// Small where the score is great; -0 is 0.
uint32_t key_of(float score) {
  const float plain = score + 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &plain, sizeof bits);
  return bits >> 31 ? bits : ~bits & 0x7fffffffu;
}

// body(id, score, weight) of each token.
template <typename Body>
void each_weighed(const Scaled& row, Ids ids, Body body) {
  for (int first = 0; first < ids.num; first += LANES) {
    const int num = ids.num - first < LANES ? ids.num - first : LANES;
    float scores[LANES] = {};
    for (int i = 0; i < num; i++) scores[i] = row.scores[ids.first[first + i]];
    const Floats scaled = load(scores) / all(row.temperature);
    store(scores, scaled);
    uint64_t weights[LANES];
    WeightSums sums = no_weights();
    add_weights(sums, scaled_exp(scaled - all(row.most)));
    each_weight(sums, weights);
    for (int i = 0; i < num; i++) body(ids.first[first + i], scores[i], weights[i]);
  }
}

bool is_kept(const Border& border, float score, uint64_t& num_equal) {
  if (score > border.value) return true;
  if (score != border.value || num_equal == 0) return false;
  num_equal--;
  return true;
}

template <typename Body>
void each_kept(const Scaled& row, Ids ids, const Border& border, float limit, Body body) {
  uint64_t num_equal = border.num_equal;
  each_weighed(row, ids, [&](int32_t id, float score, uint64_t weight) {
    if (is_kept(border, score, num_equal) && score >= limit) body(id, score, weight);
  });
}

struct Digit {
  uint32_t counts[BUCKETS];
  uint64_t weights[BUCKETS];
};

}  // namespace

Border cut_off(const Scaled& row, Ids ids, uint64_t most_tokens, uint64_t least_weight, int32_t* some) {
  Digit digit;
  Ids left = ids;
  uint64_t tokens = 0, weight = 0;  // before what is left
  int bucket = 0;
  for (int shift : SHIFTS) {
    std::memset(&digit, 0, sizeof digit);
    each_weighed(row, left, [&](int32_t, float score, uint64_t one) {
      const uint32_t at = key_of(score) >> shift & (BUCKETS - 1);
      digit.counts[at]++;
      digit.weights[at] += one;
    });
    for (bucket = 0; bucket < BUCKETS; bucket++) {
      if (tokens + digit.counts[bucket] >= most_tokens || weight + digit.weights[bucket] >= least_weight) break;
      tokens += digit.counts[bucket], weight += digit.weights[bucket];
    }
    if (bucket == BUCKETS) return {-INFINITE, EVERYTHING, weight, true};  // with the first digit, if at all
    int num = 0;
    for (int i = 0; i < left.num; i++) {
      const int32_t id = left.first[i];
      if ((key_of(row.at(id)) >> shift & (BUCKETS - 1)) == uint32_t(bucket)) some[num++] = id;
    }
    left = {some, num};
  }
  const uint64_t num = left.num, each = digit.weights[bucket] / num;  // they are equal
  uint64_t kept = std::min(num, most_tokens - tokens);
  if (each > 0) kept = std::min(kept, (least_weight - weight + each - 1) / each);
  return {row.at(some[0]), kept, weight + kept * each, false};
}

int32_t drawn_of(const Scaled& row, Ids ids, const Border& border, float limit, uint64_t uniform) {
  uint64_t kept = border.weight;
  if (limit > -INFINITE) {
    kept = 0;
    each_kept(row, ids, border, limit, [&](int32_t, float, uint64_t weight) { kept += weight; });
  }
  const uint64_t target = static_cast<unsigned __int128>(kept) * uniform >> 53;
  uint64_t so_far = 0;
  int32_t found = -1;
  each_kept(row, ids, border, limit, [&](int32_t id, float, uint64_t weight) {
    so_far += weight;
    if (found < 0 && so_far > target) found = id;
  });
  return found;
}

int kept_in_order(const Scaled& row, Ids ids, const Border& border, int32_t* kept) {
  int num = 0;
  uint64_t num_equal = border.num_equal;
  for (int i = 0; i < ids.num; i++)
    if (is_kept(border, row.at(ids.first[i]), num_equal)) kept[num++] = ids.first[i];
  std::sort(kept, kept + num, [&](int32_t one, int32_t other) {
    return row.at(one) > row.at(other) || (row.at(one) == row.at(other) && one < other);
  });
  return num;
}

}  // namespace kd
