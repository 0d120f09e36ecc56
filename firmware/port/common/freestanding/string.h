/* For compilers without a C library: what the firmware uses, in freestanding.c. */
#ifndef SF_STRING_H
#define SF_STRING_H

#include <stddef.h>

void *memcpy(void *restrict to, const void *restrict from, size_t n);
void *memset(void *to, int value, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);

/* -ffreestanding keeps the compiler from knowing these by name, and copies of a word are
 * everywhere. */
#define memcpy(to, from, n) __builtin_memcpy(to, from, n)
#define memset(to, value, n) __builtin_memset(to, value, n)

#endif
