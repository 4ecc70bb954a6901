# memcmp (and bcmp) for x86-64-v1, for PostgreSQL's C library and for the guest's kernel alike: musl's goes byte by byte,
# and every comparison of text is one.
.text
.global memcmp
.weak bcmp
.type memcmp,@function
.type bcmp,@function
.balign 64
memcmp:
bcmp:
	cmp $16,%rdx
	jb 4f
	sub $16,%rdx
	xor %ecx,%ecx
1:	movups (%rdi,%rcx),%xmm0
	movups (%rsi,%rcx),%xmm1
	pcmpeqb %xmm1,%xmm0
	pmovmskb %xmm0,%eax
	xor $0xffff,%eax
	jnz 3f
	cmp %rdx,%rcx
	je 2f
	add $16,%rcx
	cmp %rdx,%rcx
	jb 1b
	mov %rdx,%rcx
	jmp 1b
2:	xor %eax,%eax
	ret
3:	bsf %eax,%eax
	add %rax,%rcx
	movzbl (%rdi,%rcx),%eax
	movzbl (%rsi,%rcx),%edx
	sub %edx,%eax
	ret

# Fewer than 16: as numbers with the first byte on top, the second time from the end.
4:	cmp $8,%edx
	jb 6f
	mov (%rdi),%rax
	mov (%rsi),%rcx
	cmp %rcx,%rax
	jne 5f
	mov -8(%rdi,%rdx),%rax
	mov -8(%rsi,%rdx),%rcx
	cmp %rcx,%rax
	je 2b
5:	bswap %rax
	bswap %rcx
	cmp %rcx,%rax
	sbb %eax,%eax
	or $1,%eax
	ret
6:	cmp $4,%edx
	jb 8f
	mov (%rdi),%eax
	mov (%rsi),%ecx
	cmp %ecx,%eax
	jne 7f
	mov -4(%rdi,%rdx),%eax
	mov -4(%rsi,%rdx),%ecx
	cmp %ecx,%eax
	je 2b
7:	bswap %eax
	bswap %ecx
	cmp %ecx,%eax
	sbb %eax,%eax
	or $1,%eax
	ret
8:	test %edx,%edx
	jz 2b
9:	movzbl (%rdi),%eax
	movzbl (%rsi),%ecx
	sub %ecx,%eax
	jnz 10f
	inc %rdi
	inc %rsi
	dec %edx
	jnz 9b
10:	ret
.size memcmp,.-memcmp
.size bcmp,.-bcmp
