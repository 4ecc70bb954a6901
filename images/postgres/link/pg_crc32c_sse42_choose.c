/*
 * In the place of PostgreSQL 18's file of that name, which asks the processor at the first use whether it has more than
 * the SSE 4.2 that the program is compiled for. The program asks no processor: a cpuid would leave the guest, and a
 * snapshot would remember the answer of another machine.
 */
#include "c.h"

#include "port/pg_crc32c.h"

pg_crc32c	(*pg_comp_crc32c) (pg_crc32c crc, const void *data, size_t len) = pg_comp_crc32c_sse42;
