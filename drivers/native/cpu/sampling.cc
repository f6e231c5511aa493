// Rows from logits to tokens. Each pass over a vocabulary is cut into chunks, of which all threads may take some.

#include "sampling.h"

#include <algorithm>
#include <vector>

#include "weights.h"

namespace kd {
namespace {

constexpr int CHUNK = 4096;              // tokens
constexpr int NUM_NEAR = 7;              // how far below the greatest scaled score one looks first
constexpr float NEAR[NUM_NEAR] = {2.0f, 4.0f, 6.0f, 8.0f, 9.5f, 11.0f, 16.0f};
constexpr uint64_t NO_BOUND = ~uint64_t(0) >> 1;

struct Chunk {
  float most;
  bool is_bad;
  int num;  // of the ids found in it
  uint64_t weight;
  float near_counts[NUM_NEAR], near_weights[NUM_NEAR];  // of tokens no further than that; rounded, so they only say where to look
};

struct Room {
  int32_t *ids, *some;  // [width]
  Chunk* chunks;
};

size_t aligned(size_t size_bytes) { return (size_bytes + 63) / 64 * 64; }
int chunks_of(int width) { return (width + CHUNK - 1) / CHUNK; }

Room room_at(uint8_t* place, int width) {
  const size_t ids_bytes = aligned(width * sizeof(int32_t));
  return {reinterpret_cast<int32_t*>(place), reinterpret_cast<int32_t*>(place + ids_bytes), reinterpret_cast<Chunk*>(place + 2 * ids_bytes)};
}

// The least float that is no further below `most` than log(min_p).
float limit_of(float most, float min_p) {
  if (!(min_p > 0.0f)) return -INFINITE;
  const double depth = natural_log(min_p);
  const auto is_near = [&](float score) { return double(score) - double(most) >= depth; };
  float limit = float(double(most) + depth);
  while (is_near(std::nextafter(limit, -INFINITE))) limit = std::nextafter(limit, -INFINITE);
  while (!is_near(limit)) limit = std::nextafter(limit, INFINITE);
  return limit;
}

class RowDraw {
 public:
  RowDraw(Threads* threads, float* scores, int width, Room room)
      : threads_(threads), scores_(scores), width_(width), num_chunks_(chunks_of(width)), room_(room) {}

  Drawn run(const Draw& draw, const Seen* seen, Drawn* likeliest) {
    if (!find_most()) return {-1, 0.0f};
    const bool is_asked = draw.num_logprobs >= 0;
    const double total = is_asked ? log_total(draw.num_logprobs, likeliest) : 0.0;
    if (draw.given >= 0) return {draw.given, float(scores_[draw.given] - total)};
    std::vector<float> raw;
    for (int i = 0; is_asked && i < draw.num_seen; i++) raw.push_back(scores_[seen[i].token]);
    if (draw.num_seen > 0) {
      penalize(draw, seen);
      if (!find_most()) return {-1, 0.0f};
    }
    const int32_t token = draw.temperature > 0.0f ? drawn(draw) : first_of_most();
    if (!is_asked) return {token, 0.0f};
    float logit = scores_[token];
    for (size_t i = 0; i < raw.size(); i++)
      if (seen[i].token == token) logit = raw[i];
    return {token, float(logit - total)};
  }

 private:
  // --- passes over the row

  template <typename Body>
  void each_chunk(Body body) {
    struct Work {
      RowDraw& row;
      Body& body;
    } work{*this, body};
    const auto part = [](void* of, int idx, int) {
      Work& work = *static_cast<Work*>(of);
      const int first = idx * CHUNK;
      work.body(work.row.room_.chunks[idx], first, std::min(first + CHUNK, work.row.width_));
    };
    if (threads_ != nullptr) return threads_->run(part, &work, num_chunks_);
    for (int idx = 0; idx < num_chunks_; idx++) part(&work, idx, 0);
  }

  // Sixteen scores, -inf behind the end.
  KD_INLINE Floats scores_at(int first, int end) const {
    return end - first >= LANES ? load(scores_ + first)
                                : select(lanes(0, end - first), load_part(scores_ + first, end - first), all(-INFINITE));
  }

  // false: one is NaN, or the greatest is infinite.
  bool find_most() {
    each_chunk([this](Chunk& chunk, int first, int end) {
      Floats most = all(-INFINITE), bad = all(0.0f);
      for (int i = first; i < end; i += LANES) {
        const Floats score = scores_at(i, end);
        bad = select(is_nan(score), all(1.0f), bad);
        most = greatest(score, most);
      }
      chunk.most = greatest_of(most), chunk.is_bad = sum(bad) > 0.0f;
    });
    most_ = -INFINITE;
    for (int idx = 0; idx < num_chunks_; idx++) {
      if (room_.chunks[idx].is_bad) return false;
      most_ = std::max(most_, room_.chunks[idx].most);
    }
    return std::fabs(most_) < INFINITE;
  }

  int32_t first_of_most() const {
    int idx = 0;
    while (room_.chunks[idx].most != most_) idx++;
    int32_t token = idx * CHUNK;
    while (scores_[token] != most_) token++;
    return token;
  }

  // Sixteen scaled scores, -inf where they are below the limit or behind the end.
  KD_INLINE Floats scaled_at(const Scaled& row, float limit, int first, int end) const {
    const Floats scaled = scores_at(first, end) / all(row.temperature);
    return select(is_less(scaled, all(limit)), all(-INFINITE), scaled);
  }

  uint64_t weigh(const Scaled& row, float limit) {
    each_chunk([&, this](Chunk& chunk, int first, int end) {
      WeightSums sums = no_weights();
      for (int i = first; i < end; i += LANES) add_weights(sums, scaled_exp(scaled_at(row, limit, i, end) - all(row.most)));
      chunk.weight = total(sums, (end - first + LANES - 1) / LANES);
    });
    uint64_t weight = 0;
    for (int idx = 0; idx < num_chunks_; idx++) weight += room_.chunks[idx].weight;
    return weight;
  }

  // `weigh` of everything, and how much of it is near.
  uint64_t survey(const Scaled& row) {
    each_chunk([&, this](Chunk& chunk, int first, int end) {
      WeightSums sums = no_weights();
      Floats counts[NUM_NEAR], weights[NUM_NEAR];
      for (int k = 0; k < NUM_NEAR; k++) counts[k] = weights[k] = all(0.0f);
      for (int i = first; i < end; i += LANES) {
        const Floats depth = scaled_at(row, -INFINITE, i, end) - all(row.most), weight = scaled_exp(depth);
        add_weights(sums, weight);
        for (int k = 0; k < NUM_NEAR; k++) {
          const Mask is_far = is_less(depth, all(-NEAR[k]));
          counts[k] = counts[k] + select(is_far, all(0.0f), all(1.0f));
          weights[k] = weights[k] + select(is_far, all(0.0f), weight);
        }
      }
      chunk.weight = total(sums, (end - first + LANES - 1) / LANES);
      for (int k = 0; k < NUM_NEAR; k++) chunk.near_counts[k] = sum(counts[k]), chunk.near_weights[k] = sum(weights[k]);
    });
    uint64_t weight = 0;
    for (int idx = 0; idx < num_chunks_; idx++) weight += room_.chunks[idx].weight;
    return weight;
  }

  // The ids of scaled scores from the limit on.
  Ids gather(const Scaled& row, float limit) {
    each_chunk([&, this](Chunk& chunk, int first, int end) {
      int32_t* ids = room_.ids + first;
      const Floats least = all(limit);
      int num = 0;
      for (int i = first; i < end; i += LANES) {
        const Mask below = is_less(scores_at(i, end) / all(row.temperature), least);
        uint32_t found = ~bits_of(below) & 0xffffu;
        if (end - i < LANES) found &= (1u << (end - i)) - 1;
        for (; found != 0; found &= found - 1) ids[num++] = i + __builtin_ctz(found);
      }
      chunk.num = num;
    });
    int num = 0;
    for (int idx = 0; idx < num_chunks_; num += room_.chunks[idx++].num)
      std::memmove(room_.ids + num, room_.ids + idx * CHUNK, room_.chunks[idx].num * sizeof(int32_t));
    return {room_.ids, num};
  }

  // --- what is asked of it

  // `cut_off` of the row, which was surveyed; answers the tokens that were looked at, too.
  Border cut_row(const Scaled& row, uint64_t most_tokens, uint64_t least_weight, Ids& ids) {
    for (int k = 0; k < NUM_NEAR; k++) {
      double count = 0.0, weight = 0.0;
      for (int idx = 0; idx < num_chunks_; idx++) count += room_.chunks[idx].near_counts[k], weight += room_.chunks[idx].near_weights[k];
      if (count < double(most_tokens) && weight < double(least_weight)) continue;
      ids = gather(row, row.most - NEAR[k]);
      const Border border = cut_off(row, ids, most_tokens, least_weight, room_.some);
      if (!border.is_all) return border;
    }
    ids = gather(row, -INFINITE);
    return cut_off(row, ids, most_tokens, least_weight, room_.some);
  }

  // The logarithm of the sum of all e^logit, and the likeliest tokens with their log-probabilities.
  double log_total(int num_likeliest, Drawn* likeliest) {
    const Scaled row{scores_, 1.0f, most_};
    const double found = double(most_) + natural_log(std::ldexp(double(survey(row)), -WEIGHT_BITS));
    if (num_likeliest <= 0) return found;
    Ids ids{};
    const Border border = cut_row(row, num_likeliest, NO_BOUND, ids);
    const int num = kept_in_order(row, ids, border, room_.some);
    for (int i = 0; i < num; i++) likeliest[i] = {room_.some[i], float(scores_[room_.some[i]] - found)};
    return found;
  }

  void penalize(const Draw& draw, const Seen* seen) {
    for (int i = 0; i < draw.num_seen; i++) {
      float& score = scores_[seen[i].token];
      if (draw.repetition != 1.0f) score = score > 0.0f ? score / draw.repetition : score * draw.repetition;
      if (seen[i].count > 0) score -= draw.presence + draw.frequency * float(seen[i].count);
    }
  }

  int32_t drawn(const Draw& draw) {
    const Scaled row{scores_, draw.temperature, most_ / draw.temperature};
    const float limit = limit_of(row.most, draw.min_p);
    const bool is_one = draw.top_k == 1 || !(draw.top_p > 0.0) || row.most < limit;
    const uint64_t uniform = uniform_bits(draw.seed, uint64_t(draw.position));
    if (!(std::fabs(row.most) < INFINITE)) return first_of_most();
    if (is_one) return first_of_scaled(row);
    if (draw.top_k == 0 && draw.top_p >= 1.0) return drawn_of_all(row, limit, uniform);
    const uint64_t most_tokens = draw.top_k > 0 ? draw.top_k : NO_BOUND;
    Ids ids{};
    Border border{};
    uint64_t weight = survey(row);
    if (draw.top_k > 0) border = cut_row(row, most_tokens, NO_BOUND, ids), weight = border.weight;
    if (draw.top_p < 1.0) {
      const uint64_t least = std::max(uint64_t(1), uint64_t(std::ceil(draw.top_p * double(weight))));
      border = draw.top_k > 0 ? cut_off(row, ids, most_tokens, least, room_.some) : cut_row(row, NO_BOUND, least, ids);
    }
    return drawn_of(row, ids, border, limit, uniform);
  }

  // Dividing may have made equal what was not.
  int32_t first_of_scaled(const Scaled& row) const {
    int32_t token = 0;
    while (row.at(token) != row.most) token++;
    return token;
  }

  int32_t drawn_of_all(const Scaled& row, float limit, uint64_t uniform) {
    const uint64_t target = static_cast<unsigned __int128>(weigh(row, limit)) * uniform >> 53;
    uint64_t so_far = 0;
    int idx = 0;
    while (so_far + room_.chunks[idx].weight <= target) so_far += room_.chunks[idx++].weight;
    for (int first = idx * CHUNK;; first += LANES) {
      uint64_t weights[LANES];
      WeightSums sums = no_weights();
      add_weights(sums, scaled_exp(scaled_at(row, limit, first, width_) - all(row.most)));
      each_weight(sums, weights);
      for (int i = 0; i < LANES; i++)
        if ((so_far += weights[i]) > target) return first + i;
    }
  }

  Threads* threads_;  // null: the caller alone
  float* scores_;
  int width_, num_chunks_;
  Room room_;
  float most_ = 0.0f;
};

struct RowsWork {
  const Rows& rows;
  uint8_t* room;
};

void draw_row(const Rows& rows, int idx, Threads* threads, uint8_t* room) {
  RowDraw row(threads, rows.logits + size_t(idx) * rows.width, rows.width, room_at(room, rows.width));
  const Draw& draw = rows.draws[idx];
  rows.drawn[idx] = row.run(draw, rows.seen + draw.first_seen, rows.likeliest + size_t(idx) * rows.most_likeliest);
}

}  // namespace

size_t draw_room_bytes(int width) { return 2 * aligned(width * sizeof(int32_t)) + aligned(chunks_of(width) * sizeof(Chunk)); }

void draw_rows(Threads& threads, const Rows& rows, int num_rows, uint8_t* room) {
  if (num_rows < threads.count()) {
    for (int idx = 0; idx < num_rows; idx++) draw_row(rows, idx, &threads, room);
    return;
  }
  RowsWork work{rows, room};
  const auto part = [](void* of, int idx, int thread) {
    const RowsWork& work = *static_cast<RowsWork*>(of);
    draw_row(work.rows, idx, nullptr, work.room + thread * draw_room_bytes(work.rows.width));
  };
  threads.run(part, &work, num_rows);
}

}  // namespace kd
