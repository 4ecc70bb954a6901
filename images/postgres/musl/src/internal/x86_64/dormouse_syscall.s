# The system call on Linux: long __dormouse_syscall(n, a, b, c, d, e, f), the last on the stack.
.text
.global __dormouse_syscall
.hidden __dormouse_syscall
.type __dormouse_syscall,@function
__dormouse_syscall:
	mov %rdi,%rax
	mov %rsi,%rdi
	mov %rdx,%rsi
	mov %rcx,%rdx
	mov %r8,%r10
	mov %r9,%r8
	mov 8(%rsp),%r9
	syscall
	ret
.size __dormouse_syscall,.-__dormouse_syscall
