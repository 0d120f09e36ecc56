/* Affine 4-bit rows times an activation vector. Row: nibbles [groups][16], then {d, m} [groups]. */
#include "sf_kernels.h"
#include "tiers.h"

#ifdef SF_VNNI

/* Four groups at a time; a 128-bit lane holds one group: d's product below, m's above. */
void sf_dot_q4(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    const __m512i low = _mm512_set_epi64(13, 12, 9, 8, 5, 4, 1, 0);
    const __m512i high = _mm512_set_epi64(15, 14, 11, 10, 7, 6, 3, 2);
    const __m512i four = _mm512_set1_epi8(15);
    __m512i acc[SF_TILE];
    for (uint32_t r = 0; r < n; r++) {
        acc[r] = _mm512_setzero_si512();
    }
    for (uint32_t g = 0; g < x->groups; g += 4u) {
        const uint32_t live = x->groups - g < 4u ? x->groups - g : 4u;
        const __mmask64 bytes = UINT64_MAX >> (64u - 16u * live);
        const __mmask64 second = live > 2u ? UINT64_MAX >> (128u - 32u * live) : 0u;
        const __mmask64 first = live > 1u ? UINT64_MAX : 0xFFFFFFFFu;
        const __mmask8 pairs = (__mmask8)(0xFFu >> (8u - 2u * live));
        const int8_t *q = x->q + g * SF_GROUP;
        const __m512i a = _mm512_maskz_loadu_epi8(first, q);
        const __m512i b = _mm512_maskz_loadu_epi8(second, q + 64);
        const __m512i xl = _mm512_permutex2var_epi64(a, low, b);
        const __m512i xh = _mm512_permutex2var_epi64(a, high, b);
        int64_t shift[8] = {0}, sum[8] = {0};
        for (uint32_t i = 0; i < live; i++) {
            shift[2u * i] = x->k[g + i];
            sum[2u * i + 1u] = x->sum[g + i];
        }
        const __m512i k = _mm512_loadu_si512(shift);
        const __m512i xsum = _mm512_loadu_si512(sum);
        for (uint32_t r = 0; r < n; r++) {
            const uint8_t *scales = row[r] + x->groups * (SF_GROUP / 2u) + 4u * g;
            const __m512i w = _mm512_maskz_loadu_epi8(bytes, row[r] + g * (SF_GROUP / 2u));
            __m512i s = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_and_si512(w, four), xl);
            s = _mm512_dpbusd_epi32(s, _mm512_and_si512(_mm512_srli_epi16(w, 4), four), xh);
            s = _mm512_add_epi32(s, _mm512_shuffle_epi32(s, _MM_PERM_BADC));
            s = _mm512_add_epi32(s, _mm512_shuffle_epi32(s, _MM_PERM_CDAB));
            s = _mm512_mask_mov_epi64(_mm512_sllv_epi32(s, k), 0xAA, xsum);
            const __m256i dm = sf_halves(_mm_maskz_loadu_epi16(pairs, scales));
            acc[r] = _mm512_add_epi64(acc[r], _mm512_mul_epi32(s, _mm512_cvtepi32_epi64(dm)));
        }
    }
    for (uint32_t r = 0; r < n; r++) {
        out[r] = sf_sum_to_float(_mm512_reduce_add_epi64(acc[r]), x->s);
    }
}

#elif !defined(SF_TIER_DOT)

void sf_dot_q4(const uint8_t *const *row, uint32_t n, const sf_bfp *x, float *out) {
    for (uint32_t r = 0; r < n; r++) {
        const uint8_t *w = row[r];
        const uint8_t *scales = row[r] + x->groups * (SF_GROUP / 2u);
        const int8_t *q = x->q;
        int64_t acc = 0;
        for (uint32_t g = 0; g < x->groups; g++) {
            const uint32_t dm = sf_load32(scales + 4u * g);
            int32_t isum = 0;
            for (uint32_t i = 0; i < SF_GROUP / 2u; i++) {
                isum += (int32_t)(w[i] & 15u) * q[i] + (int32_t)(w[i] >> 4) * q[i + SF_GROUP / 2u];
            }
            acc += (int64_t)(isum * (int32_t)(1u << x->k[g])) * sf_half(dm & 0xFFFFu);
            acc += (int64_t)x->sum[g] * sf_half(dm >> 16);
            w += SF_GROUP / 2u;
            q += SF_GROUP;
        }
        out[r] = sf_sum_to_float(acc, x->s);
    }
}

#endif
