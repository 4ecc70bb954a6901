/* Starting a process in the guest: system call 1000 of Dormouse's kernel (images/kernel/README.md). */
#include <signal.h>

#define SYS_dormouse_spawn 1000

extern long __dormouse_syscall(long n, long a, long b, long c, long d, long e, long f);

long
__dormouse_spawn(const char *path, char *const argv[], char *const envp[], const sigset_t *mask)
{
	return __dormouse_syscall(SYS_dormouse_spawn, (long) path, (long) argv, (long) envp, (long) mask, 0, 0);
}
