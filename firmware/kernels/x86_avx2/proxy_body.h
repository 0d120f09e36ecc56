/* Rows of proxies: eight groups at a time, and what is left of four rows together. A tier that
 * includes this has SF_NAME(kernel), its name of a kernel, and products(): those of a group's
 * weights without sign and its activations in the order of place(), 2^SHIFT times as large, four
 * in each of eight sums. */
#include "x86_avx2/dot_groups.h"

enum { CHUNK = 64 }; /* groups whose activations are at hand */

/* Activations i, i + 8, i + 16 and i + 24 side by side: they meet the same bit of the four bytes of
 * a word, which so need not be spread. */
SF_INLINE void place(const int8_t *q, int8_t *to) {
    const __m128i pair = _mm_set_epi8(15, 7, 14, 6, 13, 5, 12, 4, 11, 3, 10, 2, 9, 1, 8, 0);
    const __m128i a = _mm_shuffle_epi8(sf_load128(q), pair);
    const __m128i b = _mm_shuffle_epi8(sf_load128(q + 16), pair);
    sf_store256(to, _mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b)));
}

/* Sums of eight groups with their shifts, less what weights have too much. */
SF_INLINE __m256i signed_sums(const __m256i *s, uint32_t bits, __m256i k, __m256i sum) {
    const int32_t less = bits == 1u ? 1 : (int32_t)(1u << (bits - 1u)) - 1;
    const __m256i all = _mm256_srai_epi32(of_both(by_group(s), by_group(s + 4)), SHIFT);
    const __m256i shift = _mm256_add_epi32(k, _mm256_set1_epi32(bits == 1u ? 1 : 0));
    return _mm256_sub_epi32(_mm256_sllv_epi32(all, shift),
                            _mm256_mullo_epi32(sum, _mm256_set1_epi32(less)));
}

/* Eight groups from g on, whose activations are q. */
SF_INLINE __m256i eight_groups(const uint8_t *w, uint32_t at, uint32_t bits, const sf_bfp *x,
                               uint32_t g, const int8_t *q) {
    __m256i s[8];
    for (uint32_t i = 0; i < 8u; i++) {
        s[i] = products(w + 4u * bits * (g + i), bits, sf_load256(q + SF_GROUP * i));
    }
    const __m256i t =
        signed_sums(s, bits, _mm256_cvtepu8_epi32(sf_load64(x->k + g)), sf_load256(x->sum + g));
    return scaled(t, sf_halves8(sf_load128(w + at + 2u * g)));
}

/* Groups g and g + 1 of four rows, or g alone. */
SF_INLINE void two_groups(const uint8_t *const *w, uint32_t at, uint32_t bits, const sf_bfp *x,
                          uint32_t g, const int8_t *q, four_sums *sums) {
    const bool two = g + 1u < x->groups;
    const uint32_t h = two ? g + 1u : g;
    const __m256i a = sf_load256(q), b = sf_load256(q + SF_GROUP * (h - g));
    __m256i s[8];
    __m128i d[4];
    for (uint32_t i = 0; i < 4u; i++) {
        const uint8_t *scales = w[i] + at + 2u * g;
        s[i] = products(w[i] + 4u * bits * g, bits, a);
        s[i + 4u] = products(w[i] + 4u * bits * h, bits, b);
        d[i] = _mm_cvtsi32_si128((int32_t)(two ? sf_load32(scales) : sf_load16(scales)));
    }
    const __m256i k = _mm256_set_m128i(_mm_set1_epi32(x->k[h]), _mm_set1_epi32(x->k[g]));
    const __m256i sum = _mm256_set_m128i(_mm_set1_epi32(x->sum[h]), _mm_set1_epi32(x->sum[g]));
    add_scaled(sums, signed_sums(s, bits, k, sum), turned_halves(d));
}

SF_INLINE void proxy_rows(const uint8_t *const *row, uint32_t n, uint32_t bits, const sf_bfp *x,
                          float *out) {
    const uint32_t at = x->groups * bits * 4u;
    int64_t sum[SF_TILE + 3u] = {0};
    int8_t q[CHUNK * SF_GROUP];
    for (uint32_t from = 0; from < x->groups; from += CHUNK) {
        const uint32_t left = x->groups - from, some = left < CHUNK ? left : CHUNK;
        const uint32_t whole = some / 8u * 8u;
        for (uint32_t g = 0; g < some; g++) {
            place(x->q + SF_GROUP * (from + g), q + SF_GROUP * g);
        }
        for (uint32_t first = 0; first < n; first += 4u) {
            four_sums more = {_mm256_setzero_si256(), _mm256_setzero_si256()};
            const uint8_t *w[4];
            __m256i total[4];
            for (uint32_t r = 0; r < 4u; r++) {
                w[r] = row[first + r < n ? first + r : first];
                total[r] = _mm256_setzero_si256();
                for (uint32_t g = 0; g < whole; g += 8u) {
                    total[r] = _mm256_add_epi64(
                        total[r], eight_groups(w[r], at, bits, x, from + g, q + SF_GROUP * g));
                }
            }
            for (uint32_t g = whole; g < some; g += 2u) {
                two_groups(w, at, bits, x, from + g, q + SF_GROUP * g, &more);
            }
            sf_store256(sum + first,
                        _mm256_add_epi64(sf_load256(sum + first), joined(total, &more)));
        }
    }
    for (uint32_t r = 0; r < n; r++) {
        out[r] = sf_sum_to_float(sum[r], x->s);
    }
}

void SF_NAME(dot_proxy)(const uint8_t *const *row, uint32_t n, uint32_t bits, const sf_bfp *x,
                        float *out) {
    switch (bits) {
    case 1: proxy_rows(row, n, 1, x, out); break;
    case 2: proxy_rows(row, n, 2, x, out); break;
    case 3: proxy_rows(row, n, 3, x, out); break;
    default: proxy_rows(row, n, 4, x, out); break;
    }
}
