/* libFuzzer on the device's side of the link, around tests/device/fake_runtime.c.
 *
 * An input is a row of records. A record of kind RAW goes to the line as it is; of the others the
 * harness makes a frame with a right checksum, so that what lies behind the checksum is reached.
 * Each answer has to be a whole frame, and a request of another connection changes nothing. */
#include "cobs.h"
#include "link.h"
#include "sf_crc32.h"
#include "sf_port.h"
#include "sf_runtime.h"

#include <stdlib.h>
#include <string.h>

enum { RAW = 0, OTHER = 1, KINDS = 8 }; /* OTHER: with a number of another connection */
enum { HEAD = 2, MOST = SF_LINK_MAX_PAYLOAD + 64 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static const uint8_t *input;
static size_t left;
static uint8_t line[2 * MOST], out[4 * MOST];
static size_t line_n, line_at, out_n;
static uint32_t connection;
static uint64_t ticks, slow;
static bool opened, other; /* the record on the line is of another connection */
static uint32_t position;

static uint32_t take(void) {
    if (left == 0) {
        return 0;
    }
    left--;
    return *input++;
}

/* The next record becomes bytes on the line. */
static void next_record(void) {
    uint8_t body[HEAD + sizeof connection + MOST + SF_LINK_SUM];
    const uint32_t kind = take() % KINDS;
    slow = take();
    size_t most = take();
    most |= take() << 8;
    size_t bytes = most < MOST ? most : MOST;
    bytes = bytes < left ? bytes : left;
    line_at = 0;
    other = false;
    if (kind == RAW) {
        memcpy(line, input, bytes);
        line_n = bytes;
    } else {
        size_t body_n = HEAD;
        body[0] = (uint8_t)take();
        body[1] = (uint8_t)take();
        bytes = bytes < left ? bytes : left;
        if (body[1] == SF_LINK_HELLO && bytes == 6u) {
            memcpy(&connection, input + 2, sizeof connection);
            opened = true;
        } else if (body[1] != SF_LINK_HELLO) {
            const uint32_t number = kind == OTHER ? ~connection : connection;
            memcpy(body + body_n, &number, sizeof number);
            body_n += sizeof number;
            other = kind == OTHER && opened;
        }
        memcpy(body + body_n, input, bytes);
        body_n += bytes;
        const uint32_t sum = sf_crc32(0, body, body_n);
        memcpy(body + body_n, &sum, sizeof sum);
        body_n += sizeof sum;
        line[0] = 0;
        line_n = 1u + sf_cobs_encode(body, body_n, line + 1);
        line[line_n++] = 0;
    }
    input += bytes;
    left -= bytes;
    position = sf_position();
}

/* What the device said since the last call: frames, each ended by two zeros. */
static void check_answers(void) {
    size_t from = 0;
    for (size_t i = 0; i < out_n; i++) {
        if (out[i] != 0) {
            continue;
        }
        uint8_t body[MOST];
        uint32_t sum;
        if (i > from) {
            const size_t k = sf_cobs_decode(out + from, i - from, body);
            if (k == SF_COBS_BAD || k < HEAD + SF_LINK_SUM ||
                k > HEAD + SF_LINK_MAX_PAYLOAD + SF_LINK_SUM) {
                abort();
            }
            memcpy(&sum, body + k - sizeof sum, sizeof sum);
            if (sum != sf_crc32(0, body, k - sizeof sum)) {
                abort();
            }
        }
        from = i + 1u;
    }
    if (from != out_n || (other && sf_position() != position)) {
        abort();
    }
    out_n = 0;
}

int sf_port_read(uint8_t *buffer, size_t n) {
    if (line_at == line_n) {
        check_answers();
        if (left == 0) {
            return -1;
        }
        next_record();
    }
    const size_t rest = line_n - line_at, k = rest < n ? rest : n;
    memcpy(buffer, line + line_at, k);
    line_at += k;
    return (int)k;
}

int sf_port_write(const uint8_t *buffer, size_t n) {
    if (n > sizeof out - out_n) {
        check_answers(); /* only whole frames are written at once */
    }
    memcpy(out + out_n, buffer, n);
    out_n += n;
    return (int)n;
}

void sf_port_idle(void) {
}

uint64_t sf_port_ticks(void) {
    ticks += slow << 20;
    return ticks;
}

uint32_t sf_port_ticks_per_second(void) {
    return 1000000000u;
}

const uint8_t *sf_port_flash_base(void) {
    return (const uint8_t *)"FAKE";
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    input = data;
    left = n;
    line_n = line_at = out_n = 0;
    opened = other = false;
    sf_reset();
    sf_link_status(SF_OK);
    sf_link_run();
    return 0;
}
