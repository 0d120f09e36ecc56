/* Columns that carry their scales with AVX-512 VNNI. */
#include "x86_vnni.h"

#include "x86_avx2/s4_eights.h"

SF_INLINE __m512i factors16(__mmask16 live, const uint8_t *scales, float x) {
    const __m512 d = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(live, scales));
    const __m512 t = _mm512_fmadd_ps(d, _mm512_set1_ps(x), _mm512_set1_ps(0.5f));
    return _mm512_cvt_roundps_epi32(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}

SF_INLINE void make_factors(const sf_s4_eight *c, uint32_t pairs, uint32_t at, uint32_t groups,
                            sf_s4_factors *f) {
    for (uint32_t g = 0; g < groups; g += 16u) {
        const uint32_t left = groups - g < 16u ? groups - g : 16u;
        const __mmask16 live = (__mmask16)((1u << left) - 1u);
        __m512i total = _mm512_setzero_si512();
        for (uint32_t r = 0; r < pairs; r++) {
            const uint8_t *p = c->col[2u * r] + at + 2u * g, *q = c->col[2u * r + 1u] + at + 2u * g;
            const __m512i t = factors16(live, p, c->x[2u * r]);
            const __m512i u = factors16(live, q, c->x[2u * r + 1u]);
            _mm512_storeu_si512(f->pair[r] + g,
                                _mm512_mask_blend_epi16(0xAAAAAAAAu, t, _mm512_slli_epi32(u, 16)));
            total = _mm512_add_epi32(total, _mm512_add_epi32(t, u));
        }
        _mm512_storeu_si512(f->offset + g, _mm512_slli_epi32(total, 3));
    }
}

/* A number of each of four groups in all of its lane. */
SF_INLINE __m512i of_lane(const int32_t *p) {
    return _mm512_permutexvar_epi32(
        _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0),
        _mm512_castsi128_si512(sf_load128(p)));
}

/* As two_groups of AVX2. */
SF_INLINE void four_groups(const sf_s4_eight *c, uint32_t pairs, uint32_t at, uint32_t live,
                           const sf_s4_factors *f, uint32_t g, int32_t *y) {
    const __mmask64 bytes = UINT64_MAX >> (64u - 16u * live);
    const __m512i offset = _mm512_sub_epi32(_mm512_setzero_si512(), of_lane(f->offset + g));
    __m512i s[2][4], out[2][4];
    for (uint32_t i = 0; i < 2u; i++) {
        s[i][0] = s[i][3] = offset;
        s[i][1] = _mm512_slli_epi32(offset, 4);
        s[i][2] = _mm512_slli_epi32(offset, 8);
    }
    for (uint32_t r = 0; r < pairs; r++) {
        const __m512i v = _mm512_maskz_loadu_epi8(bytes, c->col[2u * r] + at);
        const __m512i w = _mm512_maskz_loadu_epi8(bytes, c->col[2u * r + 1u] + at);
        const __m512i x = of_lane(f->pair[r] + g);
        const __m512i t[2] = {_mm512_unpacklo_epi16(v, w), _mm512_unpackhi_epi16(v, w)};
        for (uint32_t i = 0; i < 2u; i++) {
            const __m512i nibble[4] = {_mm512_and_si512(t[i], _mm512_set1_epi16(0xF)),
                                       _mm512_and_si512(t[i], _mm512_set1_epi16(0xF0)),
                                       _mm512_and_si512(t[i], _mm512_set1_epi16(0xF00)),
                                       _mm512_srli_epi16(t[i], 12)};
            for (uint32_t k = 0; k < 4u; k++) {
                s[i][k] = _mm512_dpwssd_epi32(s[i][k], nibble[k], x);
            }
        }
    }
    for (uint32_t i = 0; i < 2u; i++) { /* outputs 8 i on, and those 16 behind */
        const __m512i third = _mm512_srai_epi32(s[i][2], 8), second = _mm512_srai_epi32(s[i][1], 4);
        out[0][2u * i] = _mm512_unpacklo_epi32(s[i][0], third);
        out[0][2u * i + 1u] = _mm512_unpackhi_epi32(s[i][0], third);
        out[1][2u * i] = _mm512_unpacklo_epi32(second, s[i][3]);
        out[1][2u * i + 1u] = _mm512_unpackhi_epi32(second, s[i][3]);
    }
    sf_add_turned(out[0], live, y);
    sf_add_turned(out[1], live, y + SF_GROUP / 2u);
}

void sf_x86_vnni_axpy_s4(const uint8_t *const *col, const int32_t *a, uint32_t n, uint32_t dim,
                         uint32_t shift, int32_t *acc) {
    sf_s4_eights(col, a, n, dim, shift, acc, 4, make_factors, four_groups);
}
