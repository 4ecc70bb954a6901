//! The processor: entry, vectors, preemption, context switches.
//!
//! Ring 0 holds the stubs between `vectors` and `ring0_end`, and nothing else. They touch no vector state and
//! make no call: each rewrites the frame it was entered with, so that `iretq` goes on in ring 3, in
//! `preempt_trampoline` (a clock or device event) or `fault_trampoline` (an exception).
//!
//! `IN_KERNEL` takes the place of the interrupt flag, which ring 3 cannot rely on changing: an event that finds
//! it set leaves a note in `NEED_RESCHED` and returns.

use core::arch::{asm, global_asm};
use dormouse_abi as abi;

global_asm!(
    r#"
    .section .header, "a"
    .quad {magic}
    .long {abi_version}, touch_pages - {kernel}
    .quad kernel_entry
    .quad syscall_entry
    .quad vectors
    .quad kernel_end

    .text
    .globl kernel_entry
kernel_entry:
    lea rsp, [rip + BOOT_STACK + {boot_stack}]
    xor ebp, ebp
    and rsp, -16
    call kernel_main
    ud2

    // Before the guest is anyone's (the ABI's `KernelHeader::touch`).
touch_pages:
    mov rax, [rdi]
    add rdi, 8
    test rax, rax
    jz 1f
    mov al, [rax]
    jmp touch_pages
1:  mov rax, {halt}
    mov dword ptr [rax], 0
    ud2

    // ---- ring 0 ----
    .balign 16
    .globl vectors
vectors:
    .set vector, 0
    .rept 256
    .balign 16
    .if vector == {event}
    jmp event_stub
    .else
    .if !((vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30))
    push 0
    .endif
    push vector
    jmp fault_stub
    .endif
    .set vector, vector + 1
    .endr

    .balign 16
event_stub:
    cmp byte ptr [rip + IN_KERNEL], 0
    jne 1f
    mov byte ptr [rip + IN_KERNEL], 1
    push rax
    mov rax, [rsp + 8]
    mov [rip + PREEMPT_RIP], rax
    lea rax, [rip + preempt_trampoline]
    mov [rsp + 8], rax
    pop rax
    iretq
1:  mov byte ptr [rip + NEED_RESCHED], 1
    iretq

    // On the ring-0 stack: vector, error, rip, cs, rflags, rsp, ss.
fault_stub:
    push rax
    mov [rip + FAULT_FRAME + 48], rax
    mov rax, cr2
    mov [rip + FAULT_FRAME], rax
    mov rax, [rsp + 8]
    mov [rip + FAULT_FRAME + 8], rax
    mov rax, [rsp + 16]
    mov [rip + FAULT_FRAME + 16], rax
    mov rax, [rsp + 24]
    mov [rip + FAULT_FRAME + 24], rax
    mov rax, [rsp + 40]
    mov [rip + FAULT_FRAME + 32], rax
    mov rax, [rsp + 48]
    mov [rip + FAULT_FRAME + 40], rax
    mov al, [rip + IN_KERNEL]
    mov [rip + FAULT_FRAME + 56], al
    mov byte ptr [rip + IN_KERNEL], 1
    lea rax, [rip + fault_trampoline]
    mov [rsp + 24], rax
    mov qword ptr [rsp + 32], {ring3_code}
    mov qword ptr [rsp + 40], 0x202
    lea rax, [rip + FAULT_STACK + {fault_stack}]
    mov [rsp + 48], rax
    mov qword ptr [rsp + 56], {ring3_data}
    pop rax
    add rsp, 16
    iretq
    .globl ring0_end
ring0_end:

    // ---- ring 3 ----
fault_trampoline:
    push r15
    push r14
    push r13
    push r12
    push r11
    push r10
    push r9
    push r8
    push rdi
    push rsi
    push rbp
    push rbx
    push rdx
    push rcx
    cld
    // Neither its handler nor, where it ends, the next task goes on from there.
    mov eax, {xsave_mask}
    xor edx, edx
    xrstor64 [rip + INITIAL_VECTORS]
    mov rdi, rsp
    and rsp, -16
    call fault_entry
    ud2

    // On the task's own stack, which the event may have found anywhere: step over the red zone. First what a backtrace
    // looks for, the address and %rbp.
preempt_trampoline:
    lea rsp, [rsp - 128]
    push [rip + PREEMPT_RIP]
    push rbp
    mov rbp, rsp
    pushfq
    cld
    push rax
    push rcx
    push rdx
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    sub rsp, {xsave_len}
    and rsp, -64
    xor eax, eax
    mov [rsp + 512], rax
    mov [rsp + 520], rax
    mov [rsp + 528], rax
    mov [rsp + 536], rax
    mov [rsp + 544], rax
    mov [rsp + 552], rax
    mov [rsp + 560], rax
    mov [rsp + 568], rax
    mov eax, {xsave_mask}
    xor edx, edx
    xsave64 [rsp]
    // Whoever runs now and had waited has called a function: by the calling convention it left the x87's registers empty
    // and expects to find them so.
    xrstor64 [rip + INITIAL_VECTORS]
    call preempt_entry
    mov eax, {xsave_mask}
    xor edx, edx
    xrstor64 [rsp]
    lea rsp, [rbp - 80]
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rax
    popfq
    pop rbp
    ret 128

    // switch_stacks(save: *mut u64, load: u64). MXCSR and the x87's control word are the same for all: nothing in the program changes
    // them for longer than a computation.
    .globl switch_stacks
switch_stacks:
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
    mov [rdi], rsp
    mov rsp, rsi
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret

    // First instructions of a new task: r12 = its stack, r13 = its entry.
    .globl task_start
task_start:
    call task_begin
    mov rsp, r12
    xor edx, edx
    xor ebp, ebp
    mov byte ptr [rip + IN_KERNEL], 0
    jmp r13

    // call_handler(handler, signal, info, context, stack): on `stack` if it is not 0, and does not return then.
    .globl call_on_stack
call_on_stack:
    mov rax, rdi
    mov rdi, rsi
    mov rsi, rdx
    mov rdx, rcx
    mov rsp, r8
    and rsp, -16
    mov byte ptr [rip + IN_KERNEL], 0
    call rax
    mov edi, 128
    call handler_returned
    ud2

    .data
    .globl IN_KERNEL
IN_KERNEL:    .byte 1
    .globl NEED_RESCHED
NEED_RESCHED: .byte 0
    .balign 8
PREEMPT_RIP:  .quad 0
    .globl FAULT_FRAME
FAULT_FRAME:  .fill 8, 8, 0
    // Its header names no component: each is set to what it is after a reset, but MXCSR, which is at 24.
    .balign 64
INITIAL_VECTORS:
    .fill 24, 1, 0
    .long 0x1f80
    .fill 548, 1, 0
    .bss
    .balign 64
BOOT_STACK:   .fill {boot_stack}, 1, 0
FAULT_STACK:  .fill {fault_stack}, 1, 0
    .text
    "#,
    magic = const abi::KERNEL_MAGIC,
    abi_version = const abi::ABI_VERSION,
    kernel = const abi::KERNEL,
    halt = const abi::DOORBELL + abi::doorbell::HALT,
    event = const abi::VECTOR_EVENT,
    ring3_code = const abi::selector::RING3_CODE,
    ring3_data = const abi::selector::RING3_DATA,
    boot_stack = const 16 << 10,
    fault_stack = const 16 << 10,
    // x87, SSE, AVX and AVX-512: what compiled code may hold. At most 2,688 bytes in the standard format.
    xsave_mask = const 0xe7,
    xsave_len = const 2816,
);

// memcpy and its kin, the same as in PostgreSQL's C library.
global_asm!(include_str!("../../postgres/link/memory/memcpy.s"), options(att_syntax));
global_asm!(include_str!("../../postgres/link/memory/memset.s"), options(att_syntax));
global_asm!(include_str!("../../postgres/link/memory/memcmp.s"), options(att_syntax));

/// What an exception left behind; written by the ring-0 stub.
#[repr(C)]
pub struct FaultFrame {
    pub cr2: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub rax: u64,
    /// Whether the kernel was running.
    pub in_kernel: u8,
}

unsafe extern "C" {
    static mut IN_KERNEL: u8;
    static mut NEED_RESCHED: u8;
    pub static FAULT_FRAME: FaultFrame;
    fn switch_stacks(save: *mut u64, load: u64);
    fn task_start();
    fn call_on_stack(handler: usize, signal: u64, info: *const u8, context: *const u8, stack: u64) -> !;
}

/// Enters or leaves the part of the code that events may not preempt.
pub fn set_in_kernel(inside: bool) {
    // SAFETY: a byte that the ring-0 stub reads; volatile keeps the compiler from moving it.
    unsafe { core::ptr::write_volatile(&raw mut IN_KERNEL, inside as u8) };
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
}

/// Whether an event came while the kernel ran; forgets it.
pub fn take_need_resched() -> bool {
    // SAFETY: as above. An event between the two accesses sets it again or is noticed at the next call.
    unsafe {
        let was = core::ptr::read_volatile(&raw const NEED_RESCHED);
        if was != 0 {
            core::ptr::write_volatile(&raw mut NEED_RESCHED, 0);
        }
        was != 0
    }
}

pub fn rdtsc() -> u64 {
    // SAFETY: reads a counter. No fence: time may be a few ns early, never backwards on one vCPU.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Sets by what the running task finds its data.
pub fn write_fs_base(value: u64) {
    // SAFETY: CR4.FSGSBASE is on (the VMM sets it); kernel code does not use %fs.
    unsafe { asm!("wrfsbase {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// A doorbell write: see [`abi::doorbell`].
pub fn doorbell(register: u64, value: u32) {
    // SAFETY: no memory lies behind the address; the store leaves the guest and may change any memory the VMM
    // serves, hence the default memory clobber.
    unsafe { asm!("mov dword ptr [{}], {:e}", in(reg) abi::DOORBELL + register, in(reg) value, options(nostack)) };
}

/// Saves the running context in `save` and goes on with the one in `load`.
///
/// # Safety
/// `load` came from an earlier `switch_context` or from `new_context`, and its stack is alive.
pub unsafe fn switch_context(save: *mut u64, load: u64) {
    // SAFETY: by the caller.
    unsafe { switch_stacks(save, load) }
}

/// Prepares the context of a task that has never run: it starts at `entry` with `stack` as its stack pointer.
/// The saved registers are laid just below `stack`.
///
/// # Safety
/// The 128 bytes below `stack` are writable and unused.
pub unsafe fn new_context(entry: u64, stack: u64) -> u64 {
    // r15, r14, r13, r12, rbx, rbp, return address; the address is chosen so that the call in `task_start`
    // finds the stack aligned.
    let context = (stack - 128) & !15;
    let words = context as *mut u64;
    // SAFETY: by the caller.
    unsafe {
        for i in 0..6 {
            words.add(i).write(0);
        }
        words.add(2).write(entry);
        words.add(3).write(stack);
        words.add(6).write(task_start as *const () as usize as u64);
    }
    context
}

/// Runs a signal handler on `stack` for good: for faults, where there is nothing to return to.
///
/// # Safety
/// `handler` is a function of the program, `stack` belongs to the running task.
pub unsafe fn enter_handler(handler: usize, signal: i32, info: *const u8, context: *const u8, stack: u64) -> ! {
    // SAFETY: by the caller.
    unsafe { call_on_stack(handler, signal as u64, info, context, stack) }
}
