#include "mve.h"

#define SF_NAME(kernel) sf_arm_mve_##kernel
#include "arm_common/attention_body.h"
