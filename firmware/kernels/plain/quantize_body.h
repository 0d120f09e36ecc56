/* The walks over an activation vector, for a tier that says how a float is scaled: SF_NAME(kernel)
 * is its name of a kernel, a `scale` what floats are multiplied with, scale_for(bits of the largest
 * magnitude, exponent) makes one and scaled(x, scale, limit) gives the nearest integer within a
 * limit. */

/* Exponent that brings a magnitude with these bits to [2^top, 2^(top+1)). */
static int32_t exponent_for(uint32_t magnitude, int32_t top, int32_t max) {
    const int32_t s = top - ((int32_t)(magnitude >> 23) - 127);
    return s < SF_S_MIN ? SF_S_MIN : (s > max ? max : s);
}

static uint32_t max_magnitude(const float *x, uint32_t n) {
    uint32_t best = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t b = sf_bits(x[i]) & 0x7FFFFFFFu;
        best = b > best ? b : best;
    }
    return best;
}

void SF_NAME(quantize)(const float *x, uint32_t n, sf_bfp *v) {
    const uint32_t groups = (n + SF_GROUP - 1u) / SF_GROUP;
    int32_t lowest = SF_S_MAX;
    v->groups = groups;
    for (uint32_t g = 0; g < groups; g++) {
        const uint32_t len = n - g * SF_GROUP < SF_GROUP ? n - g * SF_GROUP : SF_GROUP;
        const uint32_t top = max_magnitude(x + g * SF_GROUP, len);
        v->k[g] = (uint8_t)(top >> 23); /* the exponent field, for the second walk */
        if (top >= 0x00800000u) {
            const int32_t s = exponent_for(top, 6, SF_S_MAX);
            lowest = s < lowest ? s : lowest;
        }
    }
    v->s = lowest;
    for (uint32_t g = 0; g < groups; g++) {
        const float *in = x + g * SF_GROUP;
        int8_t *q = v->q + g * SF_GROUP;
        const uint32_t len = n - g * SF_GROUP < SF_GROUP ? n - g * SF_GROUP : SF_GROUP;
        const uint32_t top = (uint32_t)v->k[g] << 23;
        int32_t sum = 0;
        int32_t s = top >= 0x00800000u ? exponent_for(top, 6, SF_S_MAX) : lowest;
        if (s > lowest + SF_SHIFT_SPAN) {
            s = lowest + SF_SHIFT_SPAN;
        }
        const scale by = scale_for(top, s);
        for (uint32_t i = 0; i < len; i++) {
            const int32_t r = scaled(in[i], by, 127);
            q[i] = (int8_t)r;
            sum += r;
        }
        for (uint32_t i = len; i < SF_GROUP; i++) {
            q[i] = 0;
        }
        v->k[g] = (uint8_t)(lowest + SF_SHIFT_SPAN - s);
        v->sum[g] = sum * (int32_t)(1u << v->k[g]);
    }
}

int32_t SF_NAME(quantize16)(const float *x, uint32_t n, int16_t *q) {
    const uint32_t top = max_magnitude(x, n);
    const int32_t s = top >= 0x00800000u ? exponent_for(top, 14, 60) : 60;
    const scale by = scale_for(top, s);
    for (uint32_t i = 0; i < n; i++) {
        q[i] = (int16_t)scaled(x[i], by, 32767);
    }
    return s;
}

int32_t SF_NAME(quantize8)(const float *x, uint32_t n, int8_t *q) {
    const uint32_t top = max_magnitude(x, n);
    const int32_t s = top >= 0x00800000u ? exponent_for(top, 6, 60) : 60;
    const scale by = scale_for(top, s);
    for (uint32_t i = 0; i < n; i++) {
        q[i] = (int8_t)scaled(x[i], by, 127);
    }
    return s;
}
