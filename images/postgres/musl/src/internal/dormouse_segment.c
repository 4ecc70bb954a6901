#include <stdint.h>

/*
 * What is added to the link addresses of data to find this process' own: %fs's base, in memory, since reading that
 * register takes longer. The guest's kernel writes it before the process' first instruction; on Linux it is 0.
 */
uintptr_t __dormouse_segment;

/* The thread pointer, which elsewhere is %fs's base. */
uintptr_t __dormouse_thread;
