/*
 * pid_t __wrap_fork_process(void): returns 0 at once, as if in the child, after noting where it was called from.
 * void __dormouse_fork_return(long pid): returns a second time from there, with pid, as if in the parent.
 *
 * Written in assembly since a C function cannot return twice without the frame of its own being gone.
 */
	.text
	.globl	__wrap_fork_process
	.type	__wrap_fork_process, @function
__wrap_fork_process:
	lea	context(%rip), %rdx
	mov	(%rsp), %rax
	mov	%rax, 0(%rdx)
	lea	8(%rsp), %rax
	mov	%rax, 8(%rdx)
	mov	%rbx, 16(%rdx)
	mov	%rbp, 24(%rdx)
	mov	%r12, 32(%rdx)
	mov	%r13, 40(%rdx)
	mov	%r14, 48(%rdx)
	mov	%r15, 56(%rdx)
	xor	%eax, %eax
	ret
	.size	__wrap_fork_process, .-__wrap_fork_process

	.globl	__dormouse_fork_return
	.type	__dormouse_fork_return, @function
__dormouse_fork_return:
	mov	%rdi, %rax
	lea	context(%rip), %rdx
	mov	16(%rdx), %rbx
	mov	24(%rdx), %rbp
	mov	32(%rdx), %r12
	mov	40(%rdx), %r13
	mov	48(%rdx), %r14
	mov	56(%rdx), %r15
	mov	8(%rdx), %rsp
	jmp	*0(%rdx)
	.size	__dormouse_fork_return, .-__dormouse_fork_return

	.bss
	.balign	8
context:
	.zero	64
	.section .note.GNU-stack,"",@progbits
