/* Symmetric 4-bit weights on a Cortex-M with DSP: two rows a step, which share the loads of their
 * activations, and columns in pairs, which share the loads of their sums. The loops are assembly,
 * because they use every register. */
#include "dsp.h"

enum {
    CHUNK = 8,     /* groups whose activations are widened at a time */
    WIDE = 16 + 1, /* words of a widened group: what its sums begin with, then pairs of halves */
    BATCH = 16     /* columns whose sums are made together */
};

/* clang-format off */
/* Eight products of each of two rows; the mask's immediate form cannot be shifted, so r5 has it. */
#define NIBBLES(w, sum)                                                                            \
    "and r6, r5, " w "\n\tsmlad " sum ", r6, r9, " sum "\n\t"                                      \
    "and r6, r5, " w ", lsr #4\n\tsmlad " sum ", r6, r10, " sum "\n\t"                             \
    "and r6, r5, " w ", lsr #8\n\tsmlad " sum ", r6, r11, " sum "\n\t"                             \
    "and r6, r5, " w ", lsr #12\n\tsmlad " sum ", r6, r12, " sum "\n\t"
#define EIGHT                                                                                      \
    "ldmia r0!, {r9, r10, r11, r12}\n\t"                                                           \
    "ldr r7, [r1], #4\n\tldr r8, [r2], #4\n\t"                                                     \
    NIBBLES("r7", "r3") NIBBLES("r8", "r4")

/* Sums of the groups of two rows, up to `end`; what lies between them stays. */
static inline void two_rows(const uint8_t *row_a, const uint8_t *row_b, const uint32_t *wide,
                            int32_t *sum, const int32_t *end) {
    register const uint32_t *x __asm("r0") = wide;
    register const uint8_t *a __asm("r1") = row_a;
    register const uint8_t *b __asm("r2") = row_b;
    register uint32_t mask __asm("r5") = 0x000F000Fu;
    register int32_t *to __asm("lr") = sum;
    __asm volatile("1:\n\t"
          "ldr r3, [r0], #4\n\t"
          "mov r4, r3\n\t"
          EIGHT EIGHT EIGHT EIGHT
          "strd r3, r4, [lr], #12\n\t"
          "vmov r6, %[end]\n\t"
          "cmp lr, r6\n\t"
          "bne 1b"
          : "+r"(x), "+r"(a), "+r"(b), "+r"(to)
          : "r"(mask), [end] "t"(sf_from_bits((uint32_t)(uintptr_t)end))
          : "r3", "r4", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "cc", "memory");
}
/* clang-format on */

/* A group as pairs of halves in the order of the nibbles: elements i and i + 16 share a byte. In
 * front minus eight times the sum, which the nibbles have too much. */
static void widen(const sf_bfp *x, uint32_t g, uint32_t *out) {
    const uint8_t *q = (const uint8_t *)x->q + g * SF_GROUP;
    *out++ = (uint32_t)(-8 * (x->sum[g] >> x->k[g]));
    for (uint32_t i = 0; i < SF_GROUP / 2u; i += 4u) {
        const uint32_t low = sf_load32(q + i), high = sf_load32(q + i + SF_GROUP / 2u);
        *out++ = sf_even(low);
        *out++ = sf_even(high);
        *out++ = sf_odd(low);
        *out++ = sf_odd(high);
    }
}

/* clang-format off */
/* Pairs of rows of one group: a sum has 16 bits and a scale 11, so their product is rounded but
 * once. A zero is added because the sum of integers has no -0. */
static void pairs_of_one(const uint8_t *const *rows, const uint8_t *const *end,
                         const uint32_t *wide, float unit, float *out) {
    register const uint32_t *x __asm("r0") = wide;
    register uint32_t mask __asm("r5") = 0x000F000Fu;
    register const uint8_t *const *row __asm("lr") = rows;
    register float to __asm("s11") = sf_from_bits((uint32_t)(uintptr_t)out);
    __asm volatile("1:\n\t"
          "ldmia lr!, {r1, r2}\n\t"
          "ldr r3, [r0], #4\n\t"
          "mov r4, r3\n\t"
          EIGHT EIGHT EIGHT EIGHT
          "ldrh r7, [r1]\n\tldrh r8, [r2]\n\t"
          "vmov s14, s15, r3, r4\n\t"
          "vmov s12, s13, r7, r8\n\t"
          "vcvtb.f32.f16 s12, s12\n\tvcvtb.f32.f16 s13, s13\n\t"
          "vcvt.f32.s32 s14, s14\n\tvcvt.f32.s32 s15, s15\n\t"
          "vmul.f32 s14, s14, s12\n\tvmul.f32 s15, s15, s13\n\t"
          "vmul.f32 s14, s14, %[unit]\n\tvmul.f32 s15, s15, %[unit]\n\t"
          "vadd.f32 s14, s14, %[zero]\n\tvadd.f32 s15, s15, %[zero]\n\t"
          "vmov r6, s11\n\t"
          "vstmia r6!, {s14, s15}\n\t"
          "vmov s11, r6\n\t"
          "sub r0, r0, #68\n\t" /* the widened group */
          "vmov r6, %[end]\n\t"
          "cmp lr, r6\n\t"
          "bne 1b"
          : "+r"(x), "+r"(row), "+t"(to)
          : "r"(mask), [end] "t"(sf_from_bits((uint32_t)(uintptr_t)end)), [unit] "t"(unit), [zero] "t"(0.0f)
          : "r1", "r2", "r3", "r4", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "s12", "s13", "s14",
            "s15", "cc", "memory");
}
/* clang-format on */

static void one_group(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    const float unit = sf_pow2(x->k[0] - SF_SHIFT_SPAN - x->s);
    const uint32_t even = n / 2u * 2u;
    uint32_t wide[WIDE];
    widen(x, 0, wide);
    if (even > 0) {
        pairs_of_one(row, row + even, wide, unit, out);
    }
    if (even < n) {
        const uint8_t *const twice[2] = {row[even], row[even]};
        float both[2];
        pairs_of_one(twice, twice + 2, wide, unit, both);
        out[even] = both[0];
    }
}

void sf_arm_dsp_dot_s4(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    uint32_t wide[CHUNK * WIDE];
    int32_t sum[CHUNK * SF_PAIR_SUM];
    int64_t acc[SF_TILE + 1u];
    if (x->groups == 1u) {
        one_group(row, n, x, out);
        return;
    }
    for (uint32_t from = 0; from < x->groups; from += CHUNK) {
        const uint32_t live = x->groups - from < CHUNK ? x->groups - from : CHUNK;
        const uint32_t scales = x->groups * (SF_GROUP / 2u) + 2u * from;
        sf_pair_shifts(x, from, live, sum);
        for (uint32_t g = 0; g < live; g++) {
            widen(x, from + g, wide + g * WIDE);
        }
        for (uint32_t r = 0; r < n; r += 2u) {
            const uint8_t *a = row[r], *b = row[r + 1u < n ? r + 1u : r];
            const uint32_t at = from * (SF_GROUP / 2u);
            two_rows(a + at, b + at, wide, sum, sum + live * SF_PAIR_SUM);
            sf_pair_scaled(sum, live, a + scales, b + scales, from == 0, acc + r);
        }
    }
    for (uint32_t r = 0; r < n; r++) {
        out[r] = sf_sum_to_float(acc[r], x->s);
    }
}

/* Two columns, and what a group of each is multiplied by, as two halves. */
struct pair {
    const uint8_t *a, *b;
    uint32_t t;
};

/* clang-format off */
/* Eight outputs of a pair; the products of every other nibble are 16 times too large. */
#define HALVES(w, c0, c1, c2, c3)                                                                  \
    "and r10, " w ", #0x000F000F\n\tsmlad " c0 ", r10, r12, " c0 "\n\t"                            \
    "and r10, " w ", #0x00F000F0\n\tsmlad " c1 ", r10, r12, " c1 "\n\t"                            \
    "lsr " w ", " w ", #8\n\t"                                                                     \
    "and r10, " w ", #0x000F000F\n\tsmlad " c2 ", r10, r12, " c2 "\n\t"                            \
    "and r10, " w ", #0x00F000F0\n\tsmlad " c3 ", r10, r12, " c3 "\n\t"
#define PAIR                                                                                       \
    "ldmia r0!, {r10, r11, r12}\n\t"                                                               \
    "ldr r10, [r10, r1]\n\tldr r11, [r11, r1]\n\t"                                                 \
    "pkhbt lr, r10, r11, lsl #16\n\t"                                                              \
    "pkhtb r11, r11, r10, asr #16\n\t"                                                             \
    HALVES("lr", "r2", "r6", "r3", "r7") HALVES("r11", "r4", "r8", "r5", "r9")

/* y[0..3] and y[16..19] += outputs of all pairs at byte `at` of their columns, less `less`. */
static inline void eight_outputs(const struct pair *pairs, const struct pair *end, uint32_t at,
                                 int32_t less, int32_t *sums) {
    register const struct pair *p __asm("r0") = pairs;
    register uint32_t j __asm("r1") = at;
    register int32_t from __asm("r2") = -less;
    __asm volatile(
          "mov r3, r2\n\tmov r4, r2\n\tmov r5, r2\n\t"
          "lsl r6, r2, #4\n\tmov r7, r6\n\tmov r8, r6\n\tmov r9, r6\n\t"
          "1:\n\t"
          PAIR
          "vmov r10, %[end]\n\t"
          "cmp r0, r10\n\t"
          "bne 1b\n\t"
          "vmov r0, %[y]\n\t"
          "ldm r0, {r10, r11, r12, lr}\n\t"
          "add r2, r2, r10\n\tadd r3, r3, r11\n\tadd r4, r4, r12\n\tadd r5, r5, lr\n\t"
          "stm r0, {r2, r3, r4, r5}\n\t"
          "add r0, r0, #64\n\t"
          "ldm r0, {r10, r11, r12, lr}\n\t"
          "add r6, r10, r6, asr #4\n\tadd r7, r11, r7, asr #4\n\t"
          "add r8, r12, r8, asr #4\n\tadd r9, lr, r9, asr #4\n\t"
          "stm r0, {r6, r7, r8, r9}"
          : "+r"(p), "+r"(from)
          : "r"(j), [end] "t"(sf_from_bits((uint32_t)(uintptr_t)end)),
            [y] "t"(sf_from_bits((uint32_t)(uintptr_t)sums))
          : "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory");
}

/* Factors of all pairs, of the activations a and the scales `at` bytes from their columns, by one
 * product each: a scale of the matrix is below 2^(shift - 4), shift at most 32. Returns their sum. */
static inline int32_t factors(struct pair *pairs, const struct pair *end, const int32_t *a,
                              uint32_t at, uint32_t shift) {
    register struct pair *p __asm("r0") = pairs;
    register const int32_t *x __asm("r1") = a;
    int32_t sum = 0;
    __asm volatile("1:\n\t"
          "ldmia r0!, {r5, r6}\n\t"
          "ldrh r5, [r5, %[at]]\n\tldrh r6, [r6, %[at]]\n\t"
          "vmov s14, s15, r5, r6\n\t"
          "ldmia r1!, {r8, r9}\n\t"
          "vcvtb.f32.f16 s14, s14\n\tvcvtb.f32.f16 s15, s15\n\t"
          "vcvt.s32.f32 s14, s14, #24\n\tvcvt.s32.f32 s15, s15, #24\n\t"
          "vmov r5, r6, s14, s15\n\t"
          "lsl r5, r5, %[up]\n\tlsl r6, r6, %[up]\n\t"
          "smmulr r5, r8, r5\n\tsmmulr r6, r9, r6\n\t"
          "add %[sum], %[sum], r5\n\tadd %[sum], %[sum], r6\n\t"
          "pkhbt r5, r5, r6, lsl #16\n\t"
          "str r5, [r0], #4\n\t"
          "cmp r0, %[end]\n\t"
          "bne 1b"
          : "+r"(p), "+r"(x), [sum] "+r"(sum)
          : [at] "r"(at), [up] "r"(32u - shift), [end] "r"(end)
          : "r5", "r6", "r8", "r9", "s14", "s15", "cc", "memory");
    return sum;
}
/* clang-format on */

/* The same for any shift. */
static int32_t wide_factors(struct pair *pairs, const struct pair *end, const int32_t *a,
                            uint32_t at, uint32_t shift) {
    int32_t sum = 0;
    for (struct pair *p = pairs; p != end; p++, a += 2) {
        const int32_t t = sf_s4_factor(a[0], sf_load16(p->a + at), shift);
        const int32_t u = sf_s4_factor(a[1], sf_load16(p->b + at), shift);
        p->t = sf_low2((uint32_t)t, (uint32_t)u);
        sum += t + u;
    }
    return sum;
}

void sf_arm_dsp_axpy_s4(const uint8_t *const *col, const int32_t *a, uint32_t n, uint32_t dim,
                        uint32_t shift, int32_t *acc) {
    struct pair pairs[BATCH / 2];
    int32_t x[BATCH];
    for (uint32_t from = 0; from < n; from += BATCH) {
        const uint32_t live = n - from < BATCH ? n - from : BATCH;
        const struct pair *end = pairs + (live + 1u) / 2u;
        for (uint32_t i = 0; i < live; i += 2u) {
            const bool both = i + 1u < live;
            pairs[i / 2u].a = col[from + i];
            pairs[i / 2u].b = col[both ? from + i + 1u : from + i];
            x[i] = a[from + i];
            x[i + 1u] = both ? a[from + i + 1u] : 0;
        }
        for (uint32_t j = 0; j < dim; j += SF_GROUP) {
            const uint32_t at = dim / 2u + j / 16u;
            const int32_t sum = shift > 32u ? wide_factors(pairs, end, x, at, shift)
                                            : factors(pairs, end, x, at, shift);
            for (uint32_t i = 0; i < SF_GROUP / 2u; i += 4u) {
                eight_outputs(pairs, end, j / 2u + i, 8 * sum, acc + j + i);
            }
        }
    }
}
