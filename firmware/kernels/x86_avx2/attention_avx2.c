/* Attention with AVX2: eight positions at a time, values in pairs of positions. */
#include "avx2.h"
#include "plain/attend.h"

SF_INLINE __m256i one_dot(const int16_t *q, const int8_t *k, uint32_t dim) {
    __m256i s = _mm256_setzero_si256();
    for (uint32_t i = 0; i < dim; i += 16u) {
        s = _mm256_add_epi32(
            s, _mm256_madd_epi16(sf_load256(q + i), _mm256_cvtepi8_epi16(sf_load128(k + i))));
    }
    return s;
}

/* score[t] = q . k[t] for n positions. */
static void dots(const int16_t *restrict q, const int8_t *restrict k, uint32_t stride, uint32_t n,
                 uint32_t dim, int32_t *restrict score) {
    const uint32_t whole = dim / 16u * 16u;
    uint32_t t = 0;
    for (; t + 8u <= n; t += 8u) {
        __m256i two[4];
        for (uint32_t i = 0; i < 4u; i++) {
            const int8_t *at = k + (t + 2u * i) * stride;
            two[i] = _mm256_hadd_epi32(one_dot(q, at, whole), one_dot(q, at + stride, whole));
        }
        const __m256i low = _mm256_hadd_epi32(two[0], two[1]);
        const __m256i high = _mm256_hadd_epi32(two[2], two[3]);
        sf_store256(score + t, _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20),
                                                _mm256_permute2x128_si256(low, high, 0x31)));
    }
    for (; t < n; t++) {
        score[t] = sf_total32(one_dot(q, k + t * stride, whole));
    }
    for (uint32_t i = whole; i < dim; i++) {
        for (t = 0; t < n; t++) {
            score[t] += (int32_t)q[i] * k[t * stride + i];
        }
    }
}

/* How far eight exponents, each `step` behind the one before, lie above the least. */
SF_INLINE __m256i above(const int8_t *e, uint32_t step, int32_t least) {
    return _mm256_sub_epi32(_mm256_setr_epi32(e[0], e[step], e[2u * step], e[3u * step],
                                              e[4u * step], e[5u * step], e[6u * step],
                                              e[7u * step]),
                            _mm256_set1_epi32(least));
}

static uint32_t some_scores(const sf_attn *a, uint32_t n, uint32_t factor, int32_t *score,
                            int32_t *best) {
    const int8_t *e = a->ks + a->first * a->estride;
    __m256i most = _mm256_set1_epi32(INT32_MIN);
    uint32_t t = 0;
    for (; t + 8u <= n; t += 8u, e += 8u * a->estride) {
        const __m256i s = sf_load256(score + t);
        const __m256i f =
            _mm256_srlv_epi32(_mm256_set1_epi32((int32_t)factor), above(e, a->estride, a->k_least));
        const __m256i even = _mm256_mul_epi32(s, f);
        const __m256i odd = _mm256_mul_epi32(_mm256_srli_epi64(s, 32), _mm256_srli_epi64(f, 32));
        const __m256i out = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
        sf_store256(score + t, out);
        most = _mm256_max_epi32(most, out);
    }
    most = _mm256_max_epi32(most, _mm256_permute2x128_si256(most, most, 1));
    most = _mm256_max_epi32(most, _mm256_shuffle_epi32(most, 0x4E));
    most = _mm256_max_epi32(most, _mm256_shuffle_epi32(most, 0xB1));
    *best = _mm256_cvtsi256_si32(most);
    return t;
}

static uint32_t some_weights(const sf_attn *a, uint32_t n, uint32_t left, int32_t best,
                             int32_t *score, uint32_t *total) {
    const uint32_t headroom = sf_headroom(n), shift = sf_coefficient_shift(headroom);
    const int8_t *e = a->vs + a->first * a->estride;
    const __m256i limit = _mm256_set1_epi32(SF_X_LIMIT), one = _mm256_set1_epi32(1);
    const __m256i near = _mm256_set1_epi32((int32_t)(SF_X_LIMIT >> left));
    __m256i sum = _mm256_setzero_si256();
    uint32_t t = 0;
    for (; t + 8u <= n; t += 8u, e += 8u * a->estride) {
        __m256i x = _mm256_sub_epi32(_mm256_set1_epi32(best), sf_load256(score + t));
        const __m256i within = _mm256_cmpeq_epi32(_mm256_min_epu32(x, near), x);
        x = _mm256_blendv_epi8(limit, _mm256_sll_epi32(x, _mm_cvtsi32_si128((int32_t)left)),
                               within);
        const __m256i step = _mm256_i32gather_epi32(
            (const int *)sf_exp2_steps,
            _mm256_and_si256(_mm256_srli_epi32(x, 7), _mm256_set1_epi32(31)), 4);
        const __m256i rest = _mm256_and_si256(_mm256_slli_epi32(x, 4), _mm256_set1_epi32(0x7F0));
        const __m256i down =
            _mm256_add_epi32(_mm256_srli_epi32(x, 12), _mm256_set1_epi32((int32_t)headroom));
        /* The low half of a step is the factor of the rest, whose high half is zero. */
        const __m256i p =
            _mm256_srlv_epi32(_mm256_add_epi32(step, _mm256_madd_epi16(step, rest)), down);
        const __m256i far =
            _mm256_add_epi32(above(e, a->estride, a->v_least), _mm256_set1_epi32((int32_t)shift));
        const __m256i half = _mm256_sllv_epi32(one, _mm256_sub_epi32(far, one));
        sf_store256(score + t, _mm256_srlv_epi32(_mm256_add_epi32(p, half), far));
        sum = _mm256_add_epi32(sum, p);
    }
    *total = (uint32_t)sf_total32(sum);
    return t;
}

/* acc = the sum of c[t] * v[t] over n positions, 16 values a block. Coefficients have 16 bits, so
 * pairs of positions are products of pairs. */
SF_INLINE void mix_blocks(const int32_t *c, const int8_t *v, uint32_t stride, uint32_t n,
                          int32_t *acc, const uint32_t blocks) {
    __m256i low[4], high[4];
    for (uint32_t b = 0; b < blocks; b++) {
        low[b] = high[b] = _mm256_setzero_si256();
    }
    for (uint32_t t = 0; t < n; t += 2u, v += 2u * stride) {
        const bool both = t + 1u < n;
        const int8_t *next = both ? v + stride : v;
        const __m256i x =
            _mm256_set1_epi32((int32_t)((uint32_t)c[t] | (both ? (uint32_t)c[t + 1u] << 16 : 0u)));
        for (uint32_t b = 0; b < blocks; b++) {
            const __m256i p = _mm256_cvtepi8_epi16(sf_load128(v + 16u * b));
            const __m256i q = _mm256_cvtepi8_epi16(sf_load128(next + 16u * b));
            low[b] = _mm256_add_epi32(low[b], _mm256_madd_epi16(_mm256_unpacklo_epi16(p, q), x));
            high[b] = _mm256_add_epi32(high[b], _mm256_madd_epi16(_mm256_unpackhi_epi16(p, q), x));
        }
    }
    for (uint32_t b = 0; b < blocks; b++) {
        sf_store256(acc + 16u * b, _mm256_permute2x128_si256(low[b], high[b], 0x20));
        sf_store256(acc + 16u * b + 8u, _mm256_permute2x128_si256(low[b], high[b], 0x31));
    }
}

static void mix(const int32_t *c, const int8_t *v, uint32_t stride, uint32_t n, uint32_t dim,
                int32_t *acc) {
    uint32_t i = 0;
    for (; i + 64u <= dim; i += 64u) {
        mix_blocks(c, v + i, stride, n, acc + i, 4);
    }
    for (; i + 16u <= dim; i += 16u) {
        mix_blocks(c, v + i, stride, n, acc + i, 1);
    }
    for (; i < dim; i++) {
        acc[i] = 0;
        for (uint32_t t = 0; t < n; t++) {
            acc[i] += c[t] * v[t * stride + i];
        }
    }
}

#define SF_OWN_SOFTMAX
#define SF_NAME(kernel) sf_x86_avx2_##kernel
#include "plain/attention_body.h"
