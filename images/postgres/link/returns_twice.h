/*
 * Included first into every file of the server. Our fork_process returns twice (link/fork.c), which the compiler
 * must know where it is called, so that nothing the second return needs has been overwritten by then.
 */
extern int fork_process(void) __attribute__((returns_twice));
