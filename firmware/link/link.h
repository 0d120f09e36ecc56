/* The serial link: the device answers requests, one at a time.
 *
 * On the line:  COBS( seq u8 | type u8 | payload | crc32 u32 )  0x00
 * Numbers are little-endian. A reply carries the request's seq and its type | SF_LINK_REPLY.
 * Payloads begin with the number of the connection, u32, which the host chose in its last HELLO;
 * those of HELLO, of its reply and of NAK do not. A second zero ends the frame if the first is
 * lost. host_tools/sparseflash/device/link/protocol.py is the other side. */
#ifndef SF_LINK_H
#define SF_LINK_H

#include <stdbool.h>
#include <stdint.h>

enum { SF_LINK_VERSION = 6, SF_LINK_MAX_PAYLOAD = 1024, SF_LINK_SUM = 4, SF_LINK_REPLY = 0x80 };

enum sf_link_type {
    SF_LINK_HELLO = 0x01,
    SF_LINK_RESET = 0x02,
    SF_LINK_PREFILL = 0x03,
    SF_LINK_STEP = 0x04,
    SF_LINK_READ_LOGITS = 0x05,
    SF_LINK_TRACE = 0x06,
    SF_LINK_READ_TRACE = 0x07,
    SF_LINK_TAP = 0x08,
    SF_LINK_READ_TAP = 0x09,
    SF_LINK_COUNTERS = 0x0a,
    SF_LINK_SET_THRESHOLDS = 0x0b,
    SF_LINK_GENERATE = 0x0c,
    SF_LINK_STREAM = 0x0d,
    SF_LINK_QUIT = 0x0e,
    SF_LINK_READ_STATE = 0x0f,  /* position u32, offset u32, count u16: the cache's bytes */
    SF_LINK_WRITE_STATE = 0x10, /* position u32, which is the next, offset u32, bytes */
    SF_LINK_KEEP_STATE = 0x11,  /* position u32, token u32: what was written is that token's */
    SF_LINK_REWIND = 0x12,      /* position u32: forgets those from it on */
    /* Only from the device: */
    SF_LINK_BUSY = 0xf0,  /* still at work on the request; the reply follows */
    SF_LINK_ERROR = 0xf1, /* type u8, code i32, position u32 */
    SF_LINK_NAK = 0xf2    /* a damaged frame came in; send it again */
};

/* Codes of SF_LINK_ERROR beside those of sf_runtime.h. */
enum {
    SF_LINK_ERR_LENGTH = -100,   /* payload of the wrong length */
    SF_LINK_ERR_TYPE = -101,     /* no such command */
    SF_LINK_ERR_SESSION = -102,  /* no HELLO since the device started */
    SF_LINK_ERR_POSITION = -103, /* the host counts another position */
    SF_LINK_ERR_LOGITS = -104,   /* the last step computed no logits */
    SF_LINK_ERR_IDLE = -105,     /* STREAM without GENERATE */
    SF_LINK_ERR_OTHER = -106     /* another host has opened the line since */
};

enum sf_link_done {
    SF_LINK_RUNNING = 0,
    SF_LINK_DONE_EOS = 1,
    SF_LINK_DONE_COUNT = 2,
    SF_LINK_DONE_CONTEXT = 3
};

/* What sf_init() answered. Anything but SF_OK is told to the host instead of running. */
void sf_link_status(int code);
/* Serves what waits on the line and returns. Answers false when nothing waited. */
bool sf_link_poll(void);
/* The line is gone, or the host asked to quit. */
bool sf_link_gone(void);
bool sf_link_quit(void);
/* Serves a fresh line until it is gone or the host asks to quit; true for quit. */
bool sf_link_run(void);

#endif
