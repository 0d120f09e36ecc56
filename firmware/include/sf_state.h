/* What the generated forward pass shares with the hand-written runtime. */
#ifndef SF_STATE_H
#define SF_STATE_H

#include "sf_flash.h"
#include "sf_model.h"
#include "sf_runtime.h"

#define SF_RUNTIME_VERSION 5

extern const char sf_model_name[];
extern const uint8_t sf_model_sha[32];
extern const uint8_t sf_plan_digest[32];
extern float sf_threshold[SF_LAYERS][SF_THRESHOLDS];
extern const uint32_t sf_eos[];
extern const uint32_t sf_eos_count;
extern const sf_part sf_parts[SF_PARTS];

/* CRC-32 of bytes that follow those of crc (0: none). */
uint32_t sf_crc32(uint32_t crc, const uint8_t *p, size_t n);
/* SF_OK, SF_ERR_DAMAGED, or SF_ERR_FLASH when a read fails; before sf_flash_start(). */
int sf_check_image(void);

/* Trace and tap: hashes the site, keeps its values when tapped. */
void sf_observe(uint32_t layer, uint32_t site, const float *v, uint32_t n);
/* A part of a layer that these thresholds always read whole. */
bool sf_reads_all(uint32_t layer, uint32_t kind);
void sf_count_neurons(uint32_t n);
/* Weight bytes the forward pass used, and those that were read from flash for it. */
void sf_count_used(uint32_t bytes, bool ffn);
void sf_count_read(uint32_t bytes, uint32_t reads);
/* Bytes of rows read before they were asked for, of those that were, and of those not among them.
 */
void sf_count_early(uint32_t guessed, uint32_t used, uint32_t missed);
void sf_count_wait(uint64_t time);
void sf_count_time(uint64_t attn, uint64_t ffn, uint64_t head);
void sf_count_token(uint64_t time);

#endif
