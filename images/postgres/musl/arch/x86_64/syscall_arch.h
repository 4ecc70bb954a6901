/*
 * Dormouse: a system call is an ordinary C call.
 *
 * In the guest, kernel and program share one address space and one privilege level, so there is no instruction to
 * trap with; __dormouse_syscall jumps to the kernel's entry. On Linux it executes `syscall` (dormouse_syscall.s in
 * libc.a, taken when the link provides no other), so that the same objects can be run and tested there.
 *
 * VDSO_USEFUL is left undefined: the guest has no vDSO, and a clock read is already only a call.
 */
#define __SYSCALL_LL_E(x) (x)
#define __SYSCALL_LL_O(x) (x)

__attribute__((__visibility__("hidden")))
long __dormouse_syscall(long n, long a, long b, long c, long d, long e, long f);

static __inline long __syscall0(long n)
{
	return __dormouse_syscall(n, 0, 0, 0, 0, 0, 0);
}

static __inline long __syscall1(long n, long a1)
{
	return __dormouse_syscall(n, a1, 0, 0, 0, 0, 0);
}

static __inline long __syscall2(long n, long a1, long a2)
{
	return __dormouse_syscall(n, a1, a2, 0, 0, 0, 0);
}

static __inline long __syscall3(long n, long a1, long a2, long a3)
{
	return __dormouse_syscall(n, a1, a2, a3, 0, 0, 0);
}

static __inline long __syscall4(long n, long a1, long a2, long a3, long a4)
{
	return __dormouse_syscall(n, a1, a2, a3, a4, 0, 0);
}

static __inline long __syscall5(long n, long a1, long a2, long a3, long a4, long a5)
{
	return __dormouse_syscall(n, a1, a2, a3, a4, a5, 0);
}

static __inline long __syscall6(long n, long a1, long a2, long a3, long a4, long a5, long a6)
{
	return __dormouse_syscall(n, a1, a2, a3, a4, a5, a6);
}

#define IPC_64 0
