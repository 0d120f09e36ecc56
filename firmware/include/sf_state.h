/* What the generated forward pass shares with the hand-written runtime. */
#ifndef SF_STATE_H
#define SF_STATE_H

#include "sf_crc32.h"
#include "sf_flash.h"
#include "sf_model.h"
#include "sf_runtime.h"

#define SF_RUNTIME_VERSION 9

extern const char sf_model_name[];
extern const uint8_t sf_model_sha[32];
extern const uint8_t sf_plan_digest[32];
extern float sf_threshold[SF_LAYERS][SF_THRESHOLDS];
extern uint32_t sf_site_hash[SF_LAYERS][SF_SITES];
extern float sf_site_values[SF_LONGEST];
extern const uint32_t sf_eos[];
extern const uint32_t sf_eos_count;
extern const sf_part sf_parts[SF_PARTS];

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
/* Both, of bytes that are used where they lie. */
void sf_count_mapped(uint32_t bytes, uint32_t reads, bool ffn);
/* Bytes of rows read before they were asked for, of those that were, and of those not among them.
 */
void sf_count_early(uint32_t predicted, uint32_t used, uint32_t missed);
void sf_count_wait(uint64_t time);
void sf_count_time(uint64_t attn, uint64_t ffn, uint64_t head);
void sf_count_tokens(uint32_t n, uint64_t time);
/* Of the tokens counted before, those that were drafts, and of these those that were right. */
void sf_count_drafts(uint32_t drafted, uint32_t taken);
/* Drafts that may follow a text of n tokens, at most `most`, if its last `least` stood before. */
uint32_t sf_draft(const uint32_t *text, uint32_t n, uint32_t least, uint32_t most, uint32_t *out);

#endif
