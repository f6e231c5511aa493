// How a step's attention is cut into items.
//
// Heavy items come first, so that no thread is left alone with one at the end: rows are in the order of their lengths, decode rows first,
// and are taken from behind. A piece that is more than a fair part of the whole step (long contexts, few rows) is cut further, by
// partitions, while there is room for their partial sums.
#include "attention.h"

namespace kd {

namespace {

constexpr int PARTS_PER_THREAD = 4;
constexpr int MOST_PARTIALS = 8192;
constexpr int KEY_WORK = 4;  // reading a key costs about as much as four queries that look at it

struct Piece {  // tokens of a row and the keys that they see
  int first_token, num_tokens;
  int first_key, end_key;

  int64_t work(int group) const { return int64_t(end_key - first_key) * (num_tokens * group + KEY_WORK); }
  int first_partition() const { return first_key / PARTITION_KEYS; }
  int num_partitions() const { return (end_key - 1) / PARTITION_KEYS + 1 - first_partition(); }
};

template <typename Each>
void each_piece(const AttentionRow& row, int window, int most_tokens, Each each) {
  for (int first = (row.count - 1) / most_tokens * most_tokens; first >= 0; first -= most_tokens) {
    const int num_tokens = row.count - first < most_tokens ? row.count - first : most_tokens;
    each(Piece{first, num_tokens, first_seen(row.position + first, window), row.position + first + num_tokens});
  }
}

}  // namespace

AttentionRoom attention_room(const Pages& pages, const AttentionSettings& settings, int num_threads) {
  const int64_t head = int64_t(pages.head_dim) * sizeof(float), group = settings.num_heads / pages.kv_heads;
  const int64_t queries = group > ITEM_QUERIES ? group : ITEM_QUERIES;
  AttentionRoom room;
  room.partial_bytes = MOST_PARTIALS * (head + RECORD_EXTRA * int64_t(sizeof(float)));
  room.counter_bytes = int64_t(PARTS_PER_THREAD) * num_threads * sizeof(int32_t);
  room.thread_bytes = queries * (3 * head + 8 * int64_t(sizeof(float))) + 1024;  // and what is lost between one and the next
  if (pages.kind == Kind::f8) room.thread_bytes += 2 * BLOCK_KEYS * int64_t(pages.head_dim) * sizeof(Wide);
  return room;
}

int attention_items(const Pages& pages, const AttentionSettings& settings, const AttentionRow* rows, int num_rows, int num_threads,
                    AttentionItem* items) {
  const int group = settings.num_heads / pages.kv_heads, most_tokens = item_tokens(settings.num_heads, pages.kv_heads);
  const int most_counters = PARTS_PER_THREAD * num_threads;
  int64_t work = 0;
  for (int r = 0; r < num_rows; r++)
    each_piece(rows[r], settings.window, most_tokens, [&](const Piece& piece) { work += piece.work(group) * pages.kv_heads; });
  int num_items = 0, num_partials = 0, num_counters = 0;
  for (int r = num_rows - 1; r >= 0; r--) {
    for (int head = 0; head < pages.kv_heads; head++) {
      each_piece(rows[r], settings.window, most_tokens, [&](const Piece& piece) {
        const int num_queries = piece.num_tokens * group, parts = piece.num_partitions();
        const bool is_heavy = piece.work(group) * most_counters > work;
        const bool is_cut = num_threads > 1 && parts > 1 && is_heavy && num_counters < most_counters &&
                            num_partials + parts * num_queries <= MOST_PARTIALS;
        AttentionItem item{r, head, piece.first_token, piece.num_tokens, piece.first_partition(), parts, 1, 0, 0, 0};
        if (!is_cut) {
          if (items) items[num_items] = item;
          num_items++;
          return;
        }
        item.num_partitions = 1, item.num_siblings = parts, item.first_partial = num_partials, item.counter = num_counters++;
        for (int part = 0; part < parts; part++, num_items++, item.first_partition++, item.partial++)
          if (items) items[num_items] = item;
        num_partials += parts * num_queries;
      });
    }
  }
  return num_items;
}

}  // namespace kd
