/*
 * The guest's system call: a jump through KernelHeader::syscall (images/abi), which lies at a fixed address.
 * What else in musl would execute the `syscall` instruction is replaced here, since nothing would answer it.
 */
	.text
	.globl	__dormouse_syscall
	.hidden	__dormouse_syscall
	.type	__dormouse_syscall, @function
__dormouse_syscall:
	jmp	*0x400018
	.size	__dormouse_syscall, .-__dormouse_syscall

/* No threads, no fork: posix_spawn, popen and system fail with ENOSYS. */
	.globl	__clone
	.hidden	__clone
	.type	__clone, @function
__clone:
	mov	$-38, %eax
	ret
	.size	__clone, .-__clone

/* The kernel calls a signal's handler as a C function and needs no frame to return from. */
	.globl	__restore_rt
	.hidden	__restore_rt
	.type	__restore_rt, @function
__restore_rt:
	ud2
	.size	__restore_rt, .-__restore_rt
	.section .note.GNU-stack,"",@progbits
