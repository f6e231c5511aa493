/* Page copies between the host tier and the arena, with their headers and checksums: the inner loop of drivers/pages.py.
 *
 * It writes and reads exactly what drivers/hostmem.py describes, and keeps its invariants 1 and 2: a header is broken before the payload
 * changes and written after it, and nothing of a page that does not hold reaches its target. Bounds are checked by the caller.
 *
 * CRC32C (Castagnoli, reflected). Folding by carry-less multiplication: x^n mod P constants are those of the folding distances below, as in
 * Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ" (Intel, 2009). What is left of a fold is 16 bytes whose
 * checksum from zero is that of everything before, so the crc32 instruction finishes it.
 */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#define HEADER_BYTES 128
#define CHECKSUM_OFFSET 124

struct move { /* drivers/native/pages.py: MOVE */
    uint64_t host;  /* byte offset of the frame in the tier */
    uint64_t device; /* byte offset of the frame in the arena */
    uint64_t size; /* of the payload */
    uint64_t space_id;
    uint8_t key[16];
    uint32_t num_tokens;
    uint8_t is_up; /* host -> device */
    uint8_t has_failed;
    uint8_t unused[2];
};

struct header { /* drivers/hostmem.py: _HEADER */
    uint8_t magic[8];
    uint32_t version, num_tokens;
    uint8_t key[16];
    uint64_t space_id, payload_bytes, boot_generation;
    uint32_t payload_checksum;
    uint8_t zeros[64];
    uint32_t checksum;
} __attribute__((packed));

#define PLAIN __attribute__((target("sse4.2,pclmul")))
#define WIDE __attribute__((target("sse4.2,pclmul,avx512f,avx512vl,vpclmulqdq")))

static int has_wide, has_plain;

PLAIN static uint32_t crc_tail(uint32_t crc, const uint8_t *at, size_t size)
{
    uint64_t state = crc;
    for (; size >= 8; at += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        state = _mm_crc32_u64(state, word);
    }
    for (; size; at++, size--)
        state = _mm_crc32_u8((uint32_t)state, *at);
    return (uint32_t)state;
}

PLAIN static inline __m128i fold(__m128i x, __m128i k, __m128i next)
{
    return _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(x, k, 0x00), _mm_clmulepi64_si128(x, k, 0x11)), next);
}

PLAIN static inline uint32_t finish(__m128i x)
{
    uint64_t low = _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(x));
    return (uint32_t)_mm_crc32_u64(low, (uint64_t)_mm_extract_epi64(x, 1));
}

/* Raw state in, raw state out; copies to `to` on the way unless it is NULL. */
PLAIN static uint32_t pass_plain(uint32_t crc, uint8_t *to, const uint8_t *from, size_t size)
{
    if (size >= 128) {
        const __m128i k512 = _mm_set_epi64x(0x9e4addf8, 0x740eef02), k128 = _mm_set_epi64x(0x14cd00bd6, 0xf20c0dfe);
        __m128i x[4];
        for (int i = 0; i < 4; i++)
            x[i] = _mm_loadu_si128((const __m128i *)from + i);
        if (to)
            for (int i = 0; i < 4; i++)
                _mm_storeu_si128((__m128i *)to + i, x[i]);
        x[0] = _mm_xor_si128(x[0], _mm_cvtsi32_si128((int)crc));
        for (from += 64, size -= 64, to = to ? to + 64 : to; size >= 64; from += 64, size -= 64) {
            for (int i = 0; i < 4; i++) {
                __m128i next = _mm_loadu_si128((const __m128i *)from + i);
                if (to)
                    _mm_storeu_si128((__m128i *)to + i, next);
                x[i] = fold(x[i], k512, next);
            }
            to = to ? to + 64 : to;
        }
        crc = finish(fold(fold(fold(x[0], k128, x[1]), k128, x[2]), k128, x[3]));
    }
    if (to)
        memcpy(to, from, size);
    return crc_tail(crc, from, size);
}

WIDE static inline __m512i fold_wide(__m512i x, __m512i k, __m512i next)
{
    return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(x, k, 0x00), _mm512_clmulepi64_epi128(x, k, 0x11), next, 0x96);
}

/* The target is written past the caches, where it is aligned: a page that goes down is not read soon, and rows that run want their caches. */
WIDE static uint32_t pass_wide(uint32_t crc, uint8_t *to, const uint8_t *from, size_t size)
{
    const int streams = ((uintptr_t)to & 63) == 0;
    if (size >= 512) {
        const __m512i k2048 = _mm512_broadcast_i32x4(_mm_set_epi64x(0xb9e02b86, 0xdcb17aa4));
        const __m512i k512 = _mm512_broadcast_i32x4(_mm_set_epi64x(0x9e4addf8, 0x740eef02));
        const __m128i k128 = _mm_set_epi64x(0x14cd00bd6, 0xf20c0dfe);
        __m512i x[4];
        for (int i = 0; i < 4; i++)
            x[i] = _mm512_loadu_si512(from + 64 * i);
        if (to)
            for (int i = 0; i < 4; i++)
                _mm512_storeu_si512(to + 64 * i, x[i]);
        x[0] = _mm512_xor_si512(x[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
        for (from += 256, size -= 256, to = to ? to + 256 : to; size >= 256; from += 256, size -= 256) {
            for (int i = 0; i < 4; i++) {
                __m512i next = _mm512_loadu_si512(from + 64 * i);
                if (to && streams)
                    _mm512_stream_si512((__m512i *)(to + 64 * i), next);
                else if (to)
                    _mm512_storeu_si512(to + 64 * i, next);
                x[i] = fold_wide(x[i], k2048, next);
            }
            to = to ? to + 256 : to;
        }
        _mm_sfence(); /* what was streamed is there before the header says so */
        __m512i y = fold_wide(fold_wide(fold_wide(x[0], k512, x[1]), k512, x[2]), k512, x[3]);
        __m128i z = _mm512_extracti32x4_epi32(y, 0);
        z = fold(z, k128, _mm512_extracti32x4_epi32(y, 1));
        z = fold(z, k128, _mm512_extracti32x4_epi32(y, 2));
        crc = finish(fold(z, k128, _mm512_extracti32x4_epi32(y, 3)));
    }
    if (to)
        memcpy(to, from, size);
    return crc_tail(crc, from, size);
}

static uint32_t pass(uint8_t *to, const uint8_t *from, size_t size)
{
    return ~(has_wide ? pass_wide : pass_plain)(~0u, to, from, size);
}

/* Look at the processor once: 2 for 512 bits at a time, 1 for 128, 0 if it cannot be. */
int kd_start(void)
{
    __builtin_cpu_init();
    has_plain = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
    has_wide = has_plain && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("vpclmulqdq");
    return has_wide ? 2 : has_plain;
}

/* CRC32C of some bytes; copied to `to` on the way, unless it is NULL. `width` as kd_start says, or less. */
uint32_t kd_checksum(uint8_t *to, const uint8_t *from, size_t size, int width)
{
    return ~(width == 2 ? pass_wide : pass_plain)(~0u, to, from, size);
}

static void write_page(uint8_t *frame, const uint8_t *payload, const struct move *move, uint64_t boot_generation, int checks)
{
    struct header header = {"kd.page\n", 1, move->num_tokens, {0}, move->space_id, move->size, boot_generation, 0, {0}, 0};
    memcpy(header.key, move->key, sizeof header.key);
    memset(frame, 0, HEADER_BYTES);
    __asm__ volatile("" ::: "memory");
    if (checks)
        header.payload_checksum = pass(frame + HEADER_BYTES, payload, move->size);
    else
        memcpy(frame + HEADER_BYTES, payload, move->size);
    header.checksum = pass(NULL, (const uint8_t *)&header, CHECKSUM_OFFSET);
    __asm__ volatile("" ::: "memory");
    memcpy(frame, &header, sizeof header);
}

static int read_page(uint8_t *target, const uint8_t *frame, const struct move *move, int checks)
{
    struct header header;
    memcpy(&header, frame, sizeof header);
    if (memcmp(header.magic, "kd.page\n", 8) || header.version != 1 || header.payload_bytes != move->size ||
        header.space_id != move->space_id || memcmp(header.key, move->key, sizeof header.key) ||
        header.checksum != pass(NULL, (const uint8_t *)&header, CHECKSUM_OFFSET))
        return 0;
    if (checks && pass(NULL, frame + HEADER_BYTES, move->size) != header.payload_checksum)
        return 0;
    memcpy(target, frame + HEADER_BYTES, move->size);
    return 1;
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Make moves in order. Those whose source does not hold are marked; returns how many. took[0]: seconds down, took[1]: up. */
int kd_move_pages(uint8_t *tier, uint8_t *arena, struct move *moves, size_t count, uint64_t boot_generation, int checks, double *took)
{
    int num_failed = 0;
    double began = seconds();
    for (size_t i = 0; i < count; i++) {
        struct move *move = moves + i;
        uint8_t *frame = tier + move->host, *page = arena + move->device;
        if (move->is_up)
            num_failed += move->has_failed = !read_page(page, frame, move, checks);
        else
            write_page(frame, page, move, boot_generation, checks);
        double now = seconds();
        took[move->is_up] += now - began;
        began = now;
    }
    return num_failed;
}
