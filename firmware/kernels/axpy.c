/* down_proj by columns: a neuron adds h * column to integer sums, in any order. */
#include "sf_kernels.h"
#include "tiers.h"

#ifdef SF_VNNI

/* Sixteen columns of 15 * 127 fit sums of 16 bits. */
void sf_axpy_q4(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                int32_t *isum) {
    const __m128i four = _mm_set1_epi8(15);
    for (uint32_t from = 0; from < n; from += 16u) {
        const uint32_t to = n - from < 16u ? n : from + 16u;
        for (uint32_t j = 0; j < dim; j += SF_GROUP) {
            __m256i low = _mm256_setzero_si256(), high = low;
            for (uint32_t r = from; r < to; r++) {
                const __m128i w = _mm_loadu_si128((const __m128i *)(const void *)(col[r] + j / 2u));
                const __m256i a = _mm256_set1_epi16(h[r]);
                const __m256i l = _mm256_cvtepu8_epi16(_mm_and_si128(w, four));
                const __m256i u = _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(w, 4), four));
                low = _mm256_add_epi16(low, _mm256_mullo_epi16(l, a));
                high = _mm256_add_epi16(high, _mm256_mullo_epi16(u, a));
            }
            __m512i y = _mm512_loadu_si512(isum + j);
            _mm512_storeu_si512(isum + j, _mm512_add_epi32(y, _mm512_cvtepi16_epi32(low)));
            y = _mm512_loadu_si512(isum + j + 16u);
            _mm512_storeu_si512(isum + j + 16u, _mm512_add_epi32(y, _mm512_cvtepi16_epi32(high)));
        }
    }
}

void sf_scale_q4(const uint8_t *scales, uint32_t k, int32_t sum, uint32_t dim, int32_t *isum,
                 int64_t *acc) {
    const __m512i total = _mm512_set1_epi64(sum);
    for (uint32_t j = 0; j < dim; j += 8u) {
        const __m256i dm = _mm256_loadu_si256((const __m256i *)(const void *)(scales + 4u * j));
        const __m256i d = sf_halves(_mm256_cvtepi32_epi16(dm));
        const __m256i m = sf_halves(_mm256_cvtepi32_epi16(_mm256_srli_epi32(dm, 16)));
        __m256i *y = (__m256i *)(void *)(isum + j);
        const __m256i s = _mm256_sllv_epi32(_mm256_loadu_si256(y), _mm256_set1_epi32((int)k));
        __m512i a = _mm512_loadu_si512(acc + j);
        a = _mm512_add_epi64(a,
                             _mm512_mul_epi32(_mm512_cvtepi32_epi64(s), _mm512_cvtepi32_epi64(d)));
        a = _mm512_add_epi64(a, _mm512_mul_epi32(total, _mm512_cvtepi32_epi64(m)));
        _mm512_storeu_si512(acc + j, a);
        _mm256_storeu_si256(y, _mm256_setzero_si256());
    }
}

#endif

#ifndef SF_TIER_AXPY_Q4

void sf_axpy_q4(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                int32_t *isum) {
    for (uint32_t r = 0; r < n; r++) {
        const uint8_t *w = col[r];
        const int32_t a = h[r];
        for (uint32_t j = 0; j < dim; j += SF_GROUP) {
            int32_t *y = isum + j;
            for (uint32_t i = 0; i < SF_GROUP / 2u; i++) {
                y[i] += a * (int32_t)(w[i] & 15u);
                y[i + SF_GROUP / 2u] += a * (int32_t)(w[i] >> 4);
            }
            w += SF_GROUP / 2u;
        }
    }
}

#endif

#ifndef SF_TIER_AXPY_Q8

void sf_axpy_q8(const uint8_t *const *col, const int8_t *h, uint32_t n, uint32_t dim,
                int32_t *isum) {
    for (uint32_t r = 0; r < n; r++) {
        const int8_t *w = (const int8_t *)col[r];
        const int32_t a = h[r];
        for (uint32_t j = 0; j < dim; j++) {
            isum[j] += a * (int32_t)w[j];
        }
    }
}

#endif

#ifndef SF_TIER_SCALE_Q4

void sf_scale_q4(const uint8_t *scales, uint32_t k, int32_t sum, uint32_t dim, int32_t *isum,
                 int64_t *acc) {
    const int32_t shift = (int32_t)(1u << k);
    for (uint32_t j = 0; j < dim; j++) {
        const uint32_t dm = sf_load32(scales + 4u * j);
        acc[j] += (int64_t)(isum[j] * shift) * sf_half(dm & 0xFFFFu);
        acc[j] += (int64_t)sum * sf_half(dm >> 16);
        isum[j] = 0;
    }
}

#endif

#ifndef SF_TIER_SCALE_Q8

void sf_scale_q8(const uint8_t *scales, uint32_t k, int32_t sum, uint32_t dim, int32_t *isum,
                 int64_t *acc) {
    const int32_t shift = (int32_t)(1u << k);
    (void)sum;
    for (uint32_t j = 0; j < dim; j++) {
        acc[j] += (int64_t)(isum[j] * shift) * sf_half(sf_load16(scales + 2u * j));
        isum[j] = 0;
    }
}

#endif
