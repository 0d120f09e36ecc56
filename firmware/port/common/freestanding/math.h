/* For compilers without a C library: what the firmware uses, in freestanding.c. */
#ifndef SF_MATH_H
#define SF_MATH_H

float sqrtf(float x);

#endif
