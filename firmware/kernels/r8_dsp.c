/* 8-bit weights with one scale a row on a Cortex-M with DSP.
 *
 * A half of a word of weights is 256 w1 + u0, w1 a weight and u0 one that is stored 128 larger.
 * With x0 and x1 as activations, (256 w1 + u0) x1 + u0 (256 x0 - x1) = 256 (w1 x1 + u0 x0): two
 * products with one extraction. What the 128 add is known before. */
#include "arm_dsp.h"

#ifdef SF_DSP

#include <stdbool.h>

enum {
    GROUP_WORDS = 16, /* of widened activations */
    CHUNK = 8         /* groups that are widened at a time */
};

/* For every 4 elements x1, x3 and 256 x0 - x1, 256 x2 - x3; returns what 256 times the products of
 * 128 with the even ones take off. */
static int32_t widen(const int8_t *q, uint32_t *out) {
    int32_t even_sum = 0;
    for (uint32_t i = 0; i < SF_GROUP; i += 4u) {
        const uint32_t w = sf_load32((const uint8_t *)q + i), even = sf_even(w), odd = sf_odd(w);
        uint32_t both = (even << 8) & 0xFF00FF00u;
        __asm("ssub16 %0, %0, %1" : "+r"(both) : "r"(odd));
        *out++ = odd;
        *out++ = both;
        even_sum = sf_mac2(even, 0x00010001u, even_sum);
    }
    return -32768 * even_sum;
}

/* clang-format off */
#define FOUR(w, a, b)                                                                              \
    "smlad r11, " w ", " a ", r11\n\t"                                                             \
    "uxtb16 " w ", " w "\n\t"                                                                      \
    "smlad r11, " w ", " b ", r11\n\t"
#define TWELVE                                                                                     \
    "ldmia r7!, {r3, r4, r5}\n\t"                                                                  \
    "ldmia r2!, {r6, r8, r9, r10, r12, lr}\n\t"                                                    \
    FOUR("r3", "r6", "r8") FOUR("r4", "r9", "r10") FOUR("r5", "r12", "lr")
/* r11 += 256 times a group at r7, activations at r2. */
#define GROUP                                                                                      \
    TWELVE TWELVE                                                                                  \
    "ldmia r7!, {r3, r4}\n\t"                                                                      \
    "ldmia r2!, {r6, r8, r9, r10}\n\t"                                                             \
    FOUR("r3", "r6", "r8") FOUR("r4", "r9", "r10")
#define USED "r3", "r4", "r5", "r6", "r8", "r9", "r10", "r12", "lr", "cc", "memory"

/* Activations of rows of two groups; the loop over rows ends by what follows them. */
struct two_groups {
    uint32_t x[2 * GROUP_WORDS];
    uint32_t shift[2]; /* when exponents differ: left, of each sum */
    const uint32_t *again;
    const uint8_t *const *end;
    int32_t start; /* of the first sum */
};

#define LOOP(between, after)                                                                       \
    __asm volatile("1:\n\t"                                                                        \
          "ldr r7, [r0], #4\n\t"                                                                   \
          GROUP between GROUP after                                                                \
          "vmov s14, r11\n\t"                                                                      \
          "vldr s15, [r7]\n\t"                                                                     \
          "vcvt.f32.s32 s14, s14\n\t"                                                              \
          "vmul.f32 s14, s14, %[f]\n\t"                                                            \
          "vmul.f32 s14, s14, s15\n\t"                                                             \
          "vstmia r1!, {s14}\n\t"                                                                  \
          "ldm r2, {r2, r3, r11}\n\t"                                                              \
          "cmp r0, r3\n\t"                                                                         \
          "bne 1b"                                                                                 \
          : "+r"(row), "+r"(y), "+r"(x), "+r"(sum)                                                 \
          : [f] "t"(factor), [second] "t"(second)                                                  \
          : "r7", "s13", "s14", "s15", USED)

/* Rows of two groups whose sums fit 32 bits together; false leaves them to the general case. */
static bool dot_two(const uint8_t *const *rows, uint32_t n, const sf_bfp *v, float *out) {
    const uint32_t least = v->k[0] < v->k[1] ? v->k[0] : v->k[1];
    struct two_groups two; /* filled piece by piece: an initialiser would clear x */
    two.shift[0] = v->k[0] - least;
    two.shift[1] = v->k[1] - least;
    two.end = rows + n;
    if (two.shift[0] + two.shift[1] > 3u) {
        return false;
    }
    const bool same = two.shift[0] + two.shift[1] == 0;
    const int32_t a = widen(v->q, two.x), b = widen(v->q + SF_GROUP, two.x + GROUP_WORDS);
    two.again = two.x;
    two.start = same ? a + b : a;
    register const uint8_t *const *row __asm("r0") = rows;
    register float *y __asm("r1") = out;
    register const uint32_t *x __asm("r2") = two.x;
    register int32_t sum __asm("r11") = two.start;
    const float factor = sf_pow2((int32_t)least - SF_SHIFT_SPAN - v->s - 8);
    const float second = sf_from_bits((uint32_t)b);
    if (same) {
        LOOP("", "add r2, r2, #8\n\t");
    } else {
        LOOP("vmov s13, r11\n\tvmov r11, %[second]\n\t",
             "ldmia r2!, {r4, r5}\n\t"
             "vmov r3, s13\n\t"
             "lsl r3, r3, r4\n\t"
             "lsl r11, r11, r5\n\t"
             "add r11, r11, r3\n\t");
    }
    return true;
}

/* 256 times the product of a group, from `sum` on. */
static inline int32_t group(const uint8_t *weights, const uint32_t *activations, int32_t start) {
    register const uint8_t *w __asm("r7") = weights;
    register const uint32_t *x __asm("r2") = activations;
    register int32_t sum __asm("r11") = start;
    __asm(GROUP : "+r"(w), "+r"(x), "+r"(sum) : : USED);
    return sum;
}
/* clang-format on */

void sf_dot_r8(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    uint32_t wide[CHUNK * GROUP_WORDS];
    int32_t start[CHUNK];
    int64_t sum[SF_TILE];
    if (x->groups == 2u && dot_two(row, n, x, out)) {
        return;
    }
    for (uint32_t from = 0; from < x->groups; from += CHUNK) {
        const uint32_t live = x->groups - from < CHUNK ? x->groups - from : CHUNK;
        for (uint32_t g = 0; g < live; g++) {
            start[g] = widen(x->q + (from + g) * SF_GROUP, wide + g * GROUP_WORDS);
        }
        for (uint32_t r = 0; r < n; r++) {
            const uint8_t *w = row[r] + from * SF_GROUP;
            int64_t acc = from == 0 ? 0 : sum[r];
            for (uint32_t g = 0; g < live; g++, w += SF_GROUP) {
                acc += (int64_t)group(w, wide + g * GROUP_WORDS, start[g]) *
                       (int32_t)(1u << x->k[from + g]);
            }
            sum[r] = acc;
        }
    }
    for (uint32_t r = 0; r < n; r++) {
        float d;
        memcpy(&d, SF_ALIGNED(row[r] + x->groups * SF_GROUP, 4), sizeof d);
        out[r] = sf_row_sum_to_float(sum[r] >> 8, x->s) * d;
    }
}

/* A pair of columns and their h, one a half. */
struct pair {
    const uint8_t *a, *b;
    uint32_t h;
};

/* Pairs of n <= SF_GROUP columns, an even number of them: zeros of h fill up. Returns the sum of h.
 */
static int32_t pair_up(const uint8_t *const *col, const int8_t *h, uint32_t n, struct pair *p) {
    int32_t sum = 0;
    for (const uint8_t *const *end = col + n / 2u * 2u; col != end; col += 2, h += 2, p++) {
        p->a = col[0];
        p->b = col[1];
        p->h = sf_low2((uint32_t)h[0], (uint32_t)h[1]);
        sum = sf_mac2(p->h, 0x00010001u, sum);
    }
    if (n % 2u != 0) {
        p->a = p->b = col[0];
        p->h = sf_low2((uint32_t)h[0], 0u);
        sum += h[0];
        p++;
    }
    if ((n + 1u) / 2u % 2u != 0) {
        *p = p[-1];
        p->h = 0;
    }
    return sum;
}

/* Sums of the halves and of the bytes at their even places, of a pair at r0, r1 or r3, r4. */
/* clang-format off */
#define PAIR(a, b, h)                                                                              \
    "pkhbt lr, " a ", " b ", lsl #16\n\t"                                                          \
    "pkhtb " b ", " b ", " a ", asr #16\n\t"                                                       \
    "smlad r7, lr, " h ", r7\n\t"                                                                  \
    "uxtb16 lr, lr\n\tsmlad r8, lr, " h ", r8\n\t"                                                \
    "smlad r9, " b ", " h ", r9\n\t"                                                               \
    "uxtb16 " b ", " b "\n\tsmlad r10, " b ", " h ", r10\n\t"
/* Two sums, of halves in a and of even bytes in b, times the scale to acc. */
#define ADD(a, b)                                                                                  \
    "sub " a ", " a ", " b "\n\t"                                                                  \
    "sub " b ", " b ", r4\n\t"                                                                     \
    "asr " a ", " a ", #8\n\t"                                                                     \
    "ldm r11, {r0, r1, r2, r3}\n\t"                                                               \
    "smlal r0, r1, " b ", r5\n\t"                                                                  \
    "smlal r2, r3, " a ", r5\n\t"                                                                  \
    "stmia r11!, {r0, r1, r2, r3}\n\t"

void sf_axpy_r8(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim, uint32_t k,
                int64_t *acc) {
    struct pair pairs[SF_GROUP / 2u + 1u];
    if (n == 0) {
        return;
    }
    const int32_t more = 128 * pair_up(col, h, n, pairs); /* what the 128 add */
    const float size = sf_from_bits((n + 3u) / 4u * 2u * (uint32_t)sizeof *pairs);
    register float add __asm("s12") = sf_from_bits((uint32_t)more);
    register float scale __asm("s13") = sf_from_bits(1u << k);
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
          "vmov r4, r5, s12, s13\n\t"
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
          : [size] "t"(size), [dim] "t"(sf_from_bits(dim)), "t"(add), "t"(scale)
          : "r0", "r1", "r2", "r3", "r4", "r5", "r7", "r8", "r9", "r10", "r11", "lr", "cc", "memory");
}
/* clang-format on */

#endif
