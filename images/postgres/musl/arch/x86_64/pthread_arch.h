/*
 * Dormouse: the thread pointer is a variable. There is one thread in a process, and %fs serves all accesses to data
 * (images/segment).
 */
extern __attribute__((__visibility__("hidden"))) uintptr_t __dormouse_thread;

static inline uintptr_t __get_tp()
{
	return __dormouse_thread;
}

#define MC_PC gregs[REG_RIP]
