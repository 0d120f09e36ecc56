/* Attention with AVX2: sixteen products an instruction; values two positions at a time. */
#include "avx2.h"
#include "plain/attend.h"

static void dots(const int16_t *restrict q, const int8_t *restrict k, uint32_t stride, uint32_t n,
                 uint32_t dim, int32_t *restrict score) {
    const uint32_t whole = dim / 16u * 16u;
    for (uint32_t t = 0; t < n; t++, k += stride) {
        __m256i s = _mm256_setzero_si256();
        for (uint32_t i = 0; i < whole; i += 16u) {
            s = _mm256_add_epi32(
                s, _mm256_madd_epi16(sf_load256(q + i), _mm256_cvtepi8_epi16(sf_load128(k + i))));
        }
        int32_t dot = sf_total32(s);
        for (uint32_t i = whole; i < dim; i++) {
            dot += (int32_t)q[i] * k[i];
        }
        score[t] = dot;
    }
}

/* Coefficients have 16 bits, so pairs of positions are products of pairs. */
static void mix(const int32_t *restrict c, const int8_t *restrict v, uint32_t stride, uint32_t n,
                uint32_t dim, int32_t *restrict acc) {
    const uint32_t whole = dim / 16u * 16u;
    for (uint32_t i = 0; i < whole; i += 16u) {
        const int8_t *p = v + i;
        __m256i low = _mm256_setzero_si256(), high = low;
        for (uint32_t t = 0; t < n; t += 2u, p += 2u * stride) {
            const bool both = t + 1u < n;
            const __m256i x = _mm256_set1_epi32(
                (int32_t)((uint32_t)c[t] | (both ? (uint32_t)c[t + 1u] << 16 : 0u)));
            const __m256i a = _mm256_cvtepi8_epi16(sf_load128(p));
            const __m256i b = _mm256_cvtepi8_epi16(sf_load128(both ? p + stride : p));
            low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), x));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), x));
        }
        sf_store256(acc + i, _mm256_permute2x128_si256(low, high, 0x20));
        sf_store256(acc + i + 8u, _mm256_permute2x128_si256(low, high, 0x31));
    }
    for (uint32_t i = whole; i < dim; i++) {
        acc[i] = 0;
        for (uint32_t t = 0; t < n; t++) {
            acc[i] += c[t] * v[t * stride + i];
        }
    }
}

#define SF_NAME(kernel) sf_x86_avx2_##kernel
#include "plain/attention_body.h"
