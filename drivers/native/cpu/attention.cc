// One item of attention: its queries over its keys, partition by partition, and what several items of the same queries found put together.
//
// A query's result is a fold: within a partition over its blocks, then over the partitions, both from the first that it sees to the last.
// An item that has all partitions folds as it goes; of items that have one each, the last to finish folds for all. Either way the same
// numbers meet in the same order (kernels.h, rule 1).
#include "attention.h"

#include <atomic>
#include <cmath>

#include "functions.h"
#include "kv.h"
#include "products.h"

namespace kd {

namespace {

// An item's scratch: everything is indexed by query, token by token, in each of them head by head.
struct Work {
  uint32_t* words;   // of all tiles one behind the other
  float* factors;
  int32_t* offsets;
  Wide* wide;        // f8: of one block
  Sums part, whole;

  Work(void* memory, int num_queries, int head_dim) {
    float* at = static_cast<float*>(memory);
    const auto take = [&](size_t count) {
      float* taken = at;
      at += (count + 15) / 16 * 16;
      return taken;
    };
    part.mixed = take(size_t(num_queries) * head_dim);
    whole.mixed = take(size_t(num_queries) * head_dim);
    words = reinterpret_cast<uint32_t*>(take(size_t(num_queries) * head_dim));
    part.most = take(num_queries), part.total = take(num_queries);
    whole.most = take(num_queries), whole.total = take(num_queries);
    factors = take(num_queries);
    offsets = reinterpret_cast<int32_t*>(take(2 * size_t(num_queries)));
    wide = reinterpret_cast<Wide*>(at);
  }
};

struct Item {
  const Pages& pages;
  const AttentionSettings& settings;
  const AttentionRow& row;
  const AttentionItem& cut;
  const AttentionValues& values;
  Kind kind;         // of blocks when they are attended
  BlockShape shape;  // then
  BlockShape kept;   // in pages
  int group, num_queries, num_tiles;

  Item(const Pages& p, const AttentionSettings& s, const AttentionRow& r, const AttentionItem& i, const AttentionValues& v)
      : pages(p), settings(s), row(r), cut(i), values(v) {
    const int item = item_bytes(p.kind), wide = sizeof(Wide);
    shape = kept = {p.head_dim, p.head_dim * item / 4, size_t(p.page_tokens) * 4, size_t(p.head_dim) * item};
    kind = p.kind == Kind::f8 ? WIDE : p.kind;
    if (p.kind == Kind::f8) shape = {p.head_dim, p.head_dim * wide / 4, GROUP_KEYS * 4, size_t(p.head_dim) * wide};
    group = s.num_heads / p.kv_heads;
    num_queries = i.num_tokens * group;
    num_tiles = (num_queries + TILE_QUERIES - 1) / TILE_QUERIES;
  }

  int tile_start(int tile) const { return tile * num_queries / num_tiles; }
  int position(int query) const { return row.position + cut.first_token + query / group; }
  int head(int query) const { return query % group * pages.kv_heads + cut.kv_head; }
  size_t token(int query) const { return size_t(row.start) + cut.first_token + query / group; }

  Seen seen(int query, int begin, int num_keys) const {  // of keys [begin, begin + num_keys)
    const int first = first_seen(position(query), settings.window) - begin, end = position(query) + 1 - begin;
    return {first < 0 ? 0 : first, end > num_keys ? num_keys : end};
  }
};

void pack_queries(const Item& item, const Work& work) {
  const int parts = item.kind == Kind::u8 ? 2 : 1;
  for (int tile = 0; tile < item.num_tiles; tile++) {
    const int first = item.tile_start(tile), count = item.tile_start(tile + 1) - first;
    uint32_t* words = work.words + size_t(first) * item.shape.num_words * parts;
    for (int q = 0; q < count; q++) {
      const float* x = item.values.queries + item.token(first + q) * item.values.q_stride + item.head(first + q) * item.pages.head_dim;
      work.factors[first + q] = item.settings.scale;
      pack_query(item.kind, x, item.pages.head_dim, words + q, count, count, work.factors + first + q, work.offsets + 2 * first + q);
    }
  }
}

// Groups of the block that nobody sees are not looked for: their frames may be anything.
Block block_at(const Item& item, int begin) {
  const int first_key = item.seen(0, begin, BLOCK_KEYS).first, end_key = item.seen(item.num_queries - 1, begin, BLOCK_KEYS).end;
  const int first = first_key / GROUP_KEYS, last = (end_key - 1) / GROUP_KEYS, tokens = item.pages.page_tokens;
  Block block;
  int page = (begin + first * GROUP_KEYS) / tokens, slot = begin + first * GROUP_KEYS - page * tokens;
  for (int g = first; g <= last; g++) {
    const HeadOfPage place = head_of_page(item.pages, item.row.frames[page], item.cut.kv_head);
    block.keys[g] = place.keys + slot * 4;
    block.values[g] = place.values + slot * item.kept.value_stride;
    block.key_scales[g] = place.key_scales + slot;
    block.value_scales[g] = place.value_scales + slot;
    slot += GROUP_KEYS;
    if (slot == tokens) slot = 0, page++;
  }
  for (int g = 0; g < GROUPS; g++) {
    if (g >= first && g <= last) continue;
    const int alias = g < first ? first : last;
    block.keys[g] = block.keys[alias], block.values[g] = block.values[alias];
    block.key_scales[g] = block.key_scales[alias], block.value_scales[g] = block.value_scales[alias];
  }
  return block;
}

void attend_tiles(const Item& item, const Work& work, int begin, const Block& block, const Block* next) {
  const int parts = item.kind == Kind::u8 ? 2 : 1;
  for (int tile = 0; tile < item.num_tiles; tile++) {
    const int first = item.tile_start(tile), count = item.tile_start(tile + 1) - first;
    Seen seen[TILE_QUERIES];
    bool is_any = false;
    for (int q = 0; q < count; q++) {
      seen[q] = item.seen(first + q, begin, BLOCK_KEYS);
      is_any |= seen[q].first < seen[q].end;
    }
    if (!is_any) continue;
    const TileQueries queries{work.words + size_t(first) * item.shape.num_words * parts, work.factors + first, work.offsets + 2 * first,
                              item.settings.softcap};
    const Sums sums{work.part.most + first, work.part.total + first, work.part.mixed + size_t(first) * item.shape.head_dim};
    attend_block(item.kind, item.shape, queries, count, seen, block, tile == 0 ? next : nullptr, sums);
  }
}

// Where the first block begins that somebody sees.
int first_block(const Item& item, int partition) {
  const int start = partition * PARTITION_KEYS;
  return start + item.seen(0, start, PARTITION_KEYS).first / BLOCK_KEYS * BLOCK_KEYS;
}

// A block and the one behind it, which is fetched while the first is attended.
class Walk {
 public:
  Walk(const Item& item, int begin) : item_(item) {
    here_ = block_at(item, begin);
    for (int w = 0; w < item.kept.num_words; w++)
      for (int g = 0; g < GROUPS; g++) __builtin_prefetch(here_.keys[g] + w * item.kept.word_stride);
    for (int g = 0; g < GROUPS; g++) __builtin_prefetch(here_.key_scales[g]), __builtin_prefetch(here_.value_scales[g]);
  }

  // Attends the block at `begin`; the next to be attended is at `behind`, or none where that is negative.
  void attend(const Work& work, int begin, int behind) {
    Block& here = is_swapped_ ? there_ : here_;
    Block& there = is_swapped_ ? here_ : there_;
    if (behind >= 0) there = block_at(item_, behind);
    if (item_.pages.kind == Kind::f8)
      attend_tiles(item_, work, begin, widen(item_.kept, here, behind >= 0 ? there : here, work.wide), nullptr);
    else
      attend_tiles(item_, work, begin, here, behind >= 0 ? &there : nullptr);
    is_swapped_ = !is_swapped_;
  }

 private:
  const Item& item_;
  Block here_, there_;
  bool is_swapped_ = false;
};

void attend_partition(const Item& item, const Work& work, int partition, Walk* walk) {
  for (int q = 0; q < item.num_queries; q++) work.part.most[q] = -INFINITE, work.part.total[q] = 0.0f;
  std::memset(work.part.mixed, 0, size_t(item.num_queries) * item.shape.head_dim * sizeof(float));
  const int start = partition * PARTITION_KEYS, end = start + item.seen(item.num_queries - 1, start, PARTITION_KEYS).end;
  const bool is_last = partition + 1 == item.cut.first_partition + item.cut.num_partitions;
  const int behind = is_last ? -1 : first_block(item, partition + 1);
  for (int begin = first_block(item, partition); begin < end; begin += BLOCK_KEYS)
    walk->attend(work, begin, begin + BLOCK_KEYS < end ? begin + BLOCK_KEYS : behind);
}

bool sees(const Item& item, int query, int partition) {
  const Seen keys = item.seen(query, partition * PARTITION_KEYS, PARTITION_KEYS);
  return keys.first < keys.end;
}

float exp_of(float x) {
  float lane[LANES];
  store(lane, exp(all(x)));
  return lane[0];
}

// Puts one partition of one query to those before it. `is_first`: there are none.
void fold(const Sums& whole, int query, float most, float total, const float* mixed, int head_dim, bool is_first) {
  float* sums = whole.mixed + size_t(query) * head_dim;
  if (is_first) {
    whole.most[query] = most, whole.total[query] = total;
    std::memcpy(sums, mixed, head_dim * sizeof(float));
    return;
  }
  const float held = whole.most[query], greater = most > held ? most : held;
  const float older = exp_of(held - greater), newer = exp_of(most - greater);
  whole.most[query] = greater;
  whole.total[query] = whole.total[query] * older + total * newer;
  for (int d = 0; d < head_dim; d += LANES) store(sums + d, fma(load(mixed + d), all(newer), load(sums + d) * all(older)));
}

void write_out(const Item& item, const Sums& whole) {
  const int head_dim = item.shape.head_dim;
  for (int q = 0; q < item.num_queries; q++) {
    float* out = item.values.out + item.token(q) * item.values.out_stride + item.head(q) * head_dim;
    const float* sums = whole.mixed + size_t(q) * head_dim;
    const Floats total = all(whole.total[q]);
    for (int d = 0; d < head_dim; d += LANES) store(out + d, load(sums + d) / total);
    if (item.values.lse) item.values.lse[item.token(q) * item.settings.num_heads + item.head(q)] = whole.most[q] + std::log(whole.total[q]);
  }
}

// A partial is head_dim sums, the maximum and the total.
float* record(const Item& item, const AttentionScratch& scratch, int sibling, int query) {
  const size_t at = size_t(item.cut.first_partial) + size_t(sibling) * item.num_queries + query;
  return static_cast<float*>(scratch.partials) + at * (item.shape.head_dim + RECORD_EXTRA);
}

void keep_partials(const Item& item, const Work& work, const AttentionScratch& scratch) {
  const int head_dim = item.shape.head_dim;
  for (int q = 0; q < item.num_queries; q++) {
    float* kept = record(item, scratch, item.cut.partial, q);
    std::memcpy(kept, work.part.mixed + size_t(q) * head_dim, head_dim * sizeof(float));
    kept[head_dim] = work.part.most[q], kept[head_dim + 1] = work.part.total[q];
  }
}

void fold_partials(const Item& item, const Work& work, const AttentionScratch& scratch) {
  const int head_dim = item.shape.head_dim, first_partition = item.cut.first_partition - item.cut.partial;
  for (int q = 0; q < item.num_queries; q++) {
    bool is_first = true;
    for (int sibling = 0; sibling < item.cut.num_siblings; sibling++) {
      if (!sees(item, q, first_partition + sibling)) continue;
      const float* kept = record(item, scratch, sibling, q);
      fold(work.whole, q, kept[head_dim], kept[head_dim + 1], kept, head_dim, is_first);
      is_first = false;
    }
  }
  write_out(item, work.whole);
}

}  // namespace

void attention(const Pages& pages, const AttentionSettings& settings, const AttentionRow* rows, const AttentionItem& cut,
               const AttentionValues& values, const AttentionScratch& scratch) {
  const Item item(pages, settings, rows[cut.row], cut, values);
  const Work work(scratch.thread, item.num_queries, pages.head_dim);
  Walk walk(item, first_block(item, cut.first_partition));
  pack_queries(item, work);
  if (cut.num_siblings > 1) {
    attend_partition(item, work, cut.first_partition, &walk);
    keep_partials(item, work, scratch);
    auto* counter = reinterpret_cast<std::atomic<int32_t>*>(scratch.counters + cut.counter);
    if (counter->fetch_add(1, std::memory_order_acq_rel) + 1 < cut.num_siblings) return;
    counter->store(0, std::memory_order_relaxed);
    return fold_partials(item, work, scratch);
  }
  for (int p = 0; p < cut.num_partitions; p++) {
    const int partition = cut.first_partition + p;
    attend_partition(item, work, partition, &walk);
    if (cut.num_partitions == 1) return write_out(item, work.part);
    for (int q = 0; q < item.num_queries; q++)
      if (sees(item, q, partition))
        fold(work.whole, q, work.part.most[q], work.part.total[q], work.part.mixed + size_t(q) * pages.head_dim, pages.head_dim,
             p == 0 || !sees(item, q, partition - 1));
  }
  write_out(item, work.whole);
}

}  // namespace kd
