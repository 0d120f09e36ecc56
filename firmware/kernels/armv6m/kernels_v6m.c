/* The kernels of Armv6-M around the loops of loops_v6m.S; they equal plain C bit for bit. */
#include "armv6m.h"
#include "plain/attend.h"
#include "plain/s4_columns.h"

#include <stdbool.h>

/* The arithmetic of loops_v6m.S hands them the operands and results that are not normal. */
float sf_v6m_multiply_rest(float x, float y);
float sf_v6m_add_rest(float x, float y);

/* Two bits of the argument at a time give one of the root. It is never half way between two floats:
 * an odd root of 25 bits has an odd square. */
float sf_sqrt(float x) {
    const uint32_t bits = sf_bits(x);
    if (bits << 1 == 0u || bits == 0x7F800000u) {
        return x;
    }
    if (bits > 0x7F800000u) {
        return sf_from_bits(0x7FC00000u);
    }
    int32_t e = (int32_t)(bits >> 23);
    uint32_t m = bits & 0x007FFFFFu;
    if (e > 0) {
        m |= 0x00800000u;
    } else {
        for (e = 1; m < 0x00800000u; e--) {
            m <<= 1;
        }
    }
    m <<= (e & 1) != 0 ? 7 : 8; /* 127 is odd */
    uint32_t root = 0, rest = 0;
    for (uint32_t i = 0; i < 25u; i++) {
        const uint32_t trial = root << 2 | 1u;
        rest = rest << 2 | m >> 30;
        m <<= 2;
        root <<= 1;
        if (rest >= trial) {
            rest -= trial;
            root |= 1u;
        }
    }
    root = (root + 1u) >> 1; /* the hidden bit adds one to the exponent */
    return sf_from_bits(((uint32_t)((e + 125) >> 1) << 23) + root);
}

/* n of any size, q of any alignment. */
static void widen(const int8_t *q, uint32_t n, int32_t *out) {
    for (uint32_t i = 0; i < n; i++) {
        out[i] = q[i];
    }
}

enum { CHUNK = 8, WIDE8 = SF_GROUP + 1, WIDE4 = SF_GROUP / 2 + 2 }; /* groups; words of one */

void sf_armv6m_dot_q8(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    int32_t wide[CHUNK * WIDE8];
    int64_t acc[SF_TILE];
    for (uint32_t r = 0; r < n; r++) {
        acc[r] = 0;
    }
    for (uint32_t from = 0; from < x->groups; from += CHUNK) {
        int32_t *end = wide;
        for (uint32_t g = from; g < from + CHUNK && g < x->groups; g++) {
            sf_v6m_widen(x->q + g * SF_GROUP, SF_GROUP, end);
            end[SF_GROUP] = 32 - x->k[g];
            end += WIDE8;
        }
        const sf_v6m_part part = {wide, end, from * SF_GROUP, x->groups * SF_GROUP + 2u * from};
        sf_v6m_rows8(row, acc, &part, n);
    }
    for (uint32_t r = 0; r < n; r++) {
        out[r] = sf_sum_to_float(acc[r], x->s);
    }
}

/* Rows of nibbles: a row has `tables` bytes of scales a group, and the sum of a group of
 * activations goes in `times`. */
__attribute__((always_inline)) static inline void
dot_nibbles(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out, int32_t times,
            uint32_t tables,
            void (*rows)(const uint8_t *const *, int64_t *, const sf_v6m_part *, uint32_t)) {
    int32_t wide[CHUNK * WIDE4];
    int64_t acc[SF_TILE];
    for (uint32_t r = 0; r < n; r++) {
        acc[r] = 0;
    }
    for (uint32_t from = 0; from < x->groups; from += CHUNK) {
        int32_t *end = wide;
        for (uint32_t g = from; g < from + CHUNK && g < x->groups; g++) {
            sf_v6m_pairs(x->q + g * SF_GROUP, end);
            end[SF_GROUP / 2u] = 32 - x->k[g];
            end[SF_GROUP / 2u + 1u] = times * (x->sum[g] >> x->k[g]);
            end += WIDE4;
        }
        const sf_v6m_part part = {wide, end, from * (SF_GROUP / 2u),
                                  x->groups * (SF_GROUP / 2u) + tables * from};
        rows(row, acc, &part, n);
    }
    for (uint32_t r = 0; r < n; r++) {
        out[r] = sf_sum_to_float(acc[r], x->s);
    }
}

void sf_armv6m_dot_q4(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    dot_nibbles(row, n, x, out, 1, 4, sf_v6m_rows4);
}

void sf_armv6m_dot_s4(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    dot_nibbles(row, n, x, out, -8, 2, sf_v6m_rows_s4);
}

static void s4_group(const uint8_t *const *col, const int32_t *t, uint32_t n, uint32_t at,
                     int32_t first, int32_t *y) {
    for (uint32_t i = 0; i < SF_GROUP / 2u; i += 4u) {
        sf_v6m_axpy_s4(col, t, n, at + i, y + i, first);
    }
}

void sf_armv6m_axpy_s4(const uint8_t *const *col, const int32_t *a, uint32_t n, uint32_t dim,
                       uint32_t shift, int32_t *acc) {
    sf_s4_columns(col, a, n, dim, shift, acc, s4_group);
}

/* Sixteen columns at a time: their sums have 16 bits. */
void sf_armv6m_axpy_q4(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                       int32_t *isum) {
    int32_t wide[SF_GROUP];
    widen(h, n, wide);
    for (uint32_t from = 0; from < n; from += 16u) {
        const uint32_t count = n - from < 16u ? n - from : 16u;
        for (uint32_t j = 0; j < dim; j += SF_GROUP) {
            for (uint32_t i = 0; i < SF_GROUP / 2u; i += 4u) {
                sf_v6m_axpy4(col + from, wide + from, count, j / 2u + i, isum + j + i);
            }
        }
    }
}

void sf_armv6m_axpy_q8(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                       int32_t *isum) {
    int32_t wide[SF_GROUP];
    if (n == 0u) {
        return;
    }
    widen(h, n, wide);
    for (uint32_t j = 0; j < dim; j += 4u) {
        sf_v6m_axpy8(col, wide, n, j, isum + j);
    }
}

void sf_armv6m_scale_q4(const uint8_t *scales, uint32_t k, int32_t sum, uint32_t dim, int32_t *isum,
                        int64_t *acc) {
    sf_v6m_columns4(acc, isum, scales, scales + 4u * dim, 32u - k, sum >> k);
}

void sf_armv6m_scale_q8(const uint8_t *scales, uint32_t k, int32_t sum, uint32_t dim, int32_t *isum,
                        int64_t *acc) {
    (void)sum;
    sf_v6m_columns8(acc, isum, scales, scales + 2u * dim, 32u - k);
}

/* The upper half of x * y for |x| <= 2^30, y < 2^31: products of halves. */
static int32_t upper(int32_t x, uint32_t y) {
    const int32_t xh = x >> 16;
    const uint32_t xl = (uint32_t)x & 0xFFFFu, yh = y >> 16, yl = y & 0xFFFFu;
    const int32_t a = xh * (int32_t)yl;
    const uint32_t b = xl * yh + (xl * yl >> 16);
    const uint32_t carry = (((uint32_t)a & 0xFFFFu) + (b & 0xFFFFu)) >> 16;
    return xh * (int32_t)yh + (a >> 16) + (int32_t)((b >> 16) + carry);
}

static void one_head(const sf_attn *a, const float *q, int16_t *q16, int32_t *score, int32_t *acc,
                     float *out) {
    const uint32_t n = a->last - a->first + 1u;
    const sf_score_unit unit = sf_unit_of(a, sf_quantize16(q, a->head_dim, q16));
    const int8_t *k = a->k + a->first * a->stride, *e = a->ks + a->first * a->estride;
    const int8_t *v = a->v + a->first * a->stride;
    int32_t best = INT32_MIN;
    for (uint32_t i = 0; i < a->head_dim; i++) {
        acc[i] = q16[i];
    }
    for (uint32_t t = 0; t < n; t++, e += a->estride) {
        const uint32_t far = (uint32_t)(*e - a->k_least); /* shifts take a byte */
        score[t] = upper(sf_v6m_dot8(k + t * a->stride, acc, a->head_dim),
                         far > 31u ? 0u : unit.factor >> far);
        best = score[t] > best ? score[t] : best;
    }
    const uint32_t headroom = sf_headroom(n), shift = sf_coefficient_shift(headroom);
    uint32_t total = 0;
    e = a->vs + a->first * a->estride;
    for (uint32_t t = 0; t < n; t++, e += a->estride) {
        uint32_t x = (uint32_t)best - (uint32_t)score[t];
        x = x > SF_X_LIMIT >> unit.left ? SF_X_LIMIT : x << unit.left;
        const uint32_t down = (x >> 12) + headroom, far = (uint32_t)(*e - a->v_least) + shift;
        const uint32_t p = down > 31u ? 0u : sf_exp2_part(x) >> down;
        total += p;
        score[t] = (int32_t)(far > 31u ? 0u : ((p >> (far - 1u)) + 1u) >> 1);
    }
    const float factor = sf_mixed_unit(a, shift, total);
    for (uint32_t i = 0; i < a->head_dim; i += 4u) {
        int32_t sum[4] = {0, 0, 0, 0};
        sf_v6m_mix(v + i, a->stride, score, n, sum);
        for (uint32_t j = 0; j < 4u; j++) {
            out[i + j] = sf_v6m_float(sum[j], 0) * factor;
        }
    }
}

void sf_armv6m_attention(const sf_attn *a, uint32_t heads, const float *q, int16_t *q16,
                         int32_t *score, int32_t *acc, float *out) {
    for (uint32_t h = 0; h < heads; h++) {
        one_head(a, q + h * a->head_dim, q16, score, acc, out + h * a->head_dim);
    }
}

/* Any product, by the definition: what __aeabi_fmul of loops_v6m.S leaves over. */
float sf_v6m_multiply_rest(float x, float y) {
    const uint32_t a = sf_bits(x), b = sf_bits(y);
    const uint32_t sign = (a ^ b) & 0x80000000u;
    uint32_t ma = a & 0x7FFFFFFFu, mb = b & 0x7FFFFFFFu;
    if (ma > 0x7F800000u || mb > 0x7F800000u) {
        return sf_from_bits(0x7FC00000u);
    }
    if (ma == 0x7F800000u || mb == 0x7F800000u) {
        return sf_from_bits(ma == 0u || mb == 0u ? 0x7FC00000u : sign | 0x7F800000u);
    }
    if (ma == 0u || mb == 0u) {
        return sf_from_bits(sign);
    }
    int32_t e = (int32_t)(ma >> 23) + (int32_t)(mb >> 23) - 126;
    if (ma < 0x00800000u) {
        e++;
    } else {
        ma = (ma & 0x007FFFFFu) | 0x00800000u;
    }
    if (mb < 0x00800000u) {
        e++;
    } else {
        mb = (mb & 0x007FFFFFu) | 0x00800000u;
    }
    while (ma < 0x00800000u) {
        ma <<= 1;
        e--;
    }
    while (mb < 0x00800000u) {
        mb <<= 1;
        e--;
    }
    uint64_t p = (uint64_t)ma * mb << 16; /* e is the exponent of bit 63 */
    while ((p >> 63) == 0u) {
        p <<= 1;
        e--;
    }
    if (e >= 255) {
        return sf_from_bits(sign | 0x7F800000u);
    }
    uint32_t drop = 40; /* bits below a mantissa of 24 */
    if (e < 1) {
        drop += (uint32_t)(1 - e);
        e = 1;
        if (drop > 63u) { /* half of the least subnormal, or below */
            return sf_from_bits(sign | (drop == 64u && p > (uint64_t)1 << 63 ? 1u : 0u));
        }
    }
    uint32_t bits = (uint32_t)(p >> drop);
    const uint64_t rest = p << (64u - drop);
    const uint64_t half = (uint64_t)1 << 63;
    bits += rest > half || (rest == half && (bits & 1u) != 0u) ? 1u : 0u;
    return sf_from_bits(sign | (((uint32_t)e - 1u) * 0x00800000u + bits));
}

/* Any sum, in the same way. */
float sf_v6m_add_rest(float x, float y) {
    uint32_t a = sf_bits(x), b = sf_bits(y);
    if (a << 1 < b << 1) {
        const uint32_t t = a;
        a = b;
        b = t;
    }
    if (a << 1 >= 0xFF000000u) { /* infinite or no number */
        const bool nan = a << 1 > 0xFF000000u || (b << 1 == 0xFF000000u && a != b);
        return sf_from_bits(nan ? 0x7FC00000u : a);
    }
    if (b << 1 == 0u) {
        return sf_from_bits(a << 1 == 0u ? a & b : a);
    }
    int32_t e = (int32_t)(a << 1 >> 24);
    const int32_t eb = (int32_t)(b << 1 >> 24);
    const uint32_t ma = (a & 0x007FFFFFu) | (e > 0 ? 0x00800000u : 0u);
    const uint32_t mb = (b & 0x007FFFFFu) | (eb > 0 ? 0x00800000u : 0u);
    e = e > 0 ? e : 1;
    const int32_t distance = e - (eb > 0 ? eb : 1);
    if (distance > 25) {
        return sf_from_bits(a);
    }
    int64_t m = (int64_t)ma << 32; /* bit 55 down */
    const int64_t other = (int64_t)((uint64_t)mb << 32 >> distance);
    m += ((a ^ b) >> 31) != 0u ? -other : other;
    if (m == 0) {
        return 0.0f;
    }
    while (m >= (int64_t)1 << 56) {
        m = (m >> 1) | (m & 1);
        e++;
    }
    while (m < (int64_t)1 << 55 && e > 1) {
        m <<= 1;
        e--;
    }
    uint32_t bits = (uint32_t)(m >> 32);
    const uint32_t rest = (uint32_t)m;
    bits += rest > 0x80000000u || (rest == 0x80000000u && (bits & 1u) != 0u) ? 1u : 0u;
    bits += ((uint32_t)e - 1u) << 23; /* a hidden bit adds one */
    return sf_from_bits((a & 0x80000000u) | (bits < 0x7F800000u ? bits : 0x7F800000u));
}
