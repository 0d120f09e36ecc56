/* The kernels again without any tier, under other names, to compare with. */
#define SF_PLAIN
#define sf_dot_q4 plain_dot_q4
#define sf_dot_q8 plain_dot_q8
#define sf_axpy_q4 plain_axpy_q4
#define sf_axpy_q8 plain_axpy_q8
#define sf_scale_q4 plain_scale_q4
#define sf_scale_q8 plain_scale_q8
#define sf_dot_r8 plain_dot_r8
#define sf_axpy_r8 plain_axpy_r8
#define sf_row_r8 plain_row_r8
#define sf_dot_s4 plain_dot_s4
#define sf_axpy_s4 plain_axpy_s4
#define sf_row_s4 plain_row_s4
#define sf_quantize plain_quantize
#define sf_quantize16 plain_quantize16
#define sf_quantize8 plain_quantize8
#define sf_attention plain_attention
#define sf_exp2_steps plain_exp2_steps
#define sf_rmsnorm plain_rmsnorm
#define sf_sqrt plain_sqrt
#define sf_sigmoid plain_sigmoid
#define sf_silu plain_silu
#define sf_gelu_tanh plain_gelu_tanh
#define sf_relu plain_relu
#define sf_multiply plain_multiply
#define sf_add plain_add
#define sf_rope_angles plain_rope_angles
#define sf_rope plain_rope
#include "../../firmware/kernels/attention.c"
#include "../../firmware/kernels/axpy.c"
#include "../../firmware/kernels/dot_q4.c"
#include "../../firmware/kernels/dot_q8.c"
#include "../../firmware/kernels/elementwise.c"
#include "../../firmware/kernels/quantize.c"
#include "../../firmware/kernels/r8.c"
#include "../../firmware/kernels/s4.c"

float plain_sum_to_float(int64_t acc, int32_t s);
float plain_sum_to_float(int64_t acc, int32_t s) {
    return sf_sum_to_float(acc, s);
}
