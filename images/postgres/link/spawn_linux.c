/* Starting a process on Linux, with the meaning of the guest kernel's system call 1000. */
#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <sys/types.h>

long
__dormouse_spawn(const char *path, char *const argv[], char *const envp[], const sigset_t *mask)
{
	posix_spawnattr_t attributes;
	pid_t		pid;
	int			error;

	posix_spawnattr_init(&attributes);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
	posix_spawnattr_setsigmask(&attributes, mask);
	error = posix_spawn(&pid, path, 0, &attributes, argv, envp);
	posix_spawnattr_destroy(&attributes);
	return error != 0 ? -error : pid;
}
