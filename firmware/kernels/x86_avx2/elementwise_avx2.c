/* Plain C, which the compiler makes vectors of, but for the divisions of silu. */
#include "avx2.h"

#define SF_SILU
#define SF_NAME(kernel) sf_x86_avx2_##kernel
#include "plain/elementwise.c"

/* 0xFFFFFFFF / d for d from 2^16 to 2^17: no quotient is as near to a whole number as the rounding
 * of a double, so cutting it off gives the quotient of integers. */
SF_INLINE __m128i inverse4(__m128i d) {
    return _mm256_cvttpd_epi32(_mm256_div_pd(_mm256_set1_pd(4294967295.0), _mm256_cvtepi32_pd(d)));
}
SF_INLINE __m256i inverse8(__m256i d) {
    return _mm256_set_m128i(inverse4(_mm256_extracti128_si256(d, 1)),
                            inverse4(_mm256_castsi256_si128(d)));
}
/* Four integers without a sign as floats, rounded once. */
SF_INLINE __m128 floats4(__m128i u) {
    const __m256d v = _mm256_cvtepi32_pd(_mm_xor_si128(u, _mm_set1_epi32(INT32_MIN)));
    return _mm256_cvtpd_ps(_mm256_add_pd(v, _mm256_set1_pd(2147483648.0)));
}
SF_INLINE __m256 floats8(__m256i u) {
    return _mm256_set_m128(floats4(_mm256_extracti128_si256(u, 1)),
                           floats4(_mm256_castsi256_si128(u)));
}
/* a - (f * t >> 16) */
SF_INLINE __m256i step(int32_t a, __m256i f, __m256i t) {
    return _mm256_sub_epi32(_mm256_set1_epi32(a), _mm256_srli_epi32(_mm256_mullo_epi32(f, t), 16));
}

/* sf_sigmoid and the product, eight at a time. */
SF_INLINE __m256 silu8(__m256 x) {
    const __m256 sign = _mm256_set1_ps(-0.0f), limit = _mm256_set1_ps(2031616.0f);
    const __m256 t = _mm256_mul_ps(_mm256_andnot_ps(sign, x), _mm256_set1_ps(94548.46f));
    /* The second operand where the first is no number. */
    const __m256i u = _mm256_cvttps_epi32(_mm256_min_ps(t, limit));
    const __m256i f = _mm256_and_si256(u, _mm256_set1_epi32(0xFFFF)), e = _mm256_srli_epi32(u, 16);
    __m256i m = step(3498, f, _mm256_set1_epi32(453));
    m = step(65536, f, step(45422, f, step(15699, f, m)));
    const __m256i one = _mm256_set1_epi32(65536);
    const __m256i inverse = inverse8(_mm256_add_epi32(one, _mm256_srlv_epi32(m, e)));
    const __m256i power =
        _mm256_slli_epi32(_mm256_sub_epi32(_mm256_set1_epi32(127 - 32), e), 23); /* 2^-(32 + e) */
    const __m256 below =
        _mm256_mul_ps(floats8(_mm256_mullo_epi32(m, inverse)), _mm256_castsi256_ps(power));
    const __m256 above =
        _mm256_mul_ps(_mm256_cvtepi32_ps(inverse), _mm256_set1_ps(1.0f / 65536.0f));
    const __m256 negative = _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ);
    return _mm256_mul_ps(x, _mm256_blendv_ps(above, below, negative));
}

void sf_x86_avx2_silu(const float *x, uint32_t n, float *out) {
    uint32_t i = 0;
    for (; i + 8u <= n; i += 8u) {
        _mm256_storeu_ps(out + i, silu8(_mm256_loadu_ps(x + i)));
    }
    for (; i < n; i++) {
        out[i] = x[i] * sf_x86_avx2_sigmoid(x[i]);
    }
}
