/* Chrome trace of the last events, written on exit to the file SPARSEFLASH_TIMELINE names. */
#include "sf_timeline.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define EVENTS 16384u

static struct {
    const char *name;
    uint64_t begin, end;
    uint32_t number;
    enum sf_lane lane;
} events[EVENTS];
static uint64_t count;
static const char *path;

static void write_trace(void) {
    FILE *f = fopen(path, "w");
    if (f == NULL) {
        perror(path);
        return;
    }
    const uint64_t n = count < EVENTS ? count : EVENTS;
    fputs("{\"traceEvents\":[\n", f);
    static const char *const lanes[] = {"compute", "wait", "read"};
    for (unsigned l = 0; l < 3; l++) {
        fprintf(f,
                "{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":1,\"tid\":%u,"
                "\"args\":{\"name\":\"%s\"}},\n",
                l, lanes[l]);
    }
    for (uint64_t i = 0; i < n; i++) {
        const uint64_t k = (count - n + i) % EVENTS;
        fprintf(f,
                "{\"ph\":\"X\",\"pid\":1,\"tid\":%u,\"name\":\"%s\",\"ts\":%" PRIu64 ".%03" PRIu64
                ",\"dur\":%" PRIu64 ".%03" PRIu64 ",\"args\":{\"number\":%" PRIu32 "}}%s\n",
                (unsigned)events[k].lane, events[k].name, events[k].begin / 1000u,
                events[k].begin % 1000u, (events[k].end - events[k].begin) / 1000u,
                (events[k].end - events[k].begin) % 1000u, events[k].number, i + 1u < n ? "," : "");
    }
    fputs("]}\n", f);
    if (fclose(f) != 0) {
        perror(path);
    }
}

void sf_event(enum sf_lane lane, const char *name, uint32_t number, uint64_t begin, uint64_t end) {
    if (count == 0) {
        path = getenv("SPARSEFLASH_TIMELINE");
        if (path != NULL) {
            atexit(write_trace);
        }
    }
    if (path == NULL) {
        count = 1;
        return;
    }
    events[count % EVENTS].name = name;
    events[count % EVENTS].begin = begin;
    events[count % EVENTS].end = end;
    events[count % EVENTS].number = number;
    events[count % EVENTS].lane = lane;
    count++;
}
