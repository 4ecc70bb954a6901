# memset for x86-64-v1, for PostgreSQL's C library and for the guest's kernel alike. As memcpy.s: short lengths by
# stores that may overlap, long ones by `rep stosb`.
.text
.global memset
.type memset,@function
.balign 64
memset:
	mov %rdi,%rax
	movzbl %sil,%esi
	imul $0x01010101,%esi,%esi
	cmp $16,%rdx
	jb 10f
	movd %esi,%xmm0
	pshufd $0,%xmm0,%xmm0
	movups %xmm0,(%rdi)
	movups %xmm0,-16(%rdi,%rdx)
	cmp $32,%rdx
	jbe 2f
	movups %xmm0,16(%rdi)
	movups %xmm0,-32(%rdi,%rdx)
	cmp $64,%rdx
	jbe 2f
	movups %xmm0,32(%rdi)
	movups %xmm0,48(%rdi)
	movups %xmm0,-64(%rdi,%rdx)
	movups %xmm0,-48(%rdi,%rdx)
	cmp $128,%rdx
	jbe 2f
	cmp $2048,%rdx
	jae 3f
	lea -64(%rdi,%rdx),%r8
	lea 64(%rdi),%rcx
	and $-16,%rcx
1:	movaps %xmm0,(%rcx)
	movaps %xmm0,16(%rcx)
	movaps %xmm0,32(%rcx)
	movaps %xmm0,48(%rcx)
	add $64,%rcx
	cmp %r8,%rcx
	jb 1b
2:	ret
3:	mov %rax,%r8
	mov %esi,%eax
	mov %rdx,%rcx
	rep stosb
	mov %r8,%rax
	ret

# Fewer than 16.
10:	cmp $4,%edx
	jb 11f
	mov %esi,(%rdi)
	mov %esi,-4(%rdi,%rdx)
	cmp $8,%edx
	jb 12f
	mov %esi,4(%rdi)
	mov %esi,-8(%rdi,%rdx)
	ret
11:	cmp $1,%edx
	jb 12f
	mov %sil,(%rdi)
	mov %sil,-1(%rdi,%rdx)
	cmp $2,%edx
	jbe 12f
	mov %sil,1(%rdi)
12:	ret
.size memset,.-memset
