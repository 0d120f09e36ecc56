/* Symmetric 4-bit weights on a Cortex-M with DSP: rows eight products at a time, columns four
 * columns at a time. */
#include "dsp.h"

enum {
    CHUNK = 8,       /* groups whose activations are widened at a time */
    SINGLE = 16 + 2, /* words of a widened group: with its shift, and eight times its sum */
    COLUMNS = 4
};

/* clang-format off */
#define NIBBLES(first, w)                                                                          \
    "ldmia %[x]!, {r8, r9, r10, r12}\n\t"                                                          \
    "and lr, %[m], " w "\n\t" first "\n\t"                                                         \
    "and lr, %[m], " w ", lsr #4\n\tsmlad %[a], lr, r9, %[a]\n\t"                                  \
    "and lr, %[m], " w ", lsr #8\n\tsmlad %[a], lr, r10, %[a]\n\t"                                 \
    "and lr, %[m], " w ", lsr #12\n\tsmlad %[a], lr, r12, %[a]\n\t"
#define NIBBLES_ON(w) NIBBLES("smlad %[a], lr, r8, %[a]", w)

/* Adds `groups` > 0 groups whose scales are at d. */
static inline int64_t row_s4(const uint8_t *w, const uint8_t *d, const uint32_t *x, uint32_t groups,
                             int64_t acc) {
    register float low __asm("s12") = sf_from_bits((uint32_t)acc);
    register float high __asm("s13") = sf_from_bits((uint32_t)((uint64_t)acc >> 32));
    register float at __asm("s11") = sf_from_bits((uint32_t)(uintptr_t)d);
    uint32_t a;
    __asm("1:\n\t"
          "ldmia %[w]!, {r3, r4, r5, r6}\n\t"
          NIBBLES("smuad %[a], lr, r8", "r3") NIBBLES_ON("r4") NIBBLES_ON("r5") NIBBLES_ON("r6")
          "ldmia %[x]!, {r8, r9}\n\t"
          "vmov r10, s11\n\t"
          "ldrh r3, [r10], #2\n\t"
          "vmov s11, r10\n\t"
          "vmov s15, r3\n\t"
          "vcvtb.f32.f16 s15, s15\n\t"
          "vcvt.s32.f32 s15, s15, #24\n\t"
          "vmov r3, s15\n\t"
          "vmov r5, r6, s12, s13\n\t"
          "lsl %[a], %[a], r8\n\t"
          "sub %[a], %[a], r9\n\t"
          "smlal r5, r6, %[a], r3\n\t"
          "vmov s12, s13, r5, r6\n\t"
          "subs %[n], %[n], #1\n\t"
          "bne 1b"
          : [a] "=&r"(a), [w] "+r"(w), [x] "+r"(x), [n] "+r"(groups), "+t"(low), "+t"(high), "+t"(at)
          : [m] "r"(0x000F000Fu)
          : "r3", "r4", "r5", "r6", "r8", "r9", "r10", "r12", "lr", "s15", "cc", "memory");
    return (int64_t)((uint64_t)sf_bits(high) << 32 | sf_bits(low));
}
/* clang-format on */

/* A group as pairs of halves in the order of the nibbles: elements i and i + 16 share a byte. */
static uint32_t *widen(const int8_t *q, uint32_t *out) {
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

void sf_arm_dsp_dot_s4(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    uint32_t wide[CHUNK * SINGLE];
    int64_t sum[SF_TILE];
    for (uint32_t from = 0; from < x->groups; from += CHUNK) {
        const bool last = x->groups - from <= CHUNK;
        const uint32_t live = last ? x->groups - from : CHUNK;
        uint32_t *p = wide;
        for (uint32_t g = from; g < from + live; g++) {
            p = widen(x->q + g * SF_GROUP, p);
            *p++ = x->k[g];
            *p++ = (uint32_t)(8 * x->sum[g]);
        }
        for (uint32_t r = 0; r < n; r++) {
            const uint8_t *w = row[r] + from * (SF_GROUP / 2u);
            const uint8_t *d = row[r] + x->groups * (SF_GROUP / 2u) + 2u * from;
            const int64_t acc = row_s4(w, d, wide, live, from == 0 ? 0 : sum[r]);
            if (last) {
                out[r] = sf_sum_to_float(acc, x->s);
            } else {
                sum[r] = acc;
            }
        }
    }
}

/* acc + the low half of x times the low, or the high, half of y; then with the high half of x. */
#define PRODUCT(name, halves)                                                                      \
    static inline int32_t name(uint32_t x, uint32_t y, int32_t acc) {                              \
        int32_t r;                                                                                 \
        __asm(halves " %0, %1, %2, %3" : "=r"(r) : "r"(x), "r"(y), "r"(acc));                      \
        return r;                                                                                  \
    }
PRODUCT(low_low, "smlabb")
PRODUCT(low_high, "smlabt")
PRODUCT(high_low, "smlatb")
PRODUCT(high_high, "smlatt")

/* A group of 32 outputs of up to four columns; t holds two factors a word, those of absent columns
 * are zero. */
static inline void group_of_columns(const uint8_t *const *w, uint32_t at, uint32_t t0, uint32_t t1,
                                    int32_t less, int32_t *y) {
    const uint32_t m = 0x000F000Fu;
    for (uint32_t i = 0; i < SF_GROUP / 2u; i += 4u) {
        uint32_t a = sf_load32(w[0] + at + i), b = sf_load32(w[1] + at + i);
        uint32_t c = sf_load32(w[2] + at + i), d = sf_load32(w[3] + at + i);
        static const uint8_t place[4] = {0, 16, 1, 17};
        for (uint32_t j = 0; j < 4u; j++) {
            int32_t *p = y + i + place[j];
            int32_t low = p[0] - less, high = p[2] - less;
            low = low_low(a & m, t0, low);
            high = high_low(a & m, t0, high);
            low = low_high(b & m, t0, low);
            high = high_high(b & m, t0, high);
            low = low_low(c & m, t1, low);
            high = high_low(c & m, t1, high);
            p[0] = low_high(d & m, t1, low);
            p[2] = high_high(d & m, t1, high);
            a >>= 4;
            b >>= 4;
            c >>= 4;
            d >>= 4;
        }
    }
}

void sf_arm_dsp_axpy_s4(const uint8_t *const *col, const int32_t *a, uint32_t n, uint32_t dim,
                        uint32_t shift, int32_t *acc) {
    for (uint32_t r = 0; r < n; r += COLUMNS) {
        const uint8_t *w[COLUMNS];
        int32_t x[COLUMNS];
        for (uint32_t i = 0; i < COLUMNS; i++) {
            w[i] = col[r + i < n ? r + i : r];
            x[i] = r + i < n ? a[r + i] : 0;
        }
        for (uint32_t j = 0; j < dim; j += SF_GROUP) {
            int32_t t[COLUMNS];
            for (uint32_t i = 0; i < COLUMNS; i++) {
                t[i] = sf_s4_factor(x[i], sf_load16(w[i] + dim / 2u + j / 16u), shift);
            }
            group_of_columns(w, j / 2u, sf_low2((uint32_t)t[0], (uint32_t)t[1]),
                             sf_low2((uint32_t)t[2], (uint32_t)t[3]),
                             8 * (t[0] + t[1] + t[2] + t[3]), acc + j);
        }
    }
}
