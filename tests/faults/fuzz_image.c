/* libFuzzer on an image in memory: what the check of the start lets pass runs like the good one.
 *
 * An input is a byte of ways and a row of patches: place, 3 bytes, and value. With REDO the sums
 * are made right again after the patches: then other tokens are what the image asks for, and only
 * memory, arithmetic and time have to hold. SPARSEFLASH_IMAGE names the good image.
 *
 * With SPARSEFLASH_EVERY=n no fuzzer runs, but every n-th of these: each byte of header, section
 * table and TOKENS with each value, each length, and sections swapped and laid over others. */
#include "sf_flash.h"
#include "sf_port.h"
#include "sf_state.h"

#include <stdio.h>
#include <stdlib.h>

enum { REDO = 1, SHORT = 2, PATCH = 4, STEPS = 2 };
enum { COUNT_AT = 12, TABLE_AT = 24, ENTRY = 32, OFFSET = 8, LENGTH = 16, SUM = 24, TOKENS = 2 };

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
void sf_library_image(const uint8_t *data, uint32_t bytes);

static _Alignas(64) uint8_t good[SF_IMAGE_BYTES], image[SF_IMAGE_BYTES];
static float want[STEPS][SF_VOCAB];

static uint32_t word(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Logits of a few steps, then tokens and their texts; whether all logits are as wanted. */
static bool run(bool keep) {
    bool same = true;
    sf_sampler s;
    sf_reset();
    for (uint32_t i = 0; i < STEPS; i++) {
        if (sf_step((i * 37u + 5u) % SF_VOCAB, true) != SF_OK) {
            return false;
        }
        const float *logits = sf_logits();
        if (keep) {
            memcpy(want[i], logits, sizeof want[i]);
        }
        same = same && memcmp(want[i], logits, sizeof want[i]) == 0;
    }
    sf_sampler_init(&s, 0.8f, 0.9f, 1);
    if (sf_sample(&s) >= SF_VOCAB) {
        abort();
    }
    for (uint32_t t = 0; t <= SF_VOCAB; t++) {
        uint32_t bytes = 0, sum = 0;
        const uint8_t *text = sf_token_text(t, &bytes);
        for (uint32_t i = 0; i < bytes; i++) {
            sum += text[i];
        }
        if (sum == UINT32_MAX) {
            abort(); /* each byte is read */
        }
    }
    return same;
}

static void redo_sums(void) {
    const uint32_t count = word(image + COUNT_AT), at = word(image + TABLE_AT);
    for (uint32_t i = 0; i < count && at <= SF_IMAGE_BYTES && i < (SF_IMAGE_BYTES - at) / ENTRY;
         i++) {
        uint8_t *entry = image + at + ENTRY * i;
        const uint32_t from = word(entry + OFFSET), bytes = word(entry + LENGTH);
        if (from <= SF_IMAGE_BYTES && bytes <= SF_IMAGE_BYTES - from) {
            const uint32_t sum = sf_crc32(0, image + from, bytes);
            memcpy(entry + SUM, &sum, sizeof sum);
        }
    }
}

/* The first bytes of ``image`` as the device's flash. */
static void try_image(uint32_t ways, uint32_t size) {
    if ((ways & REDO) != 0) {
        redo_sums();
    }
    /* Memory of its own of just this size, so that a read behind it is found. */
    uint8_t *copy = malloc(size);
    if (copy == NULL) {
        return;
    }
    memcpy(copy, image, size);
    sf_library_image(copy, size);
    if (sf_init() == SF_OK && !run(false) && (ways & REDO) == 0) {
        abort();
    }
    free(copy);
}

/* Every byte of good[from, to) with every value, with and without sums made right. */
static uint32_t try_bytes(uint32_t from, uint32_t to, uint32_t step, uint32_t done) {
    for (uint32_t i = 0; i < (to - from) * 512u; i++) {
        if (done++ % step == 0) {
            memcpy(image, good, sizeof image);
            image[from + i / 512u] = (uint8_t)(i & 255u);
            try_image(i >> 8 & REDO, SF_IMAGE_BYTES);
        }
    }
    return done;
}

static uint32_t try_every(uint32_t step) {
    const uint32_t count = word(good + COUNT_AT), at = word(good + TABLE_AT);
    uint32_t done = try_bytes(0, at + ENTRY * count, step, 0);
    for (uint32_t size = 64; size < SF_IMAGE_BYTES; size++) {
        if (done++ % step == 0) {
            memcpy(image, good, sizeof image);
            try_image(0, size);
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *one = good + at + ENTRY * i;
        if (word(one) == TOKENS) {
            const uint32_t from = word(one + OFFSET);
            done = try_bytes(from, from + word(one + LENGTH), step, done);
        }
        for (uint32_t k = 0; k < count * 8u; k++, done++) {
            const uint8_t *other = good + at + ENTRY * (k / 8u);
            uint8_t *place = image + at + ENTRY * i;
            memcpy(image, good, sizeof image);
            if ((k & 2u) != 0) { /* overlapping */
                const uint32_t field = (k & 4u) != 0 ? LENGTH : OFFSET;
                memcpy(place + field, other + field, 8);
            } else { /* swapped, all of the entry or without its kind */
                const uint32_t from = (k & 4u) != 0 ? OFFSET : 0;
                memcpy(image + (other - good) + from, one + from, ENTRY - from);
                memcpy(place + from, other + from, ENTRY - from);
            }
            try_image(k & REDO, SF_IMAGE_BYTES);
        }
    }
    return done;
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    const char *path = getenv("SPARSEFLASH_IMAGE");
    FILE *f = path == NULL ? NULL : fopen(path, "rb");
    if (f == NULL || fread(good, 1, sizeof good, f) != sizeof good) {
        fputs("SPARSEFLASH_IMAGE names no image of this program\n", stderr);
        exit(2);
    }
    fclose(f);
    sf_library_image(good, SF_IMAGE_BYTES);
    if (sf_init() != SF_OK || !run(true) || !run(false)) {
        abort();
    }
    const char *every = getenv("SPARSEFLASH_EVERY");
    if (every != NULL) {
        const uint32_t step = (uint32_t)atoi(every);
        fprintf(stderr, "Done %u runs\n", (unsigned)(try_every(step) / step));
        exit(0);
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    if (n < 1u + PATCH) {
        return 0;
    }
    const uint8_t ways = *data++;
    uint32_t size = SF_IMAGE_BYTES;
    memcpy(image, good, sizeof image);
    n--;
    if ((ways & SHORT) != 0) {
        const uint32_t cut = word(data) % SF_IMAGE_BYTES;
        size = cut > 64u ? cut : 64u; /* the port refuses less */
        data += PATCH;
        n -= PATCH;
    }
    for (; n >= PATCH; n -= PATCH, data += PATCH) {
        image[(word(data) & 0xFFFFFFu) % SF_IMAGE_BYTES] = data[3];
    }
    try_image(ways, size);
    return 0;
}
