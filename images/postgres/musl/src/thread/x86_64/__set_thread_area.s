# int __set_thread_area(void *p): arch_prctl(ARCH_SET_FS, p) through the out-of-line system call.
.text
.global __set_thread_area
.hidden __set_thread_area
.hidden __dormouse_syscall
.type __set_thread_area,@function
__set_thread_area:
	mov %rdi,%rdx
	mov $0x1002,%esi
	mov $158,%edi
	jmp __dormouse_syscall
.size __set_thread_area,.-__set_thread_area
