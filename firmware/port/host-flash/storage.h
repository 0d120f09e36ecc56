/* The image as a file that is read past the page cache where the file system allows it. */
#ifndef SF_STORAGE_H
#define SF_STORAGE_H

#include <stdbool.h>
#include <stdint.h>

/* Opens host_flash_path once; -1 on failure. *size gets its bytes. */
int storage_open(uint32_t *size);

#endif
