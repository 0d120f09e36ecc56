/* Columns that carry their scales with AVX2. */
#include "s4_eights.h"

/* Halves of eight groups, or of what is left of them. */
SF_INLINE __m256 halves_left(const uint8_t *p, uint32_t n) {
    uint16_t h[8] = {0};
    if (n >= 8u) {
        return _mm256_cvtph_ps(sf_load128(p));
    }
    memcpy(h, p, n * sizeof h[0]);
    return _mm256_cvtph_ps(sf_load128(h));
}

SF_INLINE __m256i factors8(__m256 halves, float x) {
    const __m256 t = _mm256_mul_ps(halves, _mm256_set1_ps(x));
    return _mm256_cvtps_epi32(_mm256_floor_ps(_mm256_add_ps(t, _mm256_set1_ps(0.5f))));
}

SF_INLINE void make_factors(const sf_s4_eight *c, uint32_t pairs, uint32_t at, uint32_t groups,
                            sf_s4_factors *f) {
    for (uint32_t next = 0; next < groups; next += 8u) {
        const uint32_t last = groups < 8u ? 0 : groups - 8u; /* takes some again */
        const uint32_t g = next < last ? next : last;
        __m256i total = _mm256_setzero_si256();
        for (uint32_t r = 0; r < pairs; r++) {
            const uint8_t *p = c->col[2u * r] + at + 2u * g, *q = c->col[2u * r + 1u] + at + 2u * g;
            const __m256i t = factors8(halves_left(p, groups - g), c->x[2u * r]);
            const __m256i u = factors8(halves_left(q, groups - g), c->x[2u * r + 1u]);
            sf_store256(f->pair[r] + g, _mm256_blend_epi16(t, _mm256_slli_epi32(u, 16), 0xAA));
            total = _mm256_add_epi32(total, _mm256_add_epi32(t, u));
        }
        sf_store256(f->offset + g, _mm256_slli_epi32(total, 3));
    }
}

/* A number of each of two groups in all of its lane. */
SF_INLINE __m256i of_lane(const int32_t *p) {
    return _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(sf_load64(p)),
                                       _mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0));
}

/* Words of two columns side by side have four nibbles each, of every other output and of those 16
 * behind. The middle two are not moved down: the sums of eight columns times 256 have 32 bits. */
SF_INLINE void two_groups(const sf_s4_eight *c, uint32_t pairs, uint32_t at, uint32_t live,
                          const sf_s4_factors *f, uint32_t g, int32_t *y) {
    const __m256i offset = _mm256_sub_epi32(_mm256_setzero_si256(), of_lane(f->offset + g));
    __m256i s[2][4];
    for (uint32_t i = 0; i < 2u; i++) {
        s[i][0] = s[i][3] = offset;
        s[i][1] = _mm256_slli_epi32(offset, 4);
        s[i][2] = _mm256_slli_epi32(offset, 8);
    }
    for (uint32_t r = 0; r < pairs; r++) {
        const uint8_t *p = c->col[2u * r] + at, *q = c->col[2u * r + 1u] + at;
        const __m256i v = live == 2u ? sf_load256(p) : _mm256_zextsi128_si256(sf_load128(p));
        const __m256i w = live == 2u ? sf_load256(q) : _mm256_zextsi128_si256(sf_load128(q));
        const __m256i x = of_lane(f->pair[r] + g);
        const __m256i t[2] = {_mm256_unpacklo_epi16(v, w), _mm256_unpackhi_epi16(v, w)};
        for (uint32_t i = 0; i < 2u; i++) {
            const __m256i nibble[4] = {_mm256_and_si256(t[i], _mm256_set1_epi16(0xF)),
                                       _mm256_and_si256(t[i], _mm256_set1_epi16(0xF0)),
                                       _mm256_and_si256(t[i], _mm256_set1_epi16(0xF00)),
                                       _mm256_srli_epi16(t[i], 12)};
            for (uint32_t k = 0; k < 4u; k++) {
                s[i][k] = _mm256_add_epi32(s[i][k], _mm256_madd_epi16(nibble[k], x));
            }
        }
    }
    for (uint32_t i = 0; i < 4u; i++) { /* outputs 8 i on */
        const __m256i *sums = s[i % 2u];
        const __m256i even = i < 2u ? sums[0] : _mm256_srai_epi32(sums[1], 4);
        const __m256i odd = i < 2u ? _mm256_srai_epi32(sums[2], 8) : sums[3];
        const __m256i lo = _mm256_unpacklo_epi32(even, odd), hi = _mm256_unpackhi_epi32(even, odd);
        sf_add8(y + 8u * i, _mm256_permute2x128_si256(lo, hi, 0x20));
        if (live == 2u) {
            sf_add8(y + SF_GROUP + 8u * i, _mm256_permute2x128_si256(lo, hi, 0x31));
        }
    }
}

void sf_x86_avx2_axpy_s4(const uint8_t *const *col, const int32_t *a, uint32_t n, uint32_t dim,
                         uint32_t shift, int32_t *acc) {
    sf_s4_eights(col, a, n, dim, shift, acc, 2, make_factors, two_groups);
}
