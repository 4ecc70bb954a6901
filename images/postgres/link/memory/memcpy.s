# memcpy and memmove for x86-64-v1, for PostgreSQL's C library and for the guest's kernel alike.
#
# PostgreSQL copies tuples: most lengths are below 128, where `rep movs` takes longer to start than these take in all.
# Up to 128 bytes everything is loaded before anything is stored, so overlap does not matter. Longer copies go in the
# direction that overlap asks for, 64 bytes at a time, with the far end loaded first and stored last; from 2 KiB on,
# without overlap, `rep movsb` is as fast and touches no vector register.
.text
.global memcpy
.global memmove
.type memcpy,@function
.type memmove,@function
.balign 64
memcpy:
memmove:
	mov %rdi,%rax
	cmp $16,%rdx
	jb 10f
	movups (%rsi),%xmm0
	movups -16(%rsi,%rdx),%xmm1
	cmp $32,%rdx
	ja 1f
	movups %xmm0,(%rdi)
	movups %xmm1,-16(%rdi,%rdx)
	ret
1:	movups 16(%rsi),%xmm2
	movups -32(%rsi,%rdx),%xmm3
	cmp $64,%rdx
	ja 2f
	movups %xmm0,(%rdi)
	movups %xmm2,16(%rdi)
	movups %xmm3,-32(%rdi,%rdx)
	movups %xmm1,-16(%rdi,%rdx)
	ret
2:	movups 32(%rsi),%xmm4
	movups 48(%rsi),%xmm5
	movups -64(%rsi,%rdx),%xmm6
	movups -48(%rsi,%rdx),%xmm7
	cmp $128,%rdx
	ja 3f
	movups %xmm0,(%rdi)
	movups %xmm2,16(%rdi)
	movups %xmm4,32(%rdi)
	movups %xmm5,48(%rdi)
	movups %xmm6,-64(%rdi,%rdx)
	movups %xmm7,-48(%rdi,%rdx)
	movups %xmm3,-32(%rdi,%rdx)
	movups %xmm1,-16(%rdi,%rdx)
	ret

# More than 128 bytes. Backwards if the target begins within the source.
3:	mov %rdi,%rcx
	sub %rsi,%rcx
	cmp %rdx,%rcx
	jb 6f
	cmp $2048,%rdx
	jb 4f
	neg %rcx
	cmp %rdx,%rcx
	jb 4f
	mov %rdx,%rcx
	rep movsb
	ret

# Forwards: the last 64 bytes wait in xmm6, 7, 3, 1, the first 16 in xmm0; the stores between are aligned.
4:	lea -64(%rdi,%rdx),%r8
	lea 16(%rdi),%rcx
	and $-16,%rcx
	sub %rdi,%rcx
	add %rcx,%rsi
	add %rdi,%rcx
5:	movups (%rsi),%xmm2
	movups 16(%rsi),%xmm4
	movups 32(%rsi),%xmm5
	movups 48(%rsi),%xmm8
	movaps %xmm2,(%rcx)
	movaps %xmm4,16(%rcx)
	movaps %xmm5,32(%rcx)
	movaps %xmm8,48(%rcx)
	add $64,%rsi
	add $64,%rcx
	cmp %r8,%rcx
	jb 5b
	movups %xmm6,(%r8)
	movups %xmm7,16(%r8)
	movups %xmm3,32(%r8)
	movups %xmm1,48(%r8)
	movups %xmm0,(%rax)
	ret

# Backwards: the first 64 bytes wait in xmm0, 2, 4, 5, the last 16 in xmm1.
6:	lea (%rdi,%rdx),%rcx
	lea (%rsi,%rdx),%rsi
	mov %rcx,%r8
	dec %rcx
	and $-16,%rcx
	mov %r8,%r9
	sub %rcx,%r9
	sub %r9,%rsi
	lea 64(%rdi),%r9
7:	movups -16(%rsi),%xmm3
	movups -32(%rsi),%xmm6
	movups -48(%rsi),%xmm7
	movups -64(%rsi),%xmm8
	movaps %xmm3,-16(%rcx)
	movaps %xmm6,-32(%rcx)
	movaps %xmm7,-48(%rcx)
	movaps %xmm8,-64(%rcx)
	sub $64,%rsi
	sub $64,%rcx
	cmp %r9,%rcx
	ja 7b
	movups %xmm1,-16(%r8)
	movups %xmm0,(%rdi)
	movups %xmm2,16(%rdi)
	movups %xmm4,32(%rdi)
	movups %xmm5,48(%rdi)
	ret

# Fewer than 16.
10:	cmp $8,%edx
	jb 11f
	mov (%rsi),%rcx
	mov -8(%rsi,%rdx),%r8
	mov %rcx,(%rdi)
	mov %r8,-8(%rdi,%rdx)
	ret
11:	cmp $4,%edx
	jb 12f
	mov (%rsi),%ecx
	mov -4(%rsi,%rdx),%r8d
	mov %ecx,(%rdi)
	mov %r8d,-4(%rdi,%rdx)
	ret
12:	cmp $1,%edx
	jb 14f
	movzbl (%rsi),%ecx
	je 13f
	movzwl -2(%rsi,%rdx),%r8d
	mov %r8w,-2(%rdi,%rdx)
13:	mov %cl,(%rdi)
14:	ret
.size memcpy,.-memcpy
.size memmove,.-memmove
