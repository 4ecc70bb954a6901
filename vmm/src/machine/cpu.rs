//! The vCPU at its first instruction: long mode, ring 3, vector state on, interrupts on, no port access.

use dormouse_abi::{SYSTEM, selector, system};
use kvm_bindings::{CpuId, kvm_regs, kvm_segment, kvm_xcr, kvm_xcrs};
use kvm_ioctls::VcpuFd;

use super::{MachineError, refused};

/// PG | AM | WP | NE | ET | MP | PE.
const CR0: u64 = 0x8005_0033;
/// PAE | OSFXSR | OSXMMEXCPT | FSGSBASE | OSXSAVE. SMEP and SMAP would forbid ring 0 the ring-3 pages that the
/// exception stubs share with everything else.
const CR4: u64 = (1 << 5) | (1 << 9) | (1 << 10) | (1 << 16) | (1 << 18);
/// SCE | LME | LMA | NXE.
const EFER: u64 = 0xd01;
/// x87, SSE and AVX. Wider vector state stays off: every preemption would save it, and each bit ties a snapshot
/// to fewer hosts.
const XCR0: u64 = 7;
/// Interrupts on, IOPL 0, and the bit that is always set.
const RFLAGS: u64 = 0x202;

/// Length of the TSS in bytes.
pub const TSS_LEN: u64 = 104;

const CODE: u8 = 11;
const DATA: u8 = 3;
const BUSY_TSS: u8 = 11;

/// Unprivileged instructions of leaf 1, register ECX, that run as they are in ring 3: SSE3 to SSE4.2, PCLMULQDQ,
/// FMA, CMPXCHG16B, MOVBE, POPCNT, AES, XSAVE, AVX, F16C, RDRAND.
const PLAIN_1_ECX: u32 = 1
    | 1 << 1
    | 1 << 9
    | 1 << 12
    | 1 << 13
    | 1 << 19
    | 1 << 20
    | 1 << 22
    | 1 << 23
    | 1 << 25
    | 1 << 26
    | 1 << 28
    | 1 << 29
    | 1 << 30;
/// The same of leaf 7, register EBX: FSGSBASE, BMI1, AVX2, BMI2, ERMS, RDSEED, ADX, CLFLUSHOPT, SHA.
const PLAIN_7_EBX: u32 = 1 | 1 << 3 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 18 | 1 << 19 | 1 << 23 | 1 << 29;
/// The same of leaf 0x8000_0001, register ECX: LAHF, LZCNT, SSE4A, PREFETCHW.
const PLAIN_EXT_ECX: u32 = 1 | 1 << 5 | 1 << 6 | 1 << 8;
const XSAVE: u32 = 1 << 26;

/// Checks for the features every guest uses, hides those that it must not find, and adds those that KVM hides.
///
/// KVM without hardware support (PVM) lists none of the vector extensions, though ring 3 runs on the bare CPU and
/// has them all. There the host's own list is taken for instructions that need nothing of ring 0.
pub fn check_and_trim(cpuid: &mut CpuId) -> Result<(), MachineError> {
    for (present, name) in [
        (std::is_x86_feature_detected!("xsave"), "XSAVE"),
        (std::is_x86_feature_detected!("avx"), "AVX"),
        (std::is_x86_feature_detected!("sse4.2"), "SSE4.2"),
    ] {
        if !present {
            return Err(MachineError::Cpu(name));
        }
    }
    let bare = cpuid.as_slice().iter().any(|entry| entry.function == 1 && entry.ecx & XSAVE == 0);
    let host = core::arch::x86_64::__cpuid_count;
    for entry in cpuid.as_mut_slice() {
        match (entry.function, entry.index) {
            (1, _) => {
                if bare {
                    entry.ecx |= host(1, 0).ecx & PLAIN_1_ECX;
                }
                // No local APIC is emulated: hide it, x2APIC and the TSC deadline timer.
                entry.edx &= !(1 << 9);
                entry.ecx &= !((1 << 21) | (1 << 24));
            }
            (7, 0) => {
                if bare {
                    entry.ebx |= host(7, 0).ebx & PLAIN_7_EBX;
                }
                // AVX-512 and AMX need vector state that XCR0 leaves off; protection keys need CR4.PKE.
                entry.ebx &=
                    !((1 << 16) | (1 << 17) | (1 << 21) | (1 << 26) | (1 << 27) | (1 << 28) | (1 << 30) | (1 << 31));
                entry.ecx &= !((1 << 1) | (1 << 3) | (1 << 4) | (1 << 6) | (1 << 11) | (1 << 12) | (1 << 14));
                entry.edx &= !((1 << 2) | (1 << 3) | (1 << 8) | (1 << 22) | (1 << 23) | (1 << 24) | (1 << 25));
            }
            (7, 1) => entry.eax &= !(1 << 5),
            (0x8000_0001, _) if bare => entry.ecx |= host(0x8000_0001, 0).ecx & PLAIN_EXT_ECX,
            _ => {}
        }
    }
    Ok(())
}

/// What a snapshot is bound to: the CPU's identity, the host's kernel, and which KVM it has.
pub fn identity(cpuid: &CpuId) -> String {
    let mut vendor = Vec::new();
    let (mut signature, mut features) = (0, 0u64);
    for entry in cpuid.as_slice() {
        match (entry.function, entry.index) {
            (0, _) => {
                for register in [entry.ebx, entry.edx, entry.ecx] {
                    vendor.extend_from_slice(&register.to_le_bytes());
                }
            }
            (1, _) => {
                signature = entry.eax;
                // OSXSAVE follows CR4 and is not a property of the CPU.
                features ^= u64::from(entry.ecx & !(1 << 27)) | u64::from(entry.edx) << 32;
            }
            (7, 0) => features = features.rotate_left(17) ^ (u64::from(entry.ebx) | u64::from(entry.ecx) << 32),
            _ => {}
        }
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let flavour = ["kvm_pvm", "kvm_intel", "kvm_amd"]
        .into_iter()
        .find(|module| std::path::Path::new("/sys/module").join(module).exists())
        .unwrap_or("kvm");
    format!(
        "{} {signature:08x} {features:016x}; {flavour}; {}",
        String::from_utf8_lossy(&vendor).trim_end_matches('\0'),
        release.trim()
    )
}

fn code(selector: u16) -> kvm_segment {
    kvm_segment { limit: u32::MAX, selector, type_: CODE, present: 1, dpl: 3, s: 1, l: 1, g: 1, ..Default::default() }
}

fn data(selector: u16) -> kvm_segment {
    kvm_segment { limit: u32::MAX, selector, type_: DATA, present: 1, dpl: 3, db: 1, s: 1, g: 1, ..Default::default() }
}

/// Sets everything but memory: descriptor tables as [`crate::boot`] lays them, page tables at `page_tables`,
/// `%rip` = `entry`, `%rdi` = `argument`.
pub fn reset(vcpu: &VcpuFd, page_tables: u64, entry: u64, argument: u64) -> Result<(), MachineError> {
    let mut sregs = vcpu.get_sregs().map_err(refused("read the special registers"))?;
    sregs.cr0 = CR0;
    sregs.cr3 = page_tables;
    sregs.cr4 = CR4;
    sregs.efer = EFER;
    sregs.cs = code(selector::RING3_CODE);
    let data = data(selector::RING3_DATA);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        base: SYSTEM + system::TSS,
        limit: (TSS_LEN - 1) as u32,
        selector: selector::TSS,
        type_: BUSY_TSS,
        present: 1,
        ..Default::default()
    };
    sregs.gdt.base = SYSTEM + system::GDT;
    sregs.gdt.limit = 63;
    sregs.idt.base = SYSTEM + system::IDT;
    sregs.idt.limit = 4095;
    vcpu.set_sregs(&sregs).map_err(refused("set the special registers"))?;
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: XCR0, ..Default::default() };
    vcpu.set_xcrs(&xcrs).map_err(refused("turn vector state on"))?;
    let regs = kvm_regs { rip: entry, rdi: argument, rflags: RFLAGS, ..Default::default() };
    vcpu.set_regs(&regs).map_err(refused("set the registers"))
}
