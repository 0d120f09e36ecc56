/* Rows times an activation vector on a Cortex-M with DSP.
 *
 * The loops over a row are assembly: they use every register, and a sum that needs two more lives
 * in the floating-point unit. */
#include "dsp.h"

enum {
    CHUNK = 8, /* groups whose activations are widened at a time */
    WIDE = 16, /* words of a widened group */
    /* The same of a 4-bit group, with its shift and its sum. */
    SINGLE = 16 + 2
};

/* clang-format off */

/* The 16-bit products of a word of 8-bit weights with the pairs (0, 2) and (1, 3). */
#define BYTES(first, sum, w, x0, x1)                                                               \
    "sxtb16 lr, " w "\n\t" first "\n\t"                                                            \
    "sxtb16 " w ", " w ", ror #8\n\t"                                                              \
    "smlad " sum ", " w ", " x1 ", " sum "\n\t"
#define BYTES_ON(sum, w, x0, x1) BYTES("smlad " sum ", lr, " x0 ", " sum, sum, w, x0, x1)

#define SIXTEEN(w, x, first, sum)                                                                  \
    "ldmia " w "!, {r3, r4, r5, r6}\n\t"                                                           \
    "ldmia " x "!, {r8, r9, r10, r12}\n\t"                                                         \
    BYTES(first, sum, "r3", "r8", "r9") BYTES_ON(sum, "r4", "r10", "r12")                          \
    "ldmia " x "!, {r8, r9, r10, r12}\n\t"                                                         \
    BYTES_ON(sum, "r5", "r8", "r9") BYTES_ON(sum, "r6", "r10", "r12")

#define GROUP_AT(w, x, sum)                                                                        \
    SIXTEEN(w, x, "smuad " sum ", lr, r8", sum) SIXTEEN(w, x, "smlad " sum ", lr, r8, " sum, sum)

/* Sixteen products, of eight weights of each of two rows. */
#define EIGHT_Q8                                                                                   \
    "ldmia r0!, {r9, r10, r11, r12}\n\t"                                                          \
    "ldr r5, [r1], #4\n\tldr r6, [r1], #4\n\tldr r7, [r2], #4\n\tldr r8, [r2], #4\n\t"           \
    BYTES_ON("r3", "r5", "r9", "r10") BYTES_ON("r3", "r6", "r11", "r12")                           \
    BYTES_ON("r4", "r7", "r9", "r10") BYTES_ON("r4", "r8", "r11", "r12")

/* Sums of the groups of two rows, up to `end`; what lies between them stays. */
static inline void two_rows_q8(const uint8_t *row_a, const uint8_t *row_b, const uint32_t *wide,
                               int32_t *sum, const int32_t *end) {
    register const uint32_t *x __asm("r0") = wide;
    register const uint8_t *a __asm("r1") = row_a;
    register const uint8_t *b __asm("r2") = row_b;
    register float to __asm("s14") = sf_from_bits((uint32_t)(uintptr_t)sum);
    register float stop __asm("s15") = sf_from_bits((uint32_t)(uintptr_t)end);
    __asm volatile("1:\n\t"
          "mov r3, #0\n\tmov r4, #0\n\t"
          EIGHT_Q8 EIGHT_Q8 EIGHT_Q8 EIGHT_Q8
          "vmov r5, r6, s14, s15\n\t"
          "strd r3, r4, [r5], #12\n\t"
          "vmov s14, r5\n\t"
          "cmp r5, r6\n\t"
          "bne 1b"
          : "+r"(x), "+r"(a), "+r"(b), "+t"(to)
          : "t"(stop)
          : "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory");
}

/* Two halves at r10 as units of 2^-24 to r3, r4. */
#define HALVES                                                                                     \
    "vldr s15, [r10]\n\t"                                                                          \
    "vcvtb.f32.f16 s14, s15\n\t"                                                                   \
    "vcvtt.f32.f16 s15, s15\n\t"                                                                   \
    "vcvt.s32.f32 s14, s14, #24\n\t"                                                               \
    "vcvt.s32.f32 s15, s15, #24\n\t"                                                               \
    "vmov r3, r4, s14, s15\n\t"

#define USED "r3", "r4", "r5", "r6", "r8", "r9", "r10", "r12", "lr", "s14", "s15", "cc", "memory"

/* Eight products of a word of 4-bit weights. */
#define NIBBLES(first, w)                                                                          \
    "ldmia %[x]!, {r8, r9, r10, r12}\n\t"                                                          \
    "and lr, %[m], " w "\n\t" first "\n\t"                                                         \
    "and lr, %[m], " w ", lsr #4\n\tsmlad %[a], lr, r9, %[a]\n\t"                                  \
    "and lr, %[m], " w ", lsr #8\n\tsmlad %[a], lr, r10, %[a]\n\t"                                 \
    "and lr, %[m], " w ", lsr #12\n\tsmlad %[a], lr, r12, %[a]\n\t"
#define NIBBLES_ON(w) NIBBLES("smlad %[a], lr, r8, %[a]", w)

/* Adds `groups` > 0 groups whose scales are at dm. */
static inline int64_t row_q4(const uint8_t *w, const uint8_t *dm, const uint32_t *x, uint32_t groups,
                             int64_t acc) {
    register float low __asm("s12") = sf_from_bits((uint32_t)acc);
    register float high __asm("s13") = sf_from_bits((uint32_t)((uint64_t)acc >> 32));
    register float at __asm("s11") = sf_from_bits((uint32_t)(uintptr_t)dm);
    uint32_t a;
    __asm("1:\n\t"
          "ldmia %[w]!, {r3, r4, r5, r6}\n\t"
          NIBBLES("smuad %[a], lr, r8", "r3") NIBBLES_ON("r4") NIBBLES_ON("r5") NIBBLES_ON("r6")
          "ldmia %[x]!, {r8, r9}\n\t"
          "vmov r10, s11\n\t"
          HALVES
          "add r10, r10, #4\n\t"
          "vmov s11, r10\n\t"
          "vmov r5, r6, s12, s13\n\t"
          "lsl %[a], %[a], r8\n\t"
          "smlal r5, r6, %[a], r3\n\t"
          "smlal r5, r6, r9, r4\n\t"
          "vmov s12, s13, r5, r6\n\t"
          "subs %[n], %[n], #1\n\t"
          "bne 1b"
          : [a] "=&r"(a), [w] "+r"(w), [x] "+r"(x), [n] "+r"(groups), "+t"(low), "+t"(high), "+t"(at)
          : [m] "r"(0x000F000Fu)
          : USED);
    return (int64_t)((uint64_t)sf_bits(high) << 32 | sf_bits(low));
}
/* clang-format on */

/* The pairs of sf_widen in the order of nibbles: elements i and i + 16 share a byte. */
static uint32_t *widen_q4(const int8_t *q, uint32_t *out) {
    for (uint32_t i = 0; i < SF_GROUP / 2u; i += 4u) {
        const uint32_t low = sf_load32((const uint8_t *)q + i);
        const uint32_t high = sf_load32((const uint8_t *)q + i + SF_GROUP / 2u);
        *out++ = sf_even(low);
        *out++ = sf_even(high);
        *out++ = sf_odd(low);
        *out++ = sf_odd(high);
    }
    return out;
}

/* Activations for rows of two groups, and behind them what ends the loop over rows: where it goes
 * on, the last pointer's end, and the way from the next pointer to a row's output, which is as wide
 * as a pointer. */
struct two_groups {
    uint32_t x[32];
    const uint32_t *again;
    const uint8_t *const *end;
    uint32_t to_out;
};

/* Rows of two groups; x holds activations shifted left by their group's distance from the least,
 * `factor` the power of two that remains. Scales become units of 2^-32, so that a sum's low word
 * has 24 bits and both words are exact floats. False when a scale is 0.5 or more (the conversion
 * saturates: invalid operation) or a sum is too large (its saturation sets Q). */
static bool rows_of_two_q8(const uint8_t *const *rows, struct two_groups *two, float factor,
                           float *out) {
    register const uint8_t *const *row __asm("r0") = rows;
    register uint32_t x __asm("r2") = (uint32_t)(uintptr_t)two->x; /* then the flags */
    two->again = two->x;
    two->to_out = (uint32_t)(uintptr_t)out - (uint32_t)(uintptr_t)(rows + 1);
    /* clang-format off */
    __asm volatile(
          "vmrs r3, fpscr\n\t"
          "bic r3, r3, #1\n\t"
          "vmsr fpscr, r3\n\t"
          "mov r3, #0\n\t"
          "msr APSR_nzcvq, r3\n\t"
          "1:\n\t"
          "ldr r7, [r0], #4\n\t"
          GROUP_AT("r7", "r2", "r1")
          GROUP_AT("r7", "r2", "r11")
          "vldr s15, [r7]\n\t"
          "vcvtb.f32.f16 s14, s15\n\t"
          "vcvtt.f32.f16 s15, s15\n\t"
          "vcvt.s32.f32 s14, s14, #32\n\t"
          "vcvt.s32.f32 s15, s15, #32\n\t"
          "vmov r3, r4, s14, s15\n\t"
          "smull r6, r8, r1, r3\n\t"
          "smlal r6, r8, r11, r4\n\t"
          "ldm r2, {r2, r3, r4}\n\t"
          "ssat r9, #25, r8\n\t"
          "vmov s14, s15, r6, r8\n\t"
          "vcvt.f32.u32 s14, s14, #32\n\t"
          "vcvt.f32.s32 s15, s15\n\t"
          "add r4, r4, r0\n\t"
          "vadd.f32 s14, s14, s15\n\t"
          "cmp r0, r3\n\t"
          "vmul.f32 s14, s14, %[f]\n\t"
          "vstr s14, [r4]\n\t"
          "bne 1b\n\t"
          "mrs r2, APSR\n\t"
          "vmrs r3, fpscr\n\t"
          "and r3, r3, #1\n\t"
          "and r2, r2, #0x08000000\n\t"
          "orr r2, r2, r3"
          : "+r"(row), "+r"(x)
          : [f] "t"(factor)
          : "r1", "r7", "r11", USED);
    /* clang-format on */
    return x == 0;
}

/* Rows of two groups whose exponents are close; false leaves them to the general case. */
static bool dot_two_q8(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    struct two_groups two;
    const uint32_t least = x->k[0] < x->k[1] ? x->k[0] : x->k[1];
    if (x->k[0] - least > 8u || x->k[1] - least > 8u) { /* 127 << 8 is the largest half */
        return false;
    }
    uint32_t *p = sf_widen(x->q, x->k[0] - least, two.x);
    sf_widen(x->q + SF_GROUP, x->k[1] - least, p);
    two.end = row + n;
    return rows_of_two_q8(row, &two, sf_pow2((int32_t)least - SF_SHIFT_SPAN - x->s), out);
}

void sf_arm_dsp_dot_q8(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    uint32_t wide[CHUNK * WIDE];
    int32_t sum[CHUNK * SF_PAIR_SUM];
    int64_t acc[SF_TILE + 1u];
    if (x->groups == 2u && dot_two_q8(row, n, x, out)) {
        return;
    }
    for (uint32_t from = 0; from < x->groups; from += CHUNK) {
        const uint32_t live = x->groups - from < CHUNK ? x->groups - from : CHUNK;
        const uint32_t scales = x->groups * SF_GROUP + 2u * from, at = from * SF_GROUP;
        uint32_t *p = wide;
        sf_pair_shifts(x, from, live, sum);
        for (uint32_t g = from; g < from + live; g++) {
            p = sf_widen(x->q + g * SF_GROUP, 0, p);
        }
        for (uint32_t r = 0; r < n; r += 2u) {
            const uint8_t *a = row[r], *b = row[r + 1u < n ? r + 1u : r];
            two_rows_q8(a + at, b + at, wide, sum, sum + live * SF_PAIR_SUM);
            sf_pair_scaled(sum, live, a + scales, b + scales, from == 0, acc + r);
        }
    }
    for (uint32_t r = 0; r < n; r++) {
        out[r] = sf_sum_to_float(acc[r], x->s);
    }
}

void sf_arm_dsp_dot_q4(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    uint32_t wide[CHUNK * SINGLE];
    int64_t sum[SF_TILE];
    for (uint32_t from = 0; from < x->groups; from += CHUNK) {
        const bool last = x->groups - from <= CHUNK;
        const uint32_t live = last ? x->groups - from : CHUNK;
        uint32_t *p = wide;
        for (uint32_t g = from; g < from + live; g++) {
            p = widen_q4(x->q + g * SF_GROUP, p);
            *p++ = x->k[g];
            *p++ = (uint32_t)x->sum[g];
        }
        for (uint32_t r = 0; r < n; r++) {
            const uint8_t *w = row[r] + from * (SF_GROUP / 2u);
            const uint8_t *dm = row[r] + x->groups * (SF_GROUP / 2u) + 4u * from;
            const int64_t acc = row_q4(w, dm, wide, live, from == 0 ? 0 : sum[r]);
            if (last) {
                out[r] = sf_sum_to_float(acc, x->s);
            } else {
                sum[r] = acc;
            }
        }
    }
}
