#include "dsp.h"

#define SF_NAME(kernel) sf_arm_dsp_##kernel
#include "arm_common/scale_body.h"
