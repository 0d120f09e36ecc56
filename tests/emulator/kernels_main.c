/* Compares every kernel of a tier with plain C on random and on extreme values. */
#include "random32.h"
#include "sf_flash.h"

#include <stddef.h>

/* Tiers chosen at run time take rows wider than 64 groups in parts. */
#ifdef SF_RUN_TIME_TIERS
enum { MAX_DIM = 4800 };
#else
enum { MAX_DIM = 640 };
#endif
enum { GROUPS = MAX_DIM / 32, POSITIONS = 600, ROUNDS = 60 };
/* Kernels take SF_TILE rows, or SF_GROUP columns if those are more. */
enum { ROWS = SF_TILE > SF_GROUP ? SF_TILE : SF_GROUP };
/* Columns of s4: those of several calls' worth lie in the same rows. */
enum { OWN = SF_OWN < 80u ? SF_OWN : 80u };

static uint32_t below(uint32_t n) {
    return random32() % n;
}

/* 0: random bytes, 1 and 2: the ends of the range, 3: mixed ends */
static void fill(uint8_t *p, uint32_t n, uint32_t kind, uint8_t low, uint8_t high) {
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t byte = (uint8_t)random32();
        p[i] = kind == 0 ? byte : (kind == 1 ? low : (kind == 2 ? high : (byte & 1u ? low : high)));
    }
}

/* A half of magnitude below 64, or zero, or subnormal. */
static uint16_t half(void) {
    const uint32_t h = random32();
    const uint32_t e = below(8) == 0 ? 0 : 1u + below(20);
    return (uint16_t)((h & 0x8000u) | e << 10 | (h & 0x3FFu));
}

static float value(uint32_t spread) {
    const uint32_t bits = random32();
    const uint32_t e = 127u + below(spread) - spread / 2u;
    return below(9) == 0 ? 0.0f : sf_from_bits((bits & 0x807FFFFFu) | e << 23);
}

enum { ROW_BYTES = MAX_DIM + 8 * GROUPS };
static _Alignas(16) uint8_t place[ROWS][ROW_BYTES];
static uint8_t *rows[ROWS];
static _Alignas(16) uint8_t scales[4 * MAX_DIM];
static _Alignas(16) int8_t q[2][MAX_DIM];
static int32_t sum[2][GROUPS];
static uint8_t k[2][GROUPS];
static float x[MAX_DIM], out[2][MAX_DIM];
static int32_t isum[2][MAX_DIM];
static int64_t acc[2][MAX_DIM];
static int32_t factor[OWN];
static _Alignas(16) int8_t keys[POSITIONS][128], vals[POSITIONS][128];
static int8_t ks[POSITIONS][2], vs[POSITIONS][2];
static _Alignas(8) int16_t q16[2][2 * 128];
static _Alignas(8) int32_t score[2][2 * POSITIONS];

/* Rows lie side by side in either direction; or one lies in another memory, as a resident row and
 * one of the ring do. A kernel that asks ahead must not take what lies between for rows. */
static void place_rows(uint32_t order, uint8_t *elsewhere) {
    for (uint32_t r = 0; r < ROWS; r++) {
        rows[r] = place[order == 1u ? ROWS - 1u - r : r];
    }
    if (order == 2u) {
        rows[1] = elsewhere;
    }
}

static void rows_and_x(uint32_t groups, uint32_t width, uint32_t kind) {
    for (uint32_t r = 0; r < ROWS; r++) {
        fill(rows[r], groups * width, kind, 0x80, 0x7F);
        for (uint32_t i = 0; i < groups * 2u; i++) {
            const uint16_t h = half();
            memcpy(rows[r] + groups * width + 2u * i, &h, sizeof h);
        }
    }
    fill((uint8_t *)q[0], groups * 32u, kind, (uint8_t)-127, 127);
    for (uint32_t g = 0; g < groups; g++) {
        int32_t total = 0;
        k[0][g] = (uint8_t)below(13);
        for (uint32_t i = 0; i < 32; i++) {
            q[0][32u * g + i] = q[0][32u * g + i] == -128 ? -127 : q[0][32u * g + i];
            total += q[0][32u * g + i];
        }
        sum[0][g] = total * (1 << k[0][g]);
    }
}

/* Two groups at the limits of their own loop: exponents up to 12 apart, scales about 0.5, sums
 * about 2^56. */
static bool two_groups(uint32_t kind) {
    const uint8_t *p[ROWS];
    const sf_bfp v = {q[0], sum[0], k[0], 2, (int32_t)below(120) - 40};
    const uint32_t n = 1u + below(SF_TILE), near = below(3), top = 10u + below(8);
    for (uint32_t r = 0; r < ROWS; r++) {
        p[r] = rows[r];
    }
    rows_and_x(2, 32, kind);
    const uint32_t was = k[0][1];
    k[0][1] = (uint8_t)(near == 0 ? k[0][0] : (near == 1 ? (k[0][0] + 8u) % 13u : was));
    sum[0][1] = sum[0][1] / (1 << was) * (1 << k[0][1]);
    for (uint32_t r = 0; r < ROWS; r++) {
        for (uint32_t i = 0; i < 2; i++) {
            const uint16_t h = (uint16_t)((half() & 0x83FFu) | (top - below(6)) << 10);
            memcpy(rows[r] + 64u + 2u * i, &h, sizeof h);
        }
    }
    sf_dot_q8(p, n, &v, out[0]);
    sf_plain_dot_q8(p, n, &v, out[1]);
    return memcmp(out[0], out[1], n * sizeof(float)) == 0;
}

typedef void (*dot_kernel)(const uint8_t *const *row, uint32_t n, const sf_bfp *v, float *y);
typedef void (*dot2_kernel)(const uint8_t *const *row, uint32_t n, const sf_bfp *v,
                            float *const *y);

/* Rows with one vector, and with two. */
static bool same_dots(const uint8_t *const *p, uint32_t n, const sf_bfp *v, dot_kernel dot,
                      dot2_kernel dot2, dot_kernel plain) {
    float *const y[2] = {out[0], out[0] + ROWS};
    dot(p, n, v, out[0]);
    plain(p, n, v, out[1]);
    if (memcmp(out[0], out[1], n * sizeof(float)) != 0) {
        return false;
    }
    dot2(p, n, v, y);
    plain(p, n, v + 1, out[1] + ROWS);
    return memcmp(y[0], out[1], n * sizeof(float)) == 0 &&
           memcmp(y[1], out[1] + ROWS, n * sizeof(float)) == 0;
}

static bool dots(uint32_t kind) {
    const uint32_t groups = 1u + below(below(8) == 0 ? GROUPS : 20u), n = 1u + below(SF_TILE);
    const uint8_t *p[ROWS];
    const sf_bfp v[2] = {{q[0], sum[0], k[0], groups, (int32_t)below(120) - 40},
                         {q[1], sum[1], k[1], groups, (int32_t)below(120) - 40}};
    for (uint32_t r = 0; r < ROWS; r++) {
        p[r] = rows[r];
    }
    rows_and_x(groups, 16, kind);
    memcpy(q[1], q[0], sizeof q[0]);
    memcpy(k[1], k[0], sizeof k[0]);
    memcpy(sum[1], sum[0], sizeof sum[0]);
    rows_and_x(groups, 16, kind);
    if (!same_dots(p, n, v, sf_dot_q4, sf_dot2_q4, sf_plain_dot_q4) ||
        !same_dots(p, n, v, sf_dot_s4, sf_dot2_s4, sf_plain_dot_s4)) {
        return false;
    }
    rows_and_x(groups, 32, kind);
    return same_dots(p, n, v, sf_dot_q8, sf_dot2_q8, sf_plain_dot_q8);
}

/* Rows of r8: in front of the halves of a group minus the sum of the products of even weights four
 * apart, behind the last one the scale. */
static void finish_r8(uint8_t *row, uint32_t groups) {
    for (uint32_t g = 0; g < groups; g++, row += 36) {
        const int8_t *w = (const int8_t *)row + 4;
        int32_t left = 0;
        for (uint32_t i = 0; i < 32; i += 8u) {
            left -= w[i] * w[i + 4u] + w[i + 2u] * w[i + 6u];
        }
        memcpy(row, &left, sizeof left);
    }
    const float d = sf_from_bits((random32() & 0x807FFFFFu) | (103u + below(30)) << 23);
    memcpy(row, &d, sizeof d);
}

/* Rows with one scale: two groups of near and of far exponents, and any number. */
static bool row_scales(uint32_t kind) {
    const uint32_t groups = below(2) == 0 ? 2u : 1u + below(GROUPS), n = 1u + below(SF_TILE);
    const uint32_t spread = 1u + below(13);
    const uint8_t *p[ROWS];
    const sf_bfp v = {q[0], sum[0], k[0], groups, (int32_t)below(120) - 40};
    rows_and_x(groups, 36, kind);
    for (uint32_t g = 0; g < groups; g++) {
        k[0][g] = (uint8_t)(k[0][g] % spread);
    }
    for (uint32_t r = 0; r < ROWS; r++) {
        finish_r8(rows[r], groups);
        p[r] = rows[r];
    }
    sf_dot_r8(p, n, &v, out[0]);
    sf_plain_dot_r8(p, n, &v, out[1]);
    if (memcmp(out[0], out[1], n * sizeof(float)) != 0) {
        return false;
    }
    const uint32_t few = below(SF_GROUP + 1u), shift = below(13);
    memcpy(acc[1], acc[0], sizeof acc[0]);
    sf_axpy_r8(p, q[0], few, groups * 32u, shift, acc[0]);
    sf_plain_axpy_r8(p, q[0], few, groups * 32u, shift, acc[1]);
    return memcmp(acc[0], acc[1], sizeof acc[0]) == 0;
}

/* Rows and columns whose scales follow them; shifts as small as the scales allow, and larger. */
static bool own_scales(uint32_t kind) {
    const uint32_t groups = 1u + below(GROUPS), n = 1u + below(SF_TILE), shift = 34u - below(18);
    const uint32_t columns = 1u + below(OWN);
    const uint8_t *p[ROWS], *col[OWN];
    const sf_bfp v = {q[0], sum[0], k[0], groups, (int32_t)below(120) - 40};
    rows_and_x(groups, 16, kind);
    for (uint32_t r = 0; r < ROWS; r++) {
        p[r] = rows[r];
        for (uint32_t g = 0; g < groups; g++) {
            const uint32_t any = half(), e = any >> 10 & 31u, most = shift - 14u;
            const uint16_t h = (uint16_t)(e > most ? (any & 0x83FFu) | most << 10 : any);
            memcpy(rows[r] + groups * 16u + 2u * g, &h, sizeof h);
        }
    }
    sf_dot_s4(p, n, &v, out[0]);
    sf_plain_dot_s4(p, n, &v, out[1]);
    if (memcmp(out[0], out[1], n * sizeof(float)) != 0) {
        return false;
    }
    for (uint32_t r = 0; r < OWN; r++) {
        const int32_t most = 127, any = (int32_t)below(2u * 127u + 1u) - most;
        const int32_t in = kind == 0 ? any : (kind == 1 ? -most : (kind == 2 ? most : any % 3));
        factor[r] = in * (int32_t)(1u << (kind == 0 || kind == 3 ? below(13) : 12u));
        col[r] = rows[r % ROWS];
    }
    for (uint32_t i = 0; i < groups * 32u; i++) {
        isum[0][i] = isum[1][i] = (int32_t)below(100000) - 50000;
    }
    sf_axpy_s4(col, factor, columns, groups * 32u, shift, isum[0]);
    sf_plain_axpy_s4(col, factor, columns, groups * 32u, shift, isum[1]);
    return memcmp(isum[0], isum[1], groups * 32u * sizeof(int32_t)) == 0;
}

/* Proxies of 1 to 4 bits, and signs. */
static bool few_bits(uint32_t kind) {
    const uint32_t groups = 1u + below(GROUPS), n = 1u + below(SF_TILE), bits = 1u + below(4);
    const uint8_t *p[ROWS];
    const sf_bfp v = {q[0], sum[0], k[0], groups, (int32_t)below(120) - 40};
    uint32_t sign[GROUPS];
    rows_and_x(groups, 4u * bits, kind);
    for (uint32_t r = 0; r < ROWS; r++) {
        fill(rows[r], groups * 4u * bits, kind, 0, 0xFF);
        p[r] = rows[r];
    }
    sf_dot_proxy(p, n, bits, &v, out[0]);
    sf_plain_dot_proxy(p, n, bits, &v, out[1]);
    if (memcmp(out[0], out[1], n * sizeof(float)) != 0) {
        return false;
    }
    fill((uint8_t *)sign, sizeof sign, kind, 0, 0xFF);
    sf_dot_signs(p, n, sign, groups, out[0]);
    sf_plain_dot_signs(p, n, sign, groups, out[1]);
    return memcmp(out[0], out[1], n * sizeof(float)) == 0;
}

/* The largest of values among which some are equal. */
static bool picked(uint32_t kind) {
    static uint16_t pick[2][MAX_DIM];
    const uint32_t n = 1u + below(MAX_DIM), most = 1u + below(n);
    for (uint32_t i = 0; i < n; i++) {
        x[i] = kind == 0 ? value(60) : (kind == 1 ? 0.0f : (float)((int32_t)below(20) - 10));
    }
    sf_pick_largest(x, n, most, pick[0]);
    sf_plain_pick_largest(x, n, most, pick[1]);
    return memcmp(pick[0], pick[1], most * sizeof pick[0][0]) == 0;
}

/* What a mask keeps: nothing, some, all; values at the limit, zeros of both signs. */
static bool kept(uint32_t kind) {
    static uint16_t pick[2][MAX_DIM];
    const uint32_t n = 1u + below(MAX_DIM);
    const float limit = kind == 1 ? 0.0f : (kind == 2 ? 1e30f : 3.0f);
    for (uint32_t i = 0; i < n; i++) {
        x[i] = kind == 0 ? value(8) : (float)((int32_t)below(12) - 6) * (below(2) ? 1.0f : -1.0f);
        out[0][i] = out[1][i] = x[i];
    }
    const uint32_t left = sf_keep_reaching(out[0], n, limit, pick[0]);
    return left == sf_plain_keep_reaching(out[1], n, limit, pick[1]) &&
           memcmp(out[0], out[1], n * sizeof(float)) == 0 &&
           memcmp(pick[0], pick[1], left * sizeof pick[0][0]) == 0;
}

static bool rows_as_floats(uint32_t kind) {
    const uint32_t groups = 1u + below(GROUPS), dim = groups * SF_GROUP;
    rows_and_x(groups, 16, kind);
    sf_row_q4(rows[0], dim, out[0]);
    sf_plain_row_q4(rows[0], dim, out[1]);
    if (memcmp(out[0], out[1], dim * sizeof(float)) != 0) {
        return false;
    }
    sf_row_s4(rows[0], dim, out[0]);
    sf_plain_row_s4(rows[0], dim, out[1]);
    if (memcmp(out[0], out[1], dim * sizeof(float)) != 0) {
        return false;
    }
    rows_and_x(groups, 32, kind);
    sf_row_q8(rows[0], dim, out[0]);
    sf_plain_row_q8(rows[0], dim, out[1]);
    return memcmp(out[0], out[1], dim * sizeof(float)) == 0;
}

static bool rotated(void) {
    const uint32_t half = 1u + below(64), pos = random32() >> below(32);
    uint32_t inc[64];
    for (uint32_t i = 0; i < half; i++) {
        inc[i] = random32();
        x[i] = value(60);
        x[half + i] = value(60);
    }
    sf_rope_angles(inc, half, pos, out[0]);
    sf_plain_rope_angles(inc, half, pos, out[1]);
    if (memcmp(out[0], out[1], 2u * half * sizeof(float)) != 0) {
        return false;
    }
    memcpy(x + 2u * half, x, 2u * half * sizeof(float));
    sf_rope(x, out[0], half);
    sf_plain_rope(x + 2u * half, out[0], half);
    return memcmp(x, x + 2u * half, 2u * half * sizeof(float)) == 0;
}

/* The sums of a whole block and their scales at once, and sums as floats. */
static bool blocks(const uint8_t *const *p, uint32_t n, uint32_t dim, uint32_t shift,
                   int32_t total) {
    const uint32_t some = n < SF_GROUP ? n : SF_GROUP, later = below(some + 1u);
    const uint32_t outputs = dim - 1u - below(SF_GROUP - 1u);
    const int32_t s = (int32_t)below(120) - 40;
    const sf_block b = {p, q[0], some, scales, shift, total, p + some - later, later, scales};
    if (sf_block_q4 != NULL) {
        sf_block_q4(&b, dim, acc[0]);
        sf_plain_axpy_q4(p, q[0], some, dim, isum[1]);
        sf_plain_scale_q4(scales, shift, total, dim, isum[1], acc[1]);
    }
    out[0][outputs] = out[1][outputs] = 1.0f; /* what is behind stays */
    sf_floats(acc[0], outputs, s, out[0]);
    sf_plain_floats(acc[1], outputs, s, out[1]);
    return memcmp(out[0], out[1], (outputs + 1u) * sizeof(float)) == 0 &&
           memcmp(acc[0], acc[1], dim * sizeof acc[0][0]) == 0;
}

static bool columns(uint32_t kind) {
    const uint32_t dim = 32u * (1u + below(GROUPS)), n = 1u + below(ROWS);
    const uint32_t shift = below(13);
    const uint8_t *p[ROWS];
    for (uint32_t r = 0; r < ROWS; r++) {
        p[r] = rows[r];
        fill(rows[r], dim, kind, 0x80, 0x7F);
    }
    fill((uint8_t *)q[0], ROWS, kind, (uint8_t)-127, 127);
    for (uint32_t i = 0; i < dim; i++) {
        isum[0][i] = isum[1][i] = (int32_t)below(100000) - 50000;
        acc[0][i] = acc[1][i] = (int64_t)random32() * 1000 - 2000000000000;
        const uint16_t a = half(), b = half();
        memcpy(scales + 4u * i, &a, sizeof a);
        memcpy(scales + 4u * i + 2u, &b, sizeof b);
    }
    sf_axpy_q4(p, q[0], n, dim, isum[0]);
    sf_plain_axpy_q4(p, q[0], n, dim, isum[1]);
    if (memcmp(isum[0], isum[1], dim * sizeof(int32_t)) != 0) {
        return false;
    }
    const int32_t total = ((int32_t)below(8129) - 4064) * (1 << shift);
    sf_scale_q4(scales, shift, total, dim, isum[0], acc[0]);
    sf_plain_scale_q4(scales, shift, total, dim, isum[1], acc[1]);
    if (!blocks(p, n, dim, shift, total)) {
        return false;
    }
    sf_axpy_q8(p, q[0], n, dim, isum[0]);
    sf_plain_axpy_q8(p, q[0], n, dim, isum[1]);
    if (memcmp(isum[0], isum[1], dim * sizeof(int32_t)) != 0) {
        return false;
    }
    sf_scale_q8(scales, shift, 0, dim, isum[0], acc[0]);
    sf_plain_scale_q8(scales, shift, 0, dim, isum[1], acc[1]);
    return memcmp(acc[0], acc[1], dim * sizeof(int64_t)) == 0 &&
           memcmp(isum[0], isum[1], dim * sizeof(int32_t)) == 0;
}

static bool quantized(uint32_t kind) {
    const uint32_t n = 1u + below(MAX_DIM);
    sf_bfp a = {q[0], sum[0], k[0], 0, 0}, b = {q[1], sum[1], k[1], 0, 0};
    for (uint32_t i = 0; i < n; i++) {
        x[i] = kind == 0 ? value(60) : (kind == 1 ? 0.0f : value(3));
        if (kind == 3) { /* at the edge of rounding up to 128 */
            x[i] = (i & 1u ? 1.0f : -1.0f) * (127.5f - (float)below(3) / 1048576.0f);
        }
    }
    sf_quantize(x, n, &a);
    sf_plain_quantize(x, n, &b);
    if (a.groups != b.groups || a.s != b.s || memcmp(q[0], q[1], a.groups * 32u) != 0 ||
        memcmp(k[0], k[1], a.groups) != 0 || memcmp(sum[0], sum[1], a.groups * 4u) != 0) {
        return false;
    }
    const uint32_t m = n < 128u ? n : 128u;
    return sf_quantize8(x, m, q[0]) == sf_plain_quantize8(x, m, q[1]) &&
           memcmp(q[0], q[1], m) == 0 &&
           sf_quantize16(x, m, q16[0]) == sf_plain_quantize16(x, m, q16[1]) &&
           memcmp(q16[0], q16[1], 2u * m) == 0;
}

static bool attention(uint32_t kind) {
    static const uint8_t dims[] = {4, 8, 16, 32, 64, 96, 128};
    const uint32_t dim = dims[below(sizeof dims)];
    const uint32_t first = below(5), n = 1u + below(kind == 0 ? POSITIONS - 5u : 20u);
    fill((uint8_t *)keys, sizeof keys, kind, (uint8_t)-127, 127);
    fill((uint8_t *)vals, sizeof vals, kind, (uint8_t)-127, 127);
    for (uint32_t t = 0; t < POSITIONS; t++) {
        ks[t][0] = (int8_t)(3u + below(8));
        vs[t][0] = (int8_t)(below(30)) - 10;
    }
    const uint32_t heads = 1u + below(MAX_DIM / dim < 4u ? MAX_DIM / dim : 4u);
    /* Large scores shift their differences left, small ones their factor right. */
    const float far = sf_pow2((int32_t)below(24) - 12);
    for (uint32_t i = 0; i < heads * dim; i++) {
        x[i] = far * value(kind == 0 ? 8 : 3);
    }
    const sf_attn a = {keys[0],
                       vals[0],
                       ks[0],
                       vs[0],
                       128,
                       2,
                       first,
                       first + n - 1u,
                       dim,
                       3 - (int32_t)below(4),
                       -10 - (int32_t)below(4),
                       0.25f};
    uint32_t beyond[2]; /* behind the scores of two heads at an even number of positions */
    memset(beyond, 0x5A, sizeof beyond);
    memcpy(score[0] + 2u * (n + n % 2u), beyond, sizeof beyond);
    sf_attention(&a, heads, x, q16[0], score[0], isum[0], out[0]);
    sf_plain_attention(&a, heads, x, q16[1], score[1], isum[1], out[1]);
    return memcmp(out[0], out[1], heads * dim * sizeof(float)) == 0 &&
           memcmp(score[0] + 2u * (n + n % 2u), beyond, sizeof beyond) == 0;
}

static bool conversions(uint32_t kind) {
    (void)kind;
    for (uint32_t i = 0; i < 50; i++) {
        const int64_t wide = (int64_t)((uint64_t)random32() << 32 | random32());
        const int64_t v = i == 0 ? 0 : wide >> below(64);
        const int32_t s = (int32_t)below(121) - 40;
        if (sf_bits(sf_sum_to_float(v, s)) != sf_bits(sf_plain_sum_to_float(v, s))) {
            return false;
        }
    }
    return true;
}

static bool elementwise(uint32_t kind) {
    const uint32_t n = 1u + below(MAX_DIM / 2);
    for (uint32_t i = 0; i < n; i++) {
        x[i] = kind == 1 ? 0.0f : value(kind == 0 ? 60 : 12);
        x[MAX_DIM / 2 + i] = value(4);
        if (sf_bits(sf_sigmoid(x[i])) != sf_bits(sf_plain_sigmoid(x[i]))) {
            return false;
        }
    }
    sf_silu(x, n, out[0]);
    sf_plain_silu(x, n, out[1]);
    if (memcmp(out[0], out[1], n * sizeof(float)) != 0) {
        return false;
    }
    sf_gelu_tanh(x, n, out[0]);
    sf_plain_gelu_tanh(x, n, out[1]);
    if (memcmp(out[0], out[1], n * sizeof(float)) != 0) {
        return false;
    }
    sf_relu(x, n, out[0]);
    sf_plain_relu(x, n, out[1]);
    if (memcmp(out[0], out[1], n * sizeof(float)) != 0) {
        return false;
    }
    sf_multiply(out[0], x, n);
    sf_plain_multiply(out[1], x, n);
    sf_add(out[0], x + MAX_DIM / 2, n);
    sf_plain_add(out[1], x + MAX_DIM / 2, n);
    if (memcmp(out[0], out[1], n * sizeof(float)) != 0) {
        return false;
    }
    sf_rmsnorm(x, x + MAX_DIM / 2, n, 1e-5f, out[0]);
    sf_plain_rmsnorm(x, x + MAX_DIM / 2, n, 1e-5f, out[1]);
    return memcmp(out[0], out[1], n * sizeof(float)) == 0;
}

/* Name of the kernel that differs, or NULL. */
const char *first_difference(void);
const char *first_difference(void) {
    _Alignas(16) uint8_t elsewhere[ROW_BYTES];
    for (uint32_t i = 0; i < ROUNDS; i++) {
        const uint32_t kind = i & 3u;
        place_rows(i / 4u % 3u, elsewhere);
        if (!dots(kind)) {
            return "dot";
        }
        for (uint32_t j = 0; j < 20; j++) {
            if (!two_groups(j & 3u)) {
                return "dot of two groups";
            }
        }
        for (uint32_t j = 0; j < 8; j++) {
            if (!row_scales(j & 3u)) {
                return "rows with one scale";
            }
        }
        for (uint32_t j = 0; j < 8; j++) {
            if (!own_scales(j & 3u)) {
                return "rows and columns with their own scales";
            }
        }
        for (uint32_t j = 0; j < 4; j++) {
            if (!few_bits(j)) {
                return "proxies or signs";
            }
            if (!picked(j)) {
                return "pick_largest";
            }
            if (!kept(j)) {
                return "keep_reaching";
            }
        }
        if (!rows_as_floats(kind)) {
            return "rows as floats";
        }
        if (!rotated()) {
            return "rope";
        }
        if (!columns(kind)) {
            return "axpy or scale";
        }
        if (!quantized(kind)) {
            return "quantize";
        }
        if (!attention(kind)) {
            return "attention";
        }
        if (!elementwise(kind)) {
            return "elementwise";
        }
        if (!conversions(kind)) {
            return "sum to float";
        }
    }
    return NULL;
}

#ifdef __linux__
#include <stdio.h>

/* The tier that the argument names: "equal", the kernel that differs, or "lacks" where this CPU
 * does not run it. Without an argument the names of the tiers. */
int main(int argc, char **argv) {
    if (argc < 2) {
        for (uint32_t i = 0; sf_tier_name(i) != NULL; i++) {
            puts(sf_tier_name(i));
        }
        return 0;
    }
    if (!sf_use_tier(argv[1])) {
        puts("lacks");
        return 0;
    }
    const char *wrong = first_difference();
    puts(wrong == NULL ? "equal" : wrong);
    return 0;
}
#else
#include "bare.h"
#include "sf_port.h"

int main(void) {
    sf_board_init();
    sf_uart_init();
    const char *wrong = first_difference();
    const char *text = wrong == NULL ? "equal" : wrong;
    sf_port_write((const uint8_t *)text, strlen(text));
    sf_port_write((const uint8_t *)"\n", 1);
    for (;;) {
        sf_port_idle();
    }
}
#endif
