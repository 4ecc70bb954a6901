/*
 * Included first into every file of pgvector.
 */
#include "postgres.h"

#include "commands/vacuum.h"

/* No other code for other processors: a snapshot made on one wakes on another. */
#define DISABLE_DISPATCH

#if PG_VERSION_NUM >= 180000
/* Debian 13's pgvector, 0.8.0, is older than PostgreSQL 18, where this function takes an argument. */
#define vacuum_delay_point() vacuum_delay_point(false)
#endif
