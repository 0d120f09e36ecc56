/* 8-bit weights with one scale a row on a Cortex-M with DSP.
 *
 * A half of weights is 256 w1 + w0. With x0 and x1 as activations
 *   (256 w1 + w0) x1 + w0 (256 x0 - x1) = 256 (w1 x1 + w0 x0),
 * so the half itself is one factor. The other needs w0 alone, and a product of two sums gives two
 * of them, for a w0 of one word and a v0 of the next: (w0 + s) (v0 + r) = w0 r + v0 s + w0 v0 + r
 * s, an extraction and an addition being one instruction. What is left, the sum of w0 v0, is that
 * of the row, which holds minus it in front of each group, and that of r s of the activations. So
 * eight products take five instructions. Sums are modulo 2^32 until both are taken off. */
#include "dsp.h"

enum {
    GROUP_BYTES = SF_GROUP + 4,
    GROUP_WORDS = 16 + 2, /* of widened activations, with what follows them */
    CHUNK = 8             /* groups that are widened at a time */
};

/* For every 8 elements x1, x3; x5, x7; r and s: 256 x0 - x1, 256 x2 - x3 and those of the second
 * four. Returns minus the sum of the products of r and s. */
static uint32_t widen(const int8_t *q, uint32_t *out) {
    uint32_t left = 0;
    for (uint32_t i = 0; i < SF_GROUP; i += 8u) {
        const uint32_t v = sf_load32((const uint8_t *)q + i);
        const uint32_t w = sf_load32((const uint8_t *)q + i + 4u);
        const uint32_t a = sf_odd(v), b = sf_odd(w);
        uint32_t r = v << 8 & 0xFF00FF00u, s = w << 8 & 0xFF00FF00u;
        __asm("ssub16 %0, %0, %1" : "+r"(r) : "r"(a));
        __asm("ssub16 %0, %0, %1" : "+r"(s) : "r"(b));
        *out++ = a;
        *out++ = b;
        *out++ = r;
        *out++ = s;
        left -= (uint32_t)sf_mul2(r, s);
    }
    return left;
}

/* clang-format off */
/* Eight products of the words r12 and lr to a sum. */
#define EIGHT(sum)                                                                                 \
    "smlad " sum ", r12, r3, " sum "\n\t"                                                          \
    "smlad " sum ", lr, r4, " sum "\n\t"                                                           \
    "sxtab16 r12, r6, r12\n\t"                                                                    \
    "sxtab16 lr, r5, lr\n\t"                                                                      \
    "smlad " sum ", r12, lr, " sum "\n\t"
#define STEP                                                                                       \
    "ldm r2!, {r3, r4, r5, r6}\n\t"                                                               \
    "ldm r7!, {r12, lr}\n\t" EIGHT("r10")                                                         \
    "ldm r8!, {r12, lr}\n\t" EIGHT("r11")
/* A group of two rows at r7 and r8 to r10 and r11, activations at r2. */
#define GROUP                                                                                      \
    "ldm r2!, {r3, r4, r5, r6}\n\t"                                                               \
    "ldm r7!, {r10, r12, lr}\n\t" EIGHT("r10")                                                    \
    "ldm r8!, {r11, r12, lr}\n\t" EIGHT("r11")                                                    \
    STEP STEP STEP
#define GROUP_ON                                                                                   \
    "ldm r2!, {r3, r4, r5, r6}\n\t"                                                               \
    "ldm r7!, {r9, r12, lr}\n\tadd r10, r10, r9\n\t" EIGHT("r10")                                \
    "ldm r8!, {r9, r12, lr}\n\tadd r11, r11, r9\n\t" EIGHT("r11")                                \
    STEP STEP STEP

/* Activations of rows of two groups, and what the loop over rows needs between and after them. */
struct two_groups {
    uint32_t x[16];
    uint32_t middle[2]; /* left of the first group and how far its sum moves, where they move */
    uint32_t y[16];
    const uint32_t *again;
    uint32_t left;
    const uint8_t *const *end;
};

#define LOOP(between)                                                                              \
    __asm volatile("1:\n\t"                                                                       \
          "ldm r0!, {r7, r8}\n\t"                                                                 \
          GROUP between GROUP_ON                                                                   \
          "ldm r2, {r2, r3, r4}\n\t"                                                              \
          "add r10, r10, r3\n\tadd r11, r11, r3\n\t"                                             \
          "vmov s14, s15, r10, r11\n\t"                                                           \
          "vldr s12, [r7]\n\tvldr s13, [r8]\n\t"                                                 \
          "vcvt.f32.s32 s14, s14\n\tvcvt.f32.s32 s15, s15\n\t"                                   \
          "vmul.f32 s14, s14, %[f]\n\tvmul.f32 s15, s15, %[f]\n\t"                               \
          "vmul.f32 s14, s14, s12\n\tvmul.f32 s15, s15, s13\n\t"                                 \
          "vstmia r1!, {s14, s15}\n\t"                                                            \
          "cmp r0, r4\n\t"                                                                        \
          "bne 1b"                                                                                 \
          : "+r"(row), "+r"(y), "+r"(x)                                                            \
          : [f] "t"(factor)                                                                        \
          : "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "s12", "s13",     \
            "s14", "s15", "cc", "memory")

/* The first rows of two groups, an even number of them, whose sums fit 32 bits together: how many.
 */
static uint32_t dot_two(const uint8_t *const *rows, uint32_t n, const sf_bfp *v, float *out) {
    const int32_t more = v->k[0] - v->k[1];
    struct two_groups two; /* filled piece by piece: an initialiser would clear x */
    if (more > 3 || more < -8 || n < 2u) {
        return 0;
    }
    const uint32_t first = widen(v->q, two.x), second = widen(v->q + SF_GROUP, two.y);
    two.again = two.x;
    two.end = rows + n / 2u * 2u;
    two.middle[0] = first;
    two.middle[1] = (uint32_t)(more < 0 ? -more : more);
    two.left = more < 0 ? second : (first << more) + second;
    register const uint8_t *const *row __asm("r0") = rows;
    register float *y __asm("r1") = out;
    register const uint32_t *x __asm("r2") = two.x;
    const float factor = sf_pow2(v->k[1] - SF_SHIFT_SPAN - v->s - 8);
    if (more == 0) {
        LOOP("add r2, r2, #8\n\t");
    } else if (more > 0) {
        LOOP("ldm r2!, {r3, r4}\n\t"
             "lsl r10, r10, r4\n\tlsl r11, r11, r4\n\t");
    } else {
        /* Sums are multiples of 256, so that 8 bits can go. */
        LOOP("ldm r2!, {r3, r4}\n\t"
             "add r10, r10, r3\n\tadd r11, r11, r3\n\t"
             "asr r10, r10, r4\n\tasr r11, r11, r4\n\t");
    }
    return n / 2u * 2u;
}

/* Sums of the rows at r7 and r8 over widened groups from r2 up to r1, in units of the least
 * exponent, to r0 and r9. */
#define GROUPS(label)                                                                              \
    "mov r0, #0\n\tmov r9, #0\n\t"                                                                \
    label ":\n\t"                                                                                 \
    GROUP                                                                                          \
    "ldm r2!, {r3, r4}\n\t"                                                                       \
    "add r10, r10, r3\n\tadd r11, r11, r3\n\t"                                                   \
    "asr r10, r10, r4\n\tasr r11, r11, r4\n\t"                                                   \
    "add r0, r0, r10\n\tadd r9, r9, r11\n\t"                                                     \
    "cmp r2, r1\n\t"                                                                              \
    "bne " label "b\n\t"

/* Sums of two rows over some of their groups. */
static inline void two_rows(const uint8_t *const *row, uint32_t at, const uint32_t *activations,
                            const uint32_t *end, int32_t *sum) {
    register const uint8_t *a __asm("r7") = row[0] + at;
    register const uint8_t *b __asm("r8") = row[1] + at;
    register const uint32_t *x __asm("r2") = activations;
    register const uint32_t *to __asm("r1") = end;
    register int32_t s0 __asm("r0");
    register int32_t s1 __asm("r9");
    __asm(GROUPS("1")
          : "+r"(a), "+r"(b), "+r"(x), "=&r"(s0), "=&r"(s1)
          : "r"(to)
          : "r3", "r4", "r5", "r6", "r10", "r11", "r12", "lr", "cc", "memory");
    sum[0] = s0;
    sum[1] = s1;
}

/* n > 0 pairs of rows over all of their groups. */
static void whole_rows(const uint8_t *const *rows, uint32_t n, const uint32_t *activations,
                       const uint32_t *end, float factor, float *out) {
    register float row __asm("s8") = sf_from_bits((uint32_t)(uintptr_t)rows);
    register float to __asm("s9") = sf_from_bits((uint32_t)(uintptr_t)out);
    register const uint32_t *stop __asm("r1") = end;
    const float from = sf_from_bits((uint32_t)(uintptr_t)activations);
    const float last = sf_from_bits((uint32_t)(uintptr_t)(rows + 2u * n));
    __asm volatile("1:\n\t"
          "vmov r0, s8\n\t"
          "ldm r0!, {r7, r8}\n\t"
          "vmov s8, r0\n\t"
          "vmov r2, %[x]\n\t"
          GROUPS("2")
          "vmov s14, s15, r0, r9\n\t"
          "vldr s12, [r7]\n\tvldr s13, [r8]\n\t"
          "vcvt.f32.s32 s14, s14\n\tvcvt.f32.s32 s15, s15\n\t"
          "vmul.f32 s14, s14, %[f]\n\tvmul.f32 s15, s15, %[f]\n\t"
          "vmul.f32 s14, s14, s12\n\tvmul.f32 s15, s15, s13\n\t"
          "vmov r3, r4, s8, s9\n\t"
          "vstmia r4!, {s14, s15}\n\t"
          "vmov s9, r4\n\t"
          "vmov r0, %[last]\n\t"
          "cmp r0, r3\n\t"
          "bne 1b"
          : "+t"(row), "+t"(to)
          : "r"(stop), [x] "t"(from), [f] "t"(factor), [last] "t"(last)
          : "r0", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "s12",
            "s13", "s14", "s15", "cc", "memory");
}
/* clang-format on */

/* How many groups from `from` on have exponents within 8 of each other, CHUNK at most, and the
 * least exponent. Eight such sums of a group, 2^27 at most each, fit 32 bits. */
static uint32_t alike(const sf_bfp *x, uint32_t from, uint32_t *least) {
    uint32_t low = x->k[from], high = low, n = 1;
    for (; n < CHUNK && from + n < x->groups; n++) {
        const uint32_t k = x->k[from + n], l = k < low ? k : low, h = k > high ? k : high;
        if (h - l > 8u) {
            break;
        }
        low = l;
        high = h;
    }
    *least = low;
    return n;
}

static inline float row_scale(const uint8_t *row, uint32_t groups) {
    float d;
    memcpy(&d, SF_ALIGNED(row + groups * GROUP_BYTES, 4), sizeof d);
    return d;
}

void sf_arm_dsp_dot_r8(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    uint32_t wide[CHUNK * GROUP_WORDS], least;
    int64_t sum[SF_TILE];
    if (x->groups == 2u) {
        const uint32_t done = dot_two(row, n, x, out);
        row += done;
        out += done;
        n -= done;
    }
    for (uint32_t from = 0, live; n != 0 && from < x->groups; from += live) {
        live = alike(x, from, &least);
        uint32_t *end = wide;
        for (uint32_t g = from; g < from + live; g++, end += GROUP_WORDS) {
            end[16] = widen(x->q + g * SF_GROUP, end);
            end[17] = 8u - (x->k[g] - least);
        }
        const bool all = live == x->groups;
        const float factor = sf_pow2((int32_t)least - SF_SHIFT_SPAN - x->s);
        const uint32_t whole = all ? n / 2u * 2u : 0u;
        if (whole != 0) {
            whole_rows(row, whole / 2u, wide, end, factor, out);
        }
        for (uint32_t r = whole; r < n; r += 2u) {
            const uint8_t *const pair[2] = {row[r], row[r + 1u < n ? r + 1u : r]};
            int32_t two[2];
            two_rows(pair, from * GROUP_BYTES, wide, end, two);
            for (uint32_t i = 0; i < 2u && r + i < n; i++) {
                if (all) {
                    out[r + i] = (float)two[i] * factor * row_scale(pair[i], x->groups);
                } else {
                    const int64_t part = (int64_t)two[i] * (int32_t)(1u << least);
                    sum[r + i] = part + (from == 0 ? 0 : sum[r + i]);
                }
            }
        }
        if (all) {
            return;
        }
    }
    for (uint32_t r = 0; r < n; r++) {
        out[r] = sf_row_sum_to_float(sum[r], x->s) * row_scale(row[r], x->groups);
    }
}

/* A pair of columns and their h, one a half. */
struct pair {
    const uint8_t *a, *b;
    uint32_t h;
};

/* Pairs of n <= SF_GROUP columns, an even number of them: zeros of h fill up. */
static void pair_up(const uint8_t *const *col, const int8_t *h, uint32_t n, struct pair *p) {
    for (const uint8_t *const *end = col + n / 2u * 2u; col != end; col += 2, h += 2, p++) {
        p->a = col[0];
        p->b = col[1];
        p->h = sf_low2((uint32_t)h[0], (uint32_t)h[1]);
    }
    if (n % 2u != 0) {
        p->a = p->b = col[0];
        p->h = sf_low2((uint32_t)h[0], 0u);
        p++;
    }
    if ((n + 1u) / 2u % 2u != 0) {
        *p = p[-1];
        p->h = 0;
    }
}

/* Sums of the halves and of the bytes at their even places, of a pair at r0, r1 or r3, r4. */
/* clang-format off */
#define PAIR(a, b, h)                                                                              \
    "pkhbt lr, " a ", " b ", lsl #16\n\t"                                                          \
    "pkhtb " b ", " b ", " a ", asr #16\n\t"                                                       \
    "smlad r7, lr, " h ", r7\n\t"                                                                  \
    "sxtb16 lr, lr\n\tsmlad r8, lr, " h ", r8\n\t"                                                \
    "smlad r9, " b ", " h ", r9\n\t"                                                               \
    "sxtb16 " b ", " b "\n\tsmlad r10, " b ", " h ", r10\n\t"
/* Two sums, of halves in a and of even bytes in b, times the scale to acc. */
#define ADD(a, b)                                                                                  \
    "sub " a ", " a ", " b "\n\t"                                                                  \
    "asr " a ", " a ", #8\n\t"                                                                     \
    "ldm r11, {r0, r1, r2, r3}\n\t"                                                               \
    "smlal r0, r1, " b ", r5\n\t"                                                                  \
    "smlal r2, r3, " a ", r5\n\t"                                                                  \
    "stmia r11!, {r0, r1, r2, r3}\n\t"

void sf_arm_dsp_axpy_r8(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim, uint32_t k, int64_t *acc) {
    struct pair pairs[SF_GROUP / 2u + 1u];
    if (n == 0) {
        return;
    }
    pair_up(col, h, n, pairs);
    const float size = sf_from_bits((n + 3u) / 4u * 2u * (uint32_t)sizeof *pairs);
    register const struct pair *p __asm("r6") = pairs;
    register uint32_t j __asm("r12") = 0;
    register float to __asm("s14") = sf_from_bits((uint32_t)(uintptr_t)acc);
    __asm volatile("1:\n\t"
          "vmov r0, %[size]\n\t"
          "mov r7, #0\n\tmov r8, #0\n\tmov r9, #0\n\tmov r10, #0\n\t"
          "add r11, r0, r6\n\t"
          "2:\n\t"
          "ldmia r6!, {r0, r1, r2, r3, r4, r5}\n\t"
          "ldr r0, [r0, r12]\n\tldr r1, [r1, r12]\n\tldr r3, [r3, r12]\n\tldr r4, [r4, r12]\n\t"
          PAIR("r0", "r1", "r2") PAIR("r3", "r4", "r5")
          "cmp r6, r11\n\t"
          "bne 2b\n\t"
          "vmov r5, %[scale]\n\t"
          "vmov r11, s14\n\t"
          ADD("r7", "r8") ADD("r9", "r10")
          "vmov s14, r11\n\t"
          "vmov r0, %[size]\n\t"
          "vmov r1, %[dim]\n\t"
          "sub r6, r6, r0\n\t"
          "add r12, r12, #4\n\t"
          "cmp r12, r1\n\t"
          "bne 1b"
          : "+r"(p), "+r"(j), "+t"(to)
          : [size] "t"(size), [dim] "t"(sf_from_bits(dim)), [scale] "t"(sf_from_bits(1u << k))
          : "r0", "r1", "r2", "r3", "r4", "r5", "r7", "r8", "r9", "r10", "r11", "lr", "cc", "memory");
}
/* clang-format on */
