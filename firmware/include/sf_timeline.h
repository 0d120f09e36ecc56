/* What happened when, for ports that keep it (-DSF_TIMELINE); nothing elsewhere. */
#ifndef SF_TIMELINE_H
#define SF_TIMELINE_H

#include "sf_port.h"

#include <stdint.h>

enum sf_lane { SF_LANE_COMPUTE = 0, SF_LANE_WAIT = 1, SF_LANE_READ = 2 };

#ifdef SF_TIMELINE
/* name must outlive the program; times in port ticks. */
void sf_event(enum sf_lane lane, const char *name, uint32_t number, uint64_t begin, uint64_t end);
static inline uint64_t sf_event_time(void) {
    return sf_port_ticks();
}
#else
static inline uint64_t sf_event_time(void) {
    return 0;
}
static inline void sf_event(enum sf_lane lane, const char *name, uint32_t number, uint64_t begin,
                            uint64_t end) {
    (void)lane;
    (void)name;
    (void)number;
    (void)begin;
    (void)end;
}
#endif

#endif
