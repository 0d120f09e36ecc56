/* Query heads on a Cortex-M with DSP or MVE; the same integers as plain C. SF_NAME(kernel) is the
 * tier's name of a kernel. */
#include "plain/attend.h"

/* The scores' memory holds, one after the other: dot products and scores, for each position those
 * of the heads that are computed together; coefficients, for each two positions two of each head.
 */
typedef uint32_t __attribute__((may_alias)) word;
typedef int16_t __attribute__((may_alias)) coefficient;
#define INLINE static inline __attribute__((always_inline))

/* x >> shift, 0 for shifts from 32 to 255. */
INLINE uint32_t down(uint32_t x, uint32_t shift) {
    uint32_t r;
    __asm("lsr %0, %1, %2" : "=r"(r) : "r"(x), "r"(shift));
    return r;
}
/* The same to nearest, halves up. */
INLINE uint32_t nearest(uint32_t x, uint32_t shift) {
    uint32_t r;
    __asm("lsrs %0, %1, %2\n\tadc %0, %0, #0" : "=r"(r) : "r"(x), "r"(shift) : "cc");
    return r;
}
/* The upper half of a product. */
INLINE int32_t upper(int32_t x, uint32_t y) {
    int32_t r;
    __asm("smmul %0, %1, %2" : "=r"(r) : "r"(x), "r"(y));
    return r;
}
/* At most SF_X_LIMIT; for x < 2^31. */
INLINE uint32_t limited(uint32_t x) {
    __asm("usat %0, #17, %0" : "+r"(x));
    return x;
}

#ifdef SF_MVE

enum { AT_ONCE = 1 };

static void prepare(int16_t *q, uint32_t n) {
    (void)q;
    (void)n;
}

/* sum[t] = q . k[t] for n positions. */
static void dots(const int16_t *q, const int8_t *k, uint32_t stride, uint32_t n, uint32_t dim,
                 uint32_t heads, int32_t *sum) {
    (void)heads;
    for (uint32_t t = 0; t < n; t++) {
        int32_t s = 0;
        for (uint32_t i = 0; i < dim; i += 8u) {
            const mve_pred16_t p = vctp16q(dim - i);
            s = vmladavaq_p_s16(s, vldrbq_z_s16(k + i, p), vldrhq_z_s16(q + i, p), p);
        }
        sum[t] = s;
        k += stride;
    }
}

/* acc[i] = the sum of c[t] * v[t][i] over n positions. */
static void mix(const int8_t *v, uint32_t stride, const coefficient *c, uint32_t n, uint32_t dim,
                uint32_t heads, int32_t *acc) {
    (void)heads;
    for (uint32_t i = 0; i < dim; i += 8u) {
        const mve_pred16_t p = vctp32q(dim - i), q = dim - i > 4u ? vctp32q(dim - i - 4u) : 0;
        int32x4_t a = vdupq_n_s32(0), b = a;
        const int8_t *w = v + i;
        for (uint32_t t = 0; t < n; t++) {
            a = vmlaq_n_s32(a, vldrbq_z_s32(w, p), c[t]);
            b = vmlaq_n_s32(b, vldrbq_z_s32(w + 4, q), c[t]);
            w += stride;
        }
        vstrwq_p_s32(acc + i, a, p);
        vstrwq_p_s32(acc + i + 4, b, q);
    }
}

#else

enum { AT_ONCE = 2 };

/* Groups of 4 as the pairs (0, 2) and (1, 3). */
static void prepare(int16_t *q, uint32_t n) {
    for (uint32_t i = 0; i < n; i += 4u) {
        const int16_t t = q[i + 1u];
        q[i + 1u] = q[i + 2u];
        q[i + 2u] = t;
    }
}

/* sum[t][h] = q[h] . k[t] for n positions: 4 elements of q stay in registers for all of them. */
INLINE void dots_by_4(const int16_t *q, const int8_t *k, uint32_t stride, uint32_t n, uint32_t dim,
                      uint32_t from, uint32_t heads, int32_t *sum) {
    for (uint32_t i = from; i < dim; i += 4u) {
        const word *two = (const word *)(const void *)(q + i);
        const uint32_t a0 = two[0], a1 = two[1];
        two += (heads - 1u) * dim / 2u;
        const uint32_t b0 = two[0], b1 = two[1];
        const int8_t *w = k + i;
        int32_t *to = sum, *const end = sum + n * heads;
        for (; to != end; to += heads) {
            const uint32_t x = sf_load32((const uint8_t *)w);
            const uint32_t even = sf_even(x), odd = sf_odd(x);
            int32_t a = i == 0 ? sf_mul2(even, a0) : sf_mac2(even, a0, to[0]);
            to[0] = sf_mac2(odd, a1, a);
            if (heads == 2u) {
                a = i == 0 ? sf_mul2(even, b0) : sf_mac2(even, b0, to[1]);
                to[1] = sf_mac2(odd, b1, a);
            }
            w += stride;
        }
    }
}

/* The first 8 elements of two heads: q[0] in r0 to r3, q[1] in r4 to r7. */
static void dots_of_8(const int16_t *q, const int8_t *k, uint32_t stride, uint32_t n, uint32_t dim,
                      int32_t *sum) {
    register const int8_t *w __asm("r8") = k;
    register int32_t *to __asm("r9") = sum;
    register const int16_t *second __asm("r10") = q + dim;
    register const int16_t *first __asm("r11") = q;
    /* clang-format off */
    __asm volatile("ldm r11, {r0, r1, r2, r3}\n\t"
          "ldm r10, {r4, r5, r6, r7}\n\t"
          "1:\n\t"
          "ldr r10, [r8]\n\t"
          "sxtb16 r11, r10\n\t"
          "sxtb16 r10, r10, ror #8\n\t"
          "smuad r12, r11, r0\n\t"
          "smuad lr, r11, r4\n\t"
          "smlad r12, r10, r1, r12\n\t"
          "smlad lr, r10, r5, lr\n\t"
          "ldr r10, [r8, #4]\n\t"
          "sxtb16 r11, r10\n\t"
          "sxtb16 r10, r10, ror #8\n\t"
          "smlad r12, r11, r2, r12\n\t"
          "smlad lr, r11, r6, lr\n\t"
          "vmov r11, %[step]\n\t"
          "smlad r12, r10, r3, r12\n\t"
          "smlad lr, r10, r7, lr\n\t"
          "vmov r10, %[end]\n\t"
          "add r8, r8, r11\n\t"
          "strd r12, lr, [r9], #8\n\t"
          "cmp r9, r10\n\t"
          "bne 1b"
          : "+r"(w), "+r"(to), "+r"(second), "+r"(first)
          : [step] "t"(sf_from_bits(stride)), [end] "t"(sf_from_bits((uint32_t)(uintptr_t)(sum + 2u * n)))
          : "r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r12", "lr", "cc", "memory");
    /* clang-format on */
}

INLINE void dots(const int16_t *q, const int8_t *k, uint32_t stride, uint32_t n, uint32_t dim,
                 uint32_t heads, int32_t *sum) {
    const uint32_t done = heads == 2u && dim >= 8u ? 8u : 0u;
    if (done != 0) {
        dots_of_8(q, k, stride, n, dim, sum);
    }
    dots_by_4(q, k, stride, n, dim, done, heads, sum);
}

/* Four sums a head += two coefficients a head times values at x and y. */
INLINE void mix_two(const int8_t *x, const int8_t *y, const word *c, uint32_t heads, int32_t *a) {
    const uint32_t v = sf_load32((const uint8_t *)x), w = sf_load32((const uint8_t *)y);
    const uint32_t low = sf_low2(v, w), high = sf_high2(v, w);
    const uint32_t e0 = sf_even(low), e1 = sf_odd(low), e2 = sf_even(high), e3 = sf_odd(high);
    for (uint32_t h = 0; h < heads; h++, a += 4) {
        a[0] = sf_mac2(e0, c[h], a[0]);
        a[1] = sf_mac2(e1, c[h], a[1]);
        a[2] = sf_mac2(e2, c[h], a[2]);
        a[3] = sf_mac2(e3, c[h], a[3]);
    }
}

/* The same of two heads for n > 0 pairs of positions, from a = 0 on; eight sums leave no register
 * for the stride and the end. */
INLINE void mix_pairs(const int8_t *v, uint32_t stride, const word *c, uint32_t n, int32_t *a) {
    register const int8_t *w __asm("r8") = v;
    register const word *pair __asm("r9") = c;
    const float step = sf_from_bits(stride), end = sf_from_bits((uint32_t)(uintptr_t)(c + 2u * n));
    const float to = sf_from_bits((uint32_t)(uintptr_t)a);
    /* clang-format off */
#define ZERO(r) "mov " r ", #0\n\t"
#define FOUR(e, c, a, b) "smlad " a ", r10, " c ", " a "\n\tsmlad " b ", " e ", " c ", " b "\n\t"
    __asm volatile(ZERO("r0") ZERO("r1") ZERO("r2") ZERO("r3") ZERO("r4") ZERO("r5") ZERO("r6") ZERO("r7")
          "1:\n\t"
          "vmov r12, %[step]\n\t"
          "ldr r10, [r8]\n\t"
          "ldr r11, [r8, r12]\n\t"
          "add r8, r8, r12, lsl #1\n\t"
          "pkhbt lr, r10, r11, lsl #16\n\t"
          "pkhtb r11, r11, r10, asr #16\n\t"
          "sxtb16 r10, lr\n\t"
          "sxtb16 lr, lr, ror #8\n\t"
          "ldr r12, [r9]\n\t"
          FOUR("lr", "r12", "r0", "r1")
          "ldr r12, [r9, #4]\n\t"
          FOUR("lr", "r12", "r4", "r5")
          "sxtb16 r10, r11\n\t"
          "sxtb16 r11, r11, ror #8\n\t"
          FOUR("r11", "r12", "r6", "r7")
          "ldr r12, [r9], #8\n\t"
          FOUR("r11", "r12", "r2", "r3")
          "vmov r12, %[end]\n\t"
          "cmp r9, r12\n\t"
          "bne 1b\n\t"
          "vmov r8, %[to]\n\t"
          "stmia r8, {r0, r1, r2, r3, r4, r5, r6, r7}"
          : "+r"(w), "+r"(pair)
          : [to] "t"(to), [step] "t"(step), [end] "t"(end)
          : "r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r10", "r11", "r12", "lr", "cc",
            "memory");
#undef ZERO
#undef FOUR
    /* clang-format on */
}

/* acc[h][i] = the sum of c[t][h] * v[t][i] over n positions. */
INLINE void mix(const int8_t *v, uint32_t stride, const coefficient *c, uint32_t n, uint32_t dim,
                uint32_t heads, int32_t *acc) {
    for (uint32_t i = 0; i < dim; i += 4u) {
        int32_t a[8];
        const word *pair = (const word *)(const void *)c, *end = pair + n / 2u * heads;
        const int8_t *w = v + i;
        if (heads == 2u && n > 1u) {
            mix_pairs(w, stride, pair, n / 2u, a);
            w += n / 2u * 2u * stride;
            pair = end;
        } else {
            for (uint32_t h = 0; h < 4u * heads; h++) {
                a[h] = 0;
            }
        }
        for (; pair != end; pair += heads) {
            mix_two(w, w + stride, pair, heads, a);
            w += 2u * stride;
        }
        if (n % 2u != 0) {
            mix_two(w, w, pair, heads, a); /* the second coefficients are 0 */
        }
        for (uint32_t h = 0; h < heads; h++) {
            memcpy(acc + h * dim + i, a + 4u * h, 4u * sizeof *a);
        }
    }
}

#endif

/* What turns scores into coefficients. */
struct weights {
    uint32_t shift; /* of a coefficient whose value has exponent 0 */
    uint32_t left[2], total[2];
    int32_t best[2]; /* with the headroom of weights */
};

/* The coefficients of two positions, in place. */
INLINE void weigh_two(struct weights *w, const int8_t *e, uint32_t step, uint32_t heads,
                      bool shifted, const int32_t *score, word *c) {
    const uint32_t first = w->shift + (uint32_t)e[0], second = w->shift + (uint32_t)e[step];
    for (uint32_t h = 0; h < heads; h++) {
        uint32_t x = limited((uint32_t)w->best[h] - (uint32_t)score[h]);
        uint32_t y = limited((uint32_t)w->best[h] - (uint32_t)score[heads + h]);
        if (shifted) {
            x = limited(x << w->left[h]);
            y = limited(y << w->left[h]);
        }
        x = down(sf_exp2_part(x), x >> 12);
        y = down(sf_exp2_part(y), y >> 12);
        w->total[h] += x + y;
        c[h] = nearest(x, first) | nearest(y, second) << 16;
    }
}

/* Coefficients of n positions in the place of their scores. */
INLINE void weigh(struct weights *whole, const int8_t *e, uint32_t estride, uint32_t n,
                  uint32_t heads, bool shifted, int32_t *score) {
    struct weights w = *whole;
    word *c = (word *)(void *)score;
    const int32_t *from = score, *const end = score + n / 2u * 2u * heads;
    for (; from != end; from += 2u * heads, c += heads) {
        weigh_two(&w, e, estride, heads, shifted, from, c);
        e += 2u * estride;
    }
    if (n % 2u != 0) {
        weigh_two(&w, e, 0, heads, shifted, from, c);
    }
    *whole = w;
}

static void scores_of_1(const int8_t *e, uint32_t estride, int32_t least, const uint32_t *factor,
                        uint32_t n, int32_t *score, int32_t *best) {
    best[0] = INT32_MIN;
    for (uint32_t t = 0; t < n; t++) {
        score[t] = upper(score[t], down(factor[0], (uint32_t)(e[t * estride] - least)));
        best[0] = score[t] > best[0] ? score[t] : best[0];
    }
}

#ifdef SF_DSP

/* The exponent of a value at r2, with the shift of coefficients, to r7; r2 moves on. */
#define EXPONENT                                                                                   \
    "vmov r6, r8, s14, s15\n\t"                                                                    \
    "ldrsb r7, [r2]\n\t"                                                                           \
    "add r2, r2, r6\n\tadd r7, r7, r8\n\t"
/* A score becomes a coefficient, its weight is added to the total. */
#define WEIGHT(x, best, total)                                                                     \
    "sub " x ", " best ", " x "\n\t"                                                               \
    "usat " x ", #17, " x "\n\t"                                                                   \
    "ubfx r8, " x ", #7, #5\n\t"                                                                   \
    "ldr r8, [r3, r8, lsl #2]\n\t"                                                                 \
    "lsl r9, " x ", #4\n\tand r9, r9, #0x7F0\n\t"                                                  \
    "smlabb r9, r8, r9, r8\n\t"                                                                    \
    "lsr " x ", " x ", #12\n\tlsr r9, r9, " x "\n\t"                                               \
    "add " total ", " total ", r9\n\t"                                                             \
    "lsrs " x ", r9, r7\n\tadc " x ", " x ", #0\n\t"

/* weigh for n >= 2 positions of two heads whose differences are not shifted. */
static void weigh_2(struct weights *w, const int8_t *e, uint32_t estride, uint32_t n,
                    int32_t *score) {
    register const int32_t *from __asm("r0") = score;
    register word *to __asm("r1") = (word *)(void *)score;
    register const int8_t *at __asm("r2") = e;
    register const uint32_t *steps __asm("r3") = sf_exp2_steps;
    register uint32_t total0 __asm("r10") = w->total[0];
    register uint32_t total1 __asm("r11") = w->total[1];
    register int32_t best0 __asm("r12") = w->best[0];
    register int32_t best1 __asm("lr") = w->best[1];
    register float stride __asm("s14") = sf_from_bits(estride);
    register float shift __asm("s15") = sf_from_bits(w->shift);
    const float end = sf_from_bits((uint32_t)(uintptr_t)(score + n / 2u * 4u));
    /* clang-format off */
    __asm volatile("1:\n\t"
          "ldrd r4, r5, [r0], #8\n\t"
          EXPONENT
          WEIGHT("r4", "r12", "r10") WEIGHT("r5", "lr", "r11")
          EXPONENT
          "ldr r6, [r0], #4\n\t"
          WEIGHT("r6", "r12", "r10")
          "orr r4, r4, r6, lsl #16\n\t"
          "ldr r6, [r0], #4\n\t"
          WEIGHT("r6", "lr", "r11")
          "orr r5, r5, r6, lsl #16\n\t"
          "strd r4, r5, [r1], #8\n\t"
          "vmov r6, %[end]\n\t"
          "cmp r0, r6\n\t"
          "bne 1b"
          : "+r"(from), "+r"(to), "+r"(at), "+r"(total0), "+r"(total1)
          : "r"(steps), "r"(best0), "r"(best1), "t"(stride), "t"(shift), [end] "t"(end)
          : "r4", "r5", "r6", "r7", "r8", "r9", "cc", "memory");
    /* clang-format on */
    w->total[0] = total0;
    w->total[1] = total1;
    if (n % 2u != 0) {
        weigh_two(w, at, 0, 2, false, from, to);
    }
}

/* Scores of one position: of the sums s0 and s1, with the exponent in r8. */
#define SCORES(s0, s1)                                                                             \
    "sub r8, r8, r3\n\t"                                                                           \
    "lsr r9, r10, r8\n\tlsr r8, r11, r8\n\t"                                                       \
    "smmul " s0 ", " s0 ", r9\n\tsmmul " s1 ", " s1 ", r8\n\t"
#define LARGER(best, s) "cmp " s ", " best "\n\tit gt\n\tmovgt " best ", " s "\n\t"

/* Sums of two heads become scores; the largest of each. New largest ones are rare. */
static void scores_of_2(const int8_t *e, uint32_t estride, int32_t least, const uint32_t *factor,
                        uint32_t n, int32_t *score, int32_t *best) {
    register int32_t *s __asm("r0") = score;
    register const int8_t *at __asm("r1") = e;
    register uint32_t stride __asm("r2") = estride;
    register int32_t base __asm("r3") = least;
    register uint32_t f0 __asm("r10") = factor[0];
    register uint32_t f1 __asm("r11") = factor[1];
    register int32_t b0 __asm("r12") = INT32_MIN;
    register int32_t b1 __asm("lr") = INT32_MIN;
    const float end = sf_from_bits((uint32_t)(uintptr_t)(score + n / 2u * 4u));
    if (n >= 2u) {
        /* clang-format off */
        __asm volatile("1:\n\t"
              "ldm r0, {r4, r5, r6, r7}\n\t"
              "ldrsb r8, [r1]\n\t"
              SCORES("r4", "r5")
              "ldrsb r8, [r1, r2]\n\t"
              SCORES("r6", "r7")
              "add r1, r1, r2, lsl #1\n\t"
              "stmia r0!, {r4, r5, r6, r7}\n\t"
              "cmp r4, r12\n\t"
              "ittt le\n\t"
              "cmple r5, lr\n\tcmple r6, r12\n\tcmple r7, lr\n\t"
              "bgt 3f\n\t"
              "2:\n\t"
              "vmov r8, %[end]\n\t"
              "cmp r0, r8\n\t"
              "bne 1b\n\t"
              "b 4f\n\t"
              "3:\n\t"
              LARGER("r12", "r4") LARGER("lr", "r5") LARGER("r12", "r6") LARGER("lr", "r7")
              "b 2b\n\t"
              "4:"
              : "+r"(s), "+r"(at), "+r"(b0), "+r"(b1)
              : "r"(stride), "r"(base), "r"(f0), "r"(f1), [end] "t"(end)
              : "r4", "r5", "r6", "r7", "r8", "r9", "cc", "memory");
        /* clang-format on */
    }
    best[0] = b0;
    best[1] = b1;
    if (n % 2u != 0) {
        for (uint32_t h = 0; h < 2u; h++) {
            s[h] = upper(s[h], down(factor[h], (uint32_t)(*at - least)));
            best[h] = s[h] > best[h] ? s[h] : best[h];
        }
    }
}
#endif

INLINE void scores(const int8_t *e, uint32_t estride, int32_t least, const uint32_t *factor,
                   uint32_t n, uint32_t heads, int32_t *score, int32_t *best) {
#ifdef SF_DSP
    if (heads == 2u) {
        scores_of_2(e, estride, least, factor, n, score, best);
        return;
    }
#endif
    (void)heads;
    scores_of_1(e, estride, least, factor, n, score, best);
}

/* `heads` at most AT_ONCE. */
INLINE void together(const sf_attn *a, uint32_t heads, const float *q, int16_t *q16, int32_t *score,
                     int32_t *acc, float *out) {
    const uint32_t n = a->last - a->first + 1u;
    const uint32_t dim = a->head_dim, stride = a->stride, estride = a->estride;
    const uint32_t headroom = sf_headroom(n), shift = sf_coefficient_shift(headroom);
    uint32_t factor[2];
    struct weights w = {.shift = shift - (uint32_t)a->v_least};
    for (uint32_t h = 0; h < heads; h++) {
        const sf_score_unit unit = sf_unit_of(a, sf_quantize16(q + h * dim, dim, q16 + h * dim));
        prepare(q16 + h * dim, dim);
        factor[h] = unit.factor;
        w.left[h] = unit.left;
    }
    dots(q16, a->k + a->first * stride, stride, n, dim, heads, score);
    const int8_t *e = a->ks + a->first * estride;
    scores(e, estride, a->k_least, factor, n, heads, score, w.best);
    for (uint32_t h = 0; h < heads; h++) {
        if (n % 2u != 0) { /* there may be no room behind an even n */
            score[n * heads + h] = w.best[h] - 0x40000000; /* weighs nothing: makes n even */
        }
        w.best[h] += (int32_t)(headroom << 12 >> w.left[h]);
    }
    e = a->vs + a->first * estride;
    if ((w.left[0] | w.left[heads - 1u]) != 0) {
        weigh(&w, e, estride, n, heads, true, score);
#ifdef SF_DSP
    } else if (heads == 2u && n >= 2u) {
        weigh_2(&w, e, estride, n, score);
#endif
    } else {
        weigh(&w, e, estride, n, heads, false, score);
    }
    mix(a->v + a->first * stride, stride, (const coefficient *)(const void *)score, n, dim, heads,
        acc);
    for (uint32_t h = 0; h < heads; h++) {
        const float unit = sf_mixed_unit(a, shift, w.total[h]);
        for (uint32_t i = h * dim; i < (h + 1u) * dim; i++) {
            out[i] = (float)acc[i] * unit;
        }
    }
}

void SF_NAME(attention)(const sf_attn *a, uint32_t heads, const float *q, int16_t *q16,
                        int32_t *score, int32_t *acc, float *out) {
    const uint32_t dim = a->head_dim;
    for (; heads >= AT_ONCE; heads -= AT_ONCE, q += AT_ONCE * dim, out += AT_ONCE * dim) {
        together(a, AT_ONCE, q, q16, score, acc, out);
    }
    if (heads != 0) {
        together(a, 1, q, q16, score, acc, out);
    }
}
