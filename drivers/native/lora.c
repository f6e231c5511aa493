/* What LoRA adapters add to one linear, a few tokens each: the inner loop of drivers/ops/fused.py, `lora`.
 *
 *     y[token] += (x[token] down^T) up          down [rank, columns], up [rank, rows], the scale is in up
 *
 * One token at a time: its matrices are read once, in the order in which they lie, so that memory sets the pace and not the number of
 * calls. Sums are kept in 32 bits in 16 lanes, whatever the processor has. Up is zero outside of its blocks, which are not read.
 * Bounds are checked by the caller.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define MAX_BLOCKS 3

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

struct block { /* drivers/native/lora.py: BLOCK */
    uint32_t first_rank, end_rank, first_row, end_row;
};

struct pair { /* drivers/native/lora.py: PAIR */
    const void *down, *up;
    uint64_t num_blocks; /* 0: this linear is left alone */
    struct block blocks[MAX_BLOCKS];
};

#ifdef __x86_64__
#define EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERY_PROCESSOR
#endif

#define INLINE static inline __attribute__((always_inline))

INLINE float float_of_bf16(uint16_t half)
{
    uint32_t word = (uint32_t)half << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

INLINE uint16_t bf16_of_float(float value) /* to nearest, ties to even */
{
    uint32_t word;
    memcpy(&word, &value, 4);
    if ((word & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(word >> 16 | 0x40);
    return (uint16_t)((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

INLINE void load(floats *value, const void *from, size_t at, int is_bf16)
{
    if (is_bf16) {
        halves half;
        memcpy(&half, (const uint16_t *)from + at, sizeof half);
        words word = __builtin_convertvector(half, words) << 16;
        memcpy(value, &word, sizeof *value);
    } else
        memcpy(value, (const float *)from + at, sizeof *value);
}

INLINE float load_one(const void *from, size_t at, int is_bf16)
{
    return is_bf16 ? float_of_bf16(((const uint16_t *)from)[at]) : ((const float *)from)[at];
}

INLINE float dot(const void *row, const float *x, size_t columns, int is_bf16)
{
    floats sums[2] = {{0}, {0}};
    size_t at = 0;
    for (; at + 2 * LANES <= columns; at += 2 * LANES)
        for (int part = 0; part < 2; part++) {
            floats value, weight;
            memcpy(&value, x + at + part * LANES, sizeof value);
            load(&weight, row, at + part * LANES, is_bf16);
            sums[part] += weight * value;
        }
    floats all = sums[0] + sums[1];
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++)
        sum += all[lane];
    for (; at < columns; at++)
        sum += load_one(row, at, is_bf16) * x[at];
    return sum;
}

INLINE void add_scaled(float *sums, const void *row, float scale, size_t size, int is_bf16)
{
    size_t at = 0;
    for (; at + LANES <= size; at += LANES) {
        floats sum, weight;
        memcpy(&sum, sums + at, sizeof sum);
        load(&weight, row, at, is_bf16);
        sum += weight * scale;
        memcpy(sums + at, &sum, sizeof sum);
    }
    for (; at < size; at++)
        sums[at] += load_one(row, at, is_bf16) * scale;
}

INLINE void add_token(void *y, const void *x, const struct pair *pair, size_t columns, size_t rows, float *scratch, int is_bf16)
{
    float *wide = scratch, *sums = scratch + columns;
    size_t size = is_bf16 ? 2 : 4;
    for (size_t at = 0; at < columns; at++)
        wide[at] = load_one(x, at, is_bf16);
    for (uint64_t idx = 0; idx < pair->num_blocks; idx++) {
        struct block block = pair->blocks[idx];
        size_t num_rows = block.end_row - block.first_row;
        memset(sums, 0, num_rows * sizeof *sums);
        for (size_t rank = block.first_rank; rank < block.end_rank; rank++) {
            float inner = dot((const char *)pair->down + rank * columns * size, wide, columns, is_bf16);
            add_scaled(sums, (const char *)pair->up + (rank * rows + block.first_row) * size, inner, num_rows, is_bf16);
        }
        for (size_t at = 0; at < num_rows; at++) {
            float sum = load_one(y, block.first_row + at, is_bf16) + sums[at];
            if (is_bf16)
                ((uint16_t *)y)[block.first_row + at] = bf16_of_float(sum);
            else
                ((float *)y)[block.first_row + at] = sum;
        }
    }
}

#define LORA(NAME, ITEM_BYTES)                                                                                                            \
    EVERY_PROCESSOR void NAME(char *y, const char *x, const int64_t *tokens, const int64_t *counts, const struct pair *pairs,           \
                              size_t num_pairs, size_t columns, size_t rows, float *scratch)                                             \
    {                                                                                                                                    \
        for (size_t idx = 0; idx < num_pairs; idx++)                                                                                     \
            for (int64_t count = counts[idx]; count > 0; count--, tokens++)                                                              \
                add_token(y + *tokens * rows * ITEM_BYTES, x + *tokens * columns * ITEM_BYTES, pairs + idx, columns, rows, scratch,     \
                          ITEM_BYTES == 2);                                                                                              \
    }

/* Scratch holds columns + rows floats. */
LORA(kd_lora_f32, 4)
LORA(kd_lora_bf16, 2)
