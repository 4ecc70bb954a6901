/*
 * How the server starts processes, put in by the linker (--wrap) instead of by a patch.
 *
 * PostgreSQL with EXEC_BACKEND starts a process by fork_process() and, in the child, execv(). Dormouse's kernel has
 * neither: it starts the same program afresh with given arguments. So fork_process returns 0 as if in the child, and
 * execv starts the process and then returns from fork_process once more, in the parent, with the pid (fork.S).
 * Between the two the "child" does nothing else.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

extern char **environ;
/* PostgreSQL's: the mask with which a new process starts, until it has its own handlers. */
extern sigset_t BlockSig;

/* The new process' id, or a negated errno: see spawn_guest.c, spawn_linux.c. */
extern long __dormouse_spawn(const char *path, char *const argv[], char *const envp[], const sigset_t *mask);
extern _Noreturn void __dormouse_fork_return(long pid);

int
__wrap_execv(const char *path, char *const argv[])
{
	long		pid = __dormouse_spawn(path, argv, environ, &BlockSig);

	if (pid < 0)
	{
		/* As a failed fork: the postmaster reports it and goes on. */
		errno = (int) -pid;
		pid = -1;
	}
	__dormouse_fork_return(pid);
}

extern int	find_my_exec(const char *argv0, char *retpath);

/*
 * The server looks for the program that its children will run, and runs it once for its version. It is always the
 * program that is running.
 */
int
__wrap_find_other_exec(const char *argv0, const char *target, const char *versionstr, char *retpath)
{
	(void) target;
	(void) versionstr;
	return find_my_exec(argv0, retpath) < 0 ? -1 : 0;
}
