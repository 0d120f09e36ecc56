/* down_proj by columns with MVE. */
#include "mve.h"
#include "plain/s4_columns.h"

void sf_arm_mve_axpy_q8(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                        int32_t *isum) {
    for (uint32_t j = 0; j < dim; j += 16u) {
        int32_t *y = isum + j;
        int32x4_t a = vldrwq_s32(y), b = vldrwq_s32(y + 4);
        int32x4_t c = vldrwq_s32(y + 8), d = vldrwq_s32(y + 12);
        for (uint32_t r = 0; r < n; r++) {
            const int8_t *w = (const int8_t *)col[r] + j;
            const int32_t k = h[r];
            a = vmlaq_n_s32(a, vldrbq_s32(w), k);
            b = vmlaq_n_s32(b, vldrbq_s32(w + 4), k);
            c = vmlaq_n_s32(c, vldrbq_s32(w + 8), k);
            d = vmlaq_n_s32(d, vldrbq_s32(w + 12), k);
        }
        vstrwq_s32(y, a);
        vstrwq_s32(y + 4, b);
        vstrwq_s32(y + 8, c);
        vstrwq_s32(y + 12, d);
    }
}

static inline void add8(int32_t *y, int16x8_t sum) {
    int16_t s[8];
    vstrhq_s16(s, sum);
    vstrwq_s32(y, vaddq_s32(vldrwq_s32(y), vldrhq_s32(s)));
    vstrwq_s32(y + 4, vaddq_s32(vldrwq_s32(y + 4), vldrhq_s32(s + 4)));
}

/* Sixteen columns of 15 * 127 fit sums of 16 bits. */
void sf_arm_mve_axpy_q4(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                        int32_t *isum) {
    for (uint32_t from = 0; from < n; from += 16u) {
        const uint32_t to = n - from < 16u ? n : from + 16u;
        for (uint32_t j = 0; j < dim; j += SF_GROUP) {
            int16x8_t a = vdupq_n_s16(0), b = a, c = a, d = a;
            for (uint32_t r = from; r < to; r++) {
                const uint8_t *w = col[r] + j / 2u;
                const uint16x8_t first = vldrbq_u16(w), second = vldrbq_u16(w + 8);
                const uint16x8_t four = vdupq_n_u16(15);
                a = vmlaq_n_s16(a, vreinterpretq_s16_u16(vandq_u16(first, four)), h[r]);
                b = vmlaq_n_s16(b, vreinterpretq_s16_u16(vandq_u16(second, four)), h[r]);
                c = vmlaq_n_s16(c, vreinterpretq_s16_u16(vshrq_n_u16(first, 4)), h[r]);
                d = vmlaq_n_s16(d, vreinterpretq_s16_u16(vshrq_n_u16(second, 4)), h[r]);
            }
            add8(isum + j, a);
            add8(isum + j + 8u, b);
            add8(isum + j + 16u, c);
            add8(isum + j + 24u, d);
        }
    }
}

/* Eight bytes of each column at a time: four vectors of sums. */
static void s4_group(const uint8_t *const *col, const int32_t *t, uint32_t n, uint32_t at,
                     int32_t first, int32_t *y) {
    for (uint32_t i = 0; i < SF_GROUP / 2u; i += 8u, y += 8) {
        int32x4_t a = vaddq_n_s32(vldrwq_s32(y), first), b = vaddq_n_s32(vldrwq_s32(y + 4), first);
        int32x4_t c = vaddq_n_s32(vldrwq_s32(y + 16), first);
        int32x4_t d = vaddq_n_s32(vldrwq_s32(y + 20), first);
        for (uint32_t r = 0; r < n; r++) {
            const uint8_t *w = col[r] + at + i;
            const uint32x4_t low = vldrbq_u32(w), high = vldrbq_u32(w + 4);
            const uint32x4_t four = vdupq_n_u32(15);
            a = vmlaq_n_s32(a, vreinterpretq_s32_u32(vandq_u32(low, four)), t[r]);
            b = vmlaq_n_s32(b, vreinterpretq_s32_u32(vandq_u32(high, four)), t[r]);
            c = vmlaq_n_s32(c, vreinterpretq_s32_u32(vshrq_n_u32(low, 4)), t[r]);
            d = vmlaq_n_s32(d, vreinterpretq_s32_u32(vshrq_n_u32(high, 4)), t[r]);
        }
        vstrwq_s32(y, a);
        vstrwq_s32(y + 4, b);
        vstrwq_s32(y + 16, c);
        vstrwq_s32(y + 20, d);
    }
}

void sf_arm_mve_axpy_s4(const uint8_t *const *col, const int32_t *a, uint32_t n, uint32_t dim,
                        uint32_t shift, int32_t *acc) {
    sf_s4_columns(col, a, n, dim, shift, acc, s4_group);
}
