/* Rows times an activation vector with AVX2. */
#include "x86_avx2/avx2.h"

/* Sums of four vectors of nibbles, [half][vector] with their shifts: those of four products are
 * below 2^13, so that four of them have 16 bits. */
SF_INLINE __m256i nibble_sums(const __m256i *v, const __m256i *low, const __m256i *high,
                              __m256i shift) {
    __m256i s[4];
    for (uint32_t i = 0; i < 4u; i++) {
        s[i] = _mm256_add_epi16(_mm256_maddubs_epi16(sf_low4(v[i]), low[i]),
                                _mm256_maddubs_epi16(sf_high4(v[i]), high[i]));
    }
    const __m256i a =
        _mm256_add_epi16(_mm256_unpacklo_epi32(s[0], s[1]), _mm256_unpackhi_epi32(s[0], s[1]));
    const __m256i b =
        _mm256_add_epi16(_mm256_unpacklo_epi32(s[2], s[3]), _mm256_unpackhi_epi32(s[2], s[3]));
    return _mm256_madd_epi16(
        _mm256_add_epi16(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b)), shift);
}
/* Eight sums of the products of four signed bytes each. */
SF_INLINE __m256i signed_products(__m256i w, __m256i x) {
    return sf_signed_products(w, x);
}
SF_INLINE __m256i without_offset(__m256i t, __m256i sum) {
    (void)sum; /* they have none */
    return t;
}

#define SF_NAME(kernel) sf_x86_avx2_##kernel
#include "dot_body.h"

enum {
    R8_BYTES = SF_GROUP + 4,
    CHUNK = 8 /* groups whose sums with any shift fit 32 bits: 8 * 2 * (2 * 128 + 1) * 127 * 2^12 */
};

/* Eight sums of a group of halves: its bytes are the weights, but a first one below 0 has taken one
 * from the second. */
SF_INLINE __m256i products_r8(__m256i v, __m256i x) {
    const __m256i taken = _mm256_slli_epi16(_mm256_and_si256(v, _mm256_set1_epi16(0x80)), 1);
    const __m256i s = _mm256_maddubs_epi16(_mm256_abs_epi8(v), _mm256_sign_epi8(x, v));
    return _mm256_madd_epi16(_mm256_add_epi16(s, _mm256_maddubs_epi16(taken, x)),
                             _mm256_set1_epi16(1));
}

void sf_x86_avx2_dot_r8(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    sf_next next = sf_rows_behind(row, n, 0, n * x->groups);
    for (uint32_t r = 0; r < n; r++) {
        const uint8_t *w = row[r] + 4;
        __m256i acc = _mm256_setzero_si256();
        for (uint32_t from = 0; from < x->groups; from += CHUNK) {
            const uint32_t end = x->groups - from < CHUNK ? x->groups : from + CHUNK;
            __m256i sum = _mm256_setzero_si256();
            for (uint32_t g = from; g < end; g++, w += R8_BYTES) {
                sf_ask(&next);
                const __m256i s = products_r8(sf_load256(w), sf_load256(x->q + g * SF_GROUP));
                sum = _mm256_add_epi32(sum, _mm256_sll_epi32(s, _mm_cvtsi32_si128(x->k[g])));
            }
            acc = sf_add_wide(acc, sum);
        }
        float d;
        memcpy(&d, row[r] + x->groups * R8_BYTES, sizeof d);
        out[r] = sf_row_sum_to_float(sf_total64(acc), x->s) * d;
    }
}

/* The bits of a word as bytes of \a one or 0. */
SF_INLINE __m256i bit_bytes(uint32_t word, int32_t one) {
    const __m256i of =
        _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
    const __m256i bit = _mm256_set1_epi64x((int64_t)0x8040201008040201);
    const __m256i v = _mm256_shuffle_epi8(_mm256_set1_epi32((int32_t)word), of);
    return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(v, bit), bit),
                            _mm256_set1_epi8((char)one));
}

void sf_x86_avx2_dot_proxy(const uint8_t *const *row, uint32_t n, uint32_t bits, const sf_bfp *x,
                           float *out) {
    const int32_t factor = bits == 1u ? 2 : 1;
    const int32_t less = bits == 1u ? 1 : (int32_t)(1u << (bits - 1u)) - 1;
    for (uint32_t r = 0; r < n; r++) {
        const uint8_t *w = row[r], *scales = row[r] + x->groups * bits * 4u;
        int64_t acc = 0;
        for (uint32_t g = 0; g < x->groups; g++) {
            __m256i u = _mm256_setzero_si256();
            for (uint32_t j = 0; j < bits; j++, w += 4) {
                u = _mm256_or_si256(u, bit_bytes(sf_load32(w), (int32_t)(1u << j)));
            }
            const int32_t isum = sf_total32(sf_products(u, sf_load256(x->q + g * SF_GROUP)));
            const int32_t sum = factor * isum * (int32_t)(1u << x->k[g]) - less * x->sum[g];
            acc += (int64_t)sum * sf_one_half(scales + 2u * g);
        }
        out[r] = sf_sum_to_float(acc, x->s);
    }
}

void sf_x86_avx2_dot_signs(const uint8_t *const *row, uint32_t n, const uint32_t *sign,
                           uint32_t groups, float *out) {
    for (uint32_t r = 0; r < n; r++) {
        uint32_t differ = 0;
        for (uint32_t g = 0; g < groups; g++) {
            differ += (uint32_t)_mm_popcnt_u32(sf_load32(row[r] + 4u * g) ^ sign[g]);
        }
        out[r] = (float)(int32_t)(SF_GROUP * groups - differ);
    }
}
