#include "link.h"

#include "cobs.h"
#include "sf_crc32.h"
#include "sf_port.h"
#include "sf_runtime.h"

#include <stddef.h>
#include <string.h>

enum {
    HEAD = 2, /* seq, type */
    CRC = SF_LINK_SUM,
    CONNECTION = 4,
    FRAME = HEAD + SF_LINK_MAX_PAYLOAD + CRC,
    WIRE = FRAME + FRAME / 254 + 3 /* stuffing and two zeros */
};

#define MOST_TEMPERATURE 1e6f /* beyond it every token is as likely */

static struct {
    uint8_t in[WIRE]; /* the frame coming in; decoded in place */
    size_t in_n;
    bool in_lost; /* longer than any frame: skip to the next zero */
    uint8_t reply[FRAME];
    size_t reply_n;     /* with HEAD */
    uint8_t wire[WIRE]; /* the last reply as sent, kept to answer a repeated request */
    size_t wire_n;
    uint8_t last_seq;
    uint8_t last_type;
    size_t last_n;
    uint32_t last_crc;
    bool have_last;
    bool session;
    uint32_t connection; /* the host's number of it */
    bool gone;
    bool quit;
    int status;
    bool have_logits;
    uint64_t spoke; /* when the host last heard of us */
    /* Generation */
    sf_sampler sampler;
    bool generating;
    bool to_run; /* token was sent and waits to be run */
    uint32_t token;
    uint32_t left;          /* tokens to send */
    uint32_t next[SF_NEXT]; /* tokens that wait to be sent; all but the last have run */
    uint32_t next_n, next_at;
} s;

/* ---- little-endian ---- */

static void put8(uint32_t v) {
    s.reply[s.reply_n++] = (uint8_t)(v & 0xffu);
}

static void put16(uint32_t v) {
    put8(v);
    put8(v >> 8);
}

static void put32(uint32_t v) {
    put16(v);
    put16(v >> 16);
}

static void put64(uint64_t v) {
    put32((uint32_t)(v & 0xffffffffu));
    put32((uint32_t)(v >> 32));
}

static void put_float(float f) {
    uint32_t v;
    memcpy(&v, &f, sizeof v);
    put32(v);
}

static void put_bytes(const uint8_t *p, size_t n) {
    memcpy(s.reply + s.reply_n, p, n);
    s.reply_n += n;
}

static void put_text(const char *text) {
    size_t n = strlen(text);
    n = n < 255u ? n : 255u;
    put8((uint32_t)n);
    put_bytes((const uint8_t *)text, n);
}

static uint32_t get16(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static uint32_t get32(const uint8_t *p) {
    return get16(p) | get16(p + 2) << 16;
}

static uint64_t get64(const uint8_t *p) {
    return (uint64_t)get32(p) | (uint64_t)get32(p + 4) << 32;
}

static float get_float(const uint8_t *p) {
    const uint32_t v = get32(p);
    float f;
    memcpy(&f, &v, sizeof f);
    return f;
}

/* ---- sending ---- */

static void send(const uint8_t *p, size_t n) {
    while (n > 0 && !s.gone) {
        const int k = sf_port_write(p, n);
        if (k < 0) {
            s.gone = true;
        } else {
            p += k;
            n -= (size_t)k;
        }
    }
    s.spoke = sf_port_ticks();
}

/* A frame without more than the connection, beside the kept reply. */
static void send_bare(uint8_t seq, uint8_t type) {
    uint8_t frame[HEAD + CONNECTION + CRC] = {seq, type};
    uint8_t wire[HEAD + CONNECTION + CRC + 4];
    size_t bytes = HEAD;
    for (uint32_t i = 0; i < CONNECTION && type != SF_LINK_NAK; i++) {
        frame[bytes++] = (uint8_t)(s.connection >> 8u * i & 0xffu);
    }
    const uint32_t crc = sf_crc32(0, frame, bytes);
    for (uint32_t i = 0; i < CRC; i++) {
        frame[bytes++] = (uint8_t)(crc >> 8u * i & 0xffu);
    }
    size_t n = sf_cobs_encode(frame, bytes, wire);
    wire[n++] = 0;
    wire[n++] = 0;
    send(wire, n);
}

/* Whether a fraction of a second passed since the host heard of us; always without a clock. */
static bool silent_for(uint32_t fraction) {
    const uint32_t rate = sf_port_ticks_per_second();
    return rate == 0 || sf_port_ticks() - s.spoke >= rate / fraction;
}

static void send_reply(void) {
    put32(sf_crc32(0, s.reply, s.reply_n));
    s.wire_n = sf_cobs_encode(s.reply, s.reply_n, s.wire);
    s.wire[s.wire_n++] = 0;
    s.wire[s.wire_n++] = 0;
    send(s.wire, s.wire_n);
}

static size_t room(void) {
    return HEAD + SF_LINK_MAX_PAYLOAD - s.reply_n;
}

/* ---- commands: each answers SF_OK or the code of an error reply ---- */

static int step(uint32_t token) {
    const int code = sf_step(token, true);
    s.have_logits = code == SF_OK;
    return code;
}

/* Where the host is: tokens that it has not heard of are not run, but for the next. */
static uint32_t position(void) {
    const uint32_t unsent = s.next_n - s.next_at;
    return sf_position() - (unsent > 1u ? unsent - 1u : 0u);
}

static void end_generation(void) {
    s.generating = false;
    s.to_run = false;
    s.next_n = s.next_at = 0;
}

static int hello(const uint8_t *p) {
    const sf_info *i = sf_get_info();
    end_generation();
    s.session = true;
    s.connection = get32(p + 2);
    put16(SF_LINK_VERSION);
    put16(SF_LINK_MAX_PAYLOAD);
    put32(get32(p + 2)); /* the host's nonce: no reply of an earlier session carries it */
    put32((uint32_t)s.status);
    put32(i->vocab);
    put32(i->dim);
    put32(i->ffn_dim);
    put32(i->n_layers);
    put32(i->n_heads);
    put32(i->n_kv_heads);
    put32(i->head_dim);
    put32(i->kv_len);
    put32(i->arena_bytes);
    put32(i->ticks_per_second);
    put32(sf_position());
    put_bytes(i->model_sha, 32);
    put_bytes(i->plan_digest, 32);
    put_text(i->board);
    put_text(i->model);
    return SF_OK;
}

static int prefill(uint8_t seq, const uint8_t *p, size_t n) {
    if (n < 9 || (n - 5u) % 4u != 0) {
        return SF_LINK_ERR_LENGTH;
    }
    if (get32(p) != sf_position()) {
        return SF_LINK_ERR_POSITION;
    }
    end_generation();
    static uint32_t token[SF_LINK_MAX_PAYLOAD / 4];
    const uint32_t count = (uint32_t)(n - 5u) / 4u, block = sf_get_info()->block;
    for (uint32_t i = 0; i < count; i++) {
        token[i] = get32(p + 5 + 4u * i);
    }
    for (uint32_t at = 0, some; at < count; at += some) {
        some = count - at < block ? count - at : block;
        const bool logits = p[4] != 0 && at + some == count;
        const int code = sf_prefill(token + at, some, logits);
        s.have_logits = code == SF_OK && logits;
        if (code != SF_OK) {
            return code;
        }
        if (at + some < count && silent_for(4)) {
            send_bare(seq, SF_LINK_BUSY);
        }
    }
    put32(sf_position());
    return SF_OK;
}

static int one_step(const uint8_t *p) {
    if (get32(p) != sf_position()) {
        return SF_LINK_ERR_POSITION;
    }
    end_generation();
    const int code = step(get32(p + 4));
    if (code != SF_OK) {
        return code;
    }
    put32(sf_largest());
    put32(sf_position());
    return SF_OK;
}

/* Floats [offset, offset + count) of n. */
static int put_floats(const uint8_t *p, const float *values, uint32_t n) {
    const uint32_t offset = get32(p);
    const uint32_t count = get16(p + 4);
    if (offset > n || count > n - offset || count * 4u > room()) {
        return SF_ERR_ARG;
    }
    for (uint32_t i = 0; i < count; i++) {
        put_float(values[offset + i]);
    }
    return SF_OK;
}

static int read_logits(const uint8_t *p) {
    return s.have_logits ? put_floats(p, sf_logits(), sf_get_info()->vocab) : SF_LINK_ERR_LOGITS;
}

static int read_trace(const uint8_t *p) {
    const uint32_t n = sf_get_info()->n_layers * SF_SITES;
    const uint32_t offset = get32(p);
    const uint32_t count = get16(p + 4);
    if (offset > n || count > n - offset || count * 4u > room()) {
        return SF_ERR_ARG;
    }
    for (uint32_t i = offset; i < offset + count; i++) {
        put32(sf_trace_hash(i / SF_SITES, i % SF_SITES));
    }
    return SF_OK;
}

static int read_tap(const uint8_t *p) {
    uint32_t n = 0;
    const float *values = sf_tap_values(&n);
    put32(n);
    return put_floats(p, values, n);
}

static int counters(const uint8_t *p) {
    const sf_counters *c = sf_get_counters();
    put64(c->tokens);
    put64(c->bytes);
    put64(c->bytes_ffn);
    put64(c->reads);
    put64(c->neurons);
    put64(c->time_attn);
    put64(c->time_ffn);
    put64(c->time_head);
    put64(c->time_total);
    put64(c->time_wait);
    put64(c->bytes_read);
    put64(c->bytes_early);
    put64(c->bytes_early_used);
    put64(c->bytes_missed);
    put64(c->drafted);
    put64(c->taken);
    if (p[0] != 0) {
        sf_counters_clear();
    }
    return SF_OK;
}

static int set_thresholds(const uint8_t *p) {
    float t[SF_THRESHOLDS];
    for (size_t i = 0; i < SF_THRESHOLDS; i++) {
        t[i] = get_float(p + 4 + 4 * i);
    }
    return sf_set_thresholds(get32(p), t);
}

static int generate(const uint8_t *p) {
    if (get32(p) != sf_position()) {
        return SF_LINK_ERR_POSITION;
    }
    if (!s.have_logits) {
        return SF_LINK_ERR_LOGITS;
    }
    const float temperature = get_float(p + 8), top_p = get_float(p + 12);
    if (!(temperature >= 0.0f && temperature <= MOST_TEMPERATURE && top_p >= 0.0f &&
          top_p <= 1.0f)) {
        return SF_ERR_ARG;
    }
    end_generation();
    sf_sampler_init(&s.sampler, temperature, top_p, get64(p + 16));
    s.left = get32(p + 4);
    s.generating = true;
    return SF_OK;
}

/* Runs the token that was sent, and asks for those that follow it. */
static int run_sent(void) {
    const bool greedy = s.to_run && !(s.sampler.temperature > 0.0f);
    int code = SF_OK;
    s.next_n = s.next_at = 0;
    if (greedy) {
        s.have_logits = false;
        code = sf_greedy(s.token, s.left < SF_NEXT ? s.left : SF_NEXT, s.next, &s.next_n);
    } else if (s.to_run) {
        code = step(s.token);
    }
    if (!greedy && code == SF_OK) { /* the logits are there, at first those of the prompt */
        s.next[s.next_n++] = sf_sample(&s.sampler);
    }
    return code;
}

/* Tokens until the credit is used, the reply is full, or one is there and time passed.
 * The last token of a generation is sent but not run. */
static int stream(const uint8_t *p) {
    const uint32_t credit = get16(p);
    uint32_t count = 0;
    uint32_t done = SF_LINK_RUNNING;
    if (!s.generating) {
        return SF_LINK_ERR_IDLE;
    }
    const size_t head = s.reply_n;
    s.reply_n += 7; /* done u8, count u16, position u32: known at the end */
    s.spoke = sf_port_ticks();
    while (done == SF_LINK_RUNNING && count < credit && (count == 0 || !silent_for(20))) {
        if (s.left == 0) {
            done = SF_LINK_DONE_COUNT;
            break;
        }
        if (s.next_at == s.next_n) {
            const int code = run_sent();
            if (code == SF_ERR_CONTEXT) {
                done = SF_LINK_DONE_CONTEXT;
                break;
            }
            if (code != SF_OK) {
                end_generation();
                return code;
            }
        }
        s.token = s.next[s.next_at];
        uint32_t n = 0;
        const uint8_t *text = sf_token_text(s.token, &n);
        const size_t space = room();
        if (count > 0 && (space < 6u || n > space - 6u)) {
            break;
        }
        if (n > space - 6u) { /* longer than a reply: the token counts, not its text */
            n = (uint32_t)space - 6u;
        }
        put32(s.token);
        put16(n);
        if (n > 0) {
            put_bytes(text, n);
        }
        count++;
        s.left--;
        s.next_at++;
        s.to_run = s.next_at == s.next_n;
        if (sf_is_eos(s.token)) {
            done = SF_LINK_DONE_EOS;
        } else if (s.left == 0) {
            done = SF_LINK_DONE_COUNT;
        }
    }
    if (done != SF_LINK_RUNNING) {
        end_generation();
    }
    const size_t end = s.reply_n;
    s.reply_n = head;
    put8(done);
    put16(count);
    put32(position());
    s.reply_n = end;
    return SF_OK;
}

static int read_state(const uint8_t *p) {
    const uint32_t n = get16(p + 8);
    if (n > room()) {
        return SF_ERR_ARG;
    }
    const int code = sf_state_read(get32(p), get32(p + 4), n, s.reply + s.reply_n);
    s.reply_n += code == SF_OK ? n : 0u;
    return code;
}

static int write_state(const uint8_t *p, size_t n) {
    if (n < 8) {
        return SF_LINK_ERR_LENGTH;
    }
    if (get32(p) != sf_position()) {
        return SF_LINK_ERR_POSITION;
    }
    return sf_state_write(get32(p + 4), (uint32_t)n - 8u, p + 8);
}

static int keep_state(const uint8_t *p) {
    if (get32(p) != sf_position()) {
        return SF_LINK_ERR_POSITION;
    }
    end_generation();
    s.have_logits = false;
    return sf_state_keep(get32(p + 4));
}

static int rewind_to(const uint8_t *p) {
    if (get32(p) > sf_position()) {
        return SF_LINK_ERR_POSITION;
    }
    end_generation();
    s.have_logits = false;
    sf_rewind(get32(p));
    return SF_OK;
}

/* Payload bytes of a command; -1 for any number. */
static int payload_bytes(uint8_t type) {
    switch (type) {
    case SF_LINK_HELLO: return 6;
    case SF_LINK_STEP: return 8;
    case SF_LINK_READ_LOGITS:
    case SF_LINK_READ_TRACE:
    case SF_LINK_READ_TAP: return 6;
    case SF_LINK_TRACE:
    case SF_LINK_COUNTERS: return 1;
    case SF_LINK_TAP: return 8;
    case SF_LINK_SET_THRESHOLDS: return 4 + 4 * SF_THRESHOLDS;
    case SF_LINK_GENERATE: return 24;
    case SF_LINK_STREAM: return 2;
    case SF_LINK_READ_STATE: return 10;
    case SF_LINK_KEEP_STATE: return 8;
    case SF_LINK_REWIND: return 4;
    case SF_LINK_RESET:
    case SF_LINK_QUIT: return 0;
    default: return -1;
    }
}

static int execute(uint8_t seq, uint8_t type, const uint8_t *p, size_t n) {
    const int bytes = payload_bytes(type);
    if (bytes >= 0 && n != (size_t)bytes) {
        return SF_LINK_ERR_LENGTH;
    }
    if (type != SF_LINK_STREAM && position() < sf_position()) {
        sf_rewind(position());
        s.next_n = s.next_at + 1u;
    }
    if (type == SF_LINK_HELLO) {
        return hello(p);
    }
    if (!s.session) {
        return SF_LINK_ERR_SESSION;
    }
    if (type == SF_LINK_QUIT) {
        s.quit = true;
        return SF_OK;
    }
    if (s.status != SF_OK) {
        return s.status;
    }
    switch (type) {
    case SF_LINK_RESET:
        sf_reset();
        end_generation();
        s.have_logits = false;
        return SF_OK;
    case SF_LINK_PREFILL: return prefill(seq, p, n);
    case SF_LINK_STEP: return one_step(p);
    case SF_LINK_READ_LOGITS: return read_logits(p);
    case SF_LINK_TRACE: sf_trace_enable(p[0] != 0); return SF_OK;
    case SF_LINK_READ_TRACE: return read_trace(p);
    case SF_LINK_TAP: return sf_tap_set(get32(p), get32(p + 4));
    case SF_LINK_READ_TAP: return read_tap(p);
    case SF_LINK_COUNTERS: return counters(p);
    case SF_LINK_SET_THRESHOLDS: return set_thresholds(p);
    case SF_LINK_GENERATE: return generate(p);
    case SF_LINK_STREAM: return stream(p);
    case SF_LINK_READ_STATE: return read_state(p);
    case SF_LINK_WRITE_STATE: return write_state(p, n);
    case SF_LINK_KEEP_STATE: return keep_state(p);
    case SF_LINK_REWIND: return rewind_to(p);
    default: return SF_LINK_ERR_TYPE;
    }
}

/* A whole frame is in s.in[0, in_n). */
static void serve(void) {
    const size_t n = s.in_lost ? SF_COBS_BAD : sf_cobs_decode(s.in, s.in_n, s.in);
    if (n == SF_COBS_BAD || n < HEAD + CRC || n > FRAME ||
        get32(s.in + n - CRC) != sf_crc32(0, s.in, n - CRC)) {
        send_bare(0, SF_LINK_NAK);
        return;
    }
    const uint8_t seq = s.in[0];
    const uint8_t type = s.in[1];
    const uint32_t crc = get32(s.in + n - CRC);
    /* A HELLO runs every time: it starts a session whatever came before. */
    if (s.have_last && type != SF_LINK_HELLO && seq == s.last_seq && type == s.last_type &&
        n == s.last_n && crc == s.last_crc) {
        send(s.wire, s.wire_n);
        return;
    }
    const bool first = type == SF_LINK_HELLO;
    const size_t before = first ? 0 : CONNECTION;
    const uint8_t *p = s.in + HEAD;
    const size_t bytes = n - HEAD - CRC;
    int code = bytes < before ? SF_LINK_ERR_LENGTH : SF_OK;
    const uint32_t connection = code == SF_OK && !first ? get32(p) : s.connection;
    s.reply_n = 0;
    put8(seq);
    put8(type | (uint32_t)SF_LINK_REPLY);
    if (!first) {
        put32(connection);
    }
    s.spoke = sf_port_ticks();
    if (code == SF_OK && s.session && connection != s.connection) {
        code = SF_LINK_ERR_OTHER;
    }
    code = code == SF_OK ? execute(seq, type, p + before, bytes - before) : code;
    if (code != SF_OK) {
        s.reply_n = 0;
        put8(seq);
        put8(SF_LINK_ERROR);
        put32(connection);
        put8(type);
        put32((uint32_t)code);
        put32(position());
    }
    s.have_last = true;
    s.last_seq = seq;
    s.last_type = type;
    s.last_n = n;
    s.last_crc = crc;
    send_reply();
}

static void take(uint8_t byte) {
    if (byte != 0) {
        if (s.in_n < sizeof s.in) {
            s.in[s.in_n++] = byte;
        } else {
            s.in_lost = true;
        }
        return;
    }
    if (s.in_n > 0) { /* the host sends a zero before each frame to end what noise began */
        serve();
    }
    s.in_n = 0;
    s.in_lost = false;
}

void sf_link_status(int code) {
    s.status = code;
}

bool sf_link_gone(void) {
    return s.gone;
}

bool sf_link_quit(void) {
    return s.quit;
}

bool sf_link_poll(void) {
    uint8_t chunk[64];
    const int n = sf_port_read(chunk, sizeof chunk);
    if (n < 0) {
        s.gone = true;
    }
    for (int i = 0; i < n && !s.quit && !s.gone; i++) {
        take(chunk[i]);
    }
    return n > 0;
}

bool sf_link_run(void) {
    s.in_n = 0;
    s.in_lost = false;
    s.have_last = false;
    s.session = false;
    s.gone = false;
    s.quit = false;
    while (!s.gone && !s.quit) {
        if (!sf_link_poll()) {
            sf_port_idle();
        }
    }
    return s.quit;
}
