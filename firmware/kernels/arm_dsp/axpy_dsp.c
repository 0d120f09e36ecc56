/* down_proj by columns on a Cortex-M with DSP: two columns a product. */
#include "dsp.h"

/* A pair of columns and their h, one a half. */
struct pair {
    const uint8_t *a, *b;
    uint32_t h;
};

/* Pairs of n <= SF_TILE columns; their number is made even with zeros of h. */
static uint32_t pair_up(const uint8_t *const *col, const int8_t *h, uint32_t n, struct pair *out) {
    struct pair *p = out;
    const uint8_t *const *end = col + n / 2u * 2u;
    for (; col != end; col += 2, h += 2, p++) {
        p->a = col[0];
        p->b = col[1];
        p->h = sf_low2((uint32_t)h[0], (uint32_t)h[1]);
    }
    if (n % 2u != 0) {
        p->a = p->b = col[0];
        p->h = sf_low2((uint32_t)h[0], 0u);
        p++;
    }
    if ((p - out) % 2 != 0) {
        *p = p[-1];
        p->h = 0;
        p++;
    }
    return (uint32_t)(p - out);
}

/* Four sums of 8-bit weights over two pairs at byte j; r0 to r5 are the pairs. */
/* clang-format off */
#define LOAD                                                                                       \
    "ldmia %[p]!, {r0, r1, r2, r3, r4, r5}\n\t"                                                    \
    "ldr r0, [r0, %[j]]\n\tldr r1, [r1, %[j]]\n\tldr r3, [r3, %[j]]\n\tldr r4, [r4, %[j]]\n\t"
#define FOUR_Q8(a, b, h)                                                                           \
    "pkhbt lr, " a ", " b ", lsl #16\n\t"                                                          \
    "pkhtb " b ", " b ", " a ", asr #16\n\t"                                                       \
    "sxtb16 " a ", lr\n\tsmlad %[c0], " a ", " h ", %[c0]\n\t"                                     \
    "sxtb16 " a ", lr, ror #8\n\tsmlad %[c1], " a ", " h ", %[c1]\n\t"                             \
    "sxtb16 " a ", " b "\n\tsmlad %[c2], " a ", " h ", %[c2]\n\t"                                  \
    "sxtb16 " a ", " b ", ror #8\n\tsmlad %[c3], " a ", " h ", %[c3]\n\t"
/* clang-format on */

void sf_arm_dsp_axpy_q8(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                        int32_t *isum) {
    struct pair pairs[SF_TILE / 2u + 1u];
    for (uint32_t from = 0; from < n; from += SF_TILE) {
        const uint32_t count =
            pair_up(col + from, h + from, n - from < SF_TILE ? n - from : SF_TILE, pairs);
        const struct pair *end = pairs + count;
        for (uint32_t j = 0; j < dim; j += 4u) {
            const struct pair *p = pairs;
            int32_t c0 = isum[j], c1 = isum[j + 1u], c2 = isum[j + 2u], c3 = isum[j + 3u];
            do {
                __asm(LOAD FOUR_Q8("r0", "r1", "r2") FOUR_Q8("r3", "r4", "r5")
                      : [p] "+r"(p), [c0] "+r"(c0), [c1] "+r"(c1), [c2] "+r"(c2), [c3] "+r"(c3)
                      : [j] "r"(j)
                      : "r0", "r1", "r2", "r3", "r4", "r5", "lr", "memory");
            } while (p != end);
            isum[j] = c0;
            isum[j + 1u] = c1;
            isum[j + 2u] = c2;
            isum[j + 3u] = c3;
        }
    }
}

/* Two lanes of 16 bits hold sums of 16 columns: |15 * 127 * 16| < 2^15. The low lane is biased, so
 * that it never borrows from the high one. */
void sf_arm_dsp_axpy_q4(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                        int32_t *isum) {
    const uint32_t mask = 0x000F000Fu;
    for (uint32_t from = 0; from < n; from += 16u) {
        const uint32_t to = n - from < 16u ? n : from + 16u;
        for (uint32_t j = 0; j < dim; j += 4u) {
            const uint32_t at = j / SF_GROUP * (SF_GROUP / 2u) + j % SF_GROUP;
            if (j % SF_GROUP >= SF_GROUP / 2u) {
                j += SF_GROUP / 2u - 4u;
                continue;
            }
            uint32_t s02 = 0x8000u, s13 = 0x8000u, t02 = 0x8000u, t13 = 0x8000u;
            for (uint32_t r = from; r < to; r++) {
                const uint32_t w = sf_load32(col[r] + at);
                const uint32_t a = (uint32_t)h[r];
                s02 += (w & mask) * a;
                t02 += ((w >> 4) & mask) * a;
                s13 += ((w >> 8) & mask) * a;
                t13 += ((w >> 12) & mask) * a;
            }
            int32_t *y = isum + j;
            y[0] += (int32_t)(s02 & 0xFFFFu) - 0x8000;
            y[1] += (int32_t)(s13 & 0xFFFFu) - 0x8000;
            y[2] += (int32_t)s02 >> 16;
            y[3] += (int32_t)s13 >> 16;
            y += SF_GROUP / 2u;
            y[0] += (int32_t)(t02 & 0xFFFFu) - 0x8000;
            y[1] += (int32_t)(t13 & 0xFFFFu) - 0x8000;
            y[2] += (int32_t)t02 >> 16;
            y[3] += (int32_t)t13 >> 16;
        }
    }
}
