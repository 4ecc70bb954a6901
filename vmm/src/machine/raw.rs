//! KVM calls that kvm-ioctls leaves out on x86-64, numbers checked against the kernel's ABI below.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Msrs, kvm_device_attr, kvm_interrupt, kvm_ioeventfd, kvm_msr_entry,
};
use kvm_ioctls::{VcpuFd, VmFd};

use super::{MachineError, refused};

const KVMIO: u64 = 0xae;
/// `_IOW(KVMIO, number, T)`
const fn iow<T>(number: u64) -> u64 {
    (1 << 30) | ((size_of::<T>() as u64) << 16) | (KVMIO << 8) | number
}
const KVM_INTERRUPT: u64 = iow::<kvm_interrupt>(0x86);
const KVM_IOEVENTFD: u64 = iow::<kvm_ioeventfd>(0x79);
const KVM_SET_DEVICE_ATTR: u64 = iow::<kvm_device_attr>(0xe1);
const KVM_HAS_DEVICE_ATTR: u64 = iow::<kvm_device_attr>(0xe3);
const _: () = {
    assert!(KVM_INTERRUPT == 0x4004_ae86);
    assert!(KVM_IOEVENTFD == 0x4040_ae79);
    assert!(KVM_SET_DEVICE_ATTR == 0x4018_aee1);
};
const MSR_TSC: u32 = 0x10;

/// Queues an external interrupt; the guest takes it at the next entry. The caller has checked
/// `ready_for_interrupt_injection`.
pub fn interrupt(vcpu: &VcpuFd, vector: u8) -> io::Result<()> {
    let interrupt = kvm_interrupt { irq: u32::from(vector) };
    // SAFETY: the descriptor is a vCPU's, and the argument is what this ioctl reads.
    let done = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_INTERRUPT, &interrupt) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// From now on a 32-bit store at `address`, where there is no memory, only adds to the event counter: the guest goes on, and
/// the vCPU's thread does not come out.
pub fn signal_at(vm: &VmFd, address: u64, counter: impl AsFd) -> io::Result<()> {
    let fd = counter.as_fd().as_raw_fd();
    let event = kvm_ioeventfd { addr: address, len: 4, fd, ..Default::default() };
    // SAFETY: the descriptor is a VM's, and the argument is what this ioctl reads; it keeps a reference of its own.
    let done = unsafe { libc::ioctl(vm.as_raw_fd(), KVM_IOEVENTFD, &event) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes the guest read the host's TSC: exactly where KVM can set the offset, else as near as a write gets.
pub fn set_tsc_to_host(vcpu: &VcpuFd) -> Result<(), MachineError> {
    let offset = 0u64;
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: &raw const offset as u64,
        flags: 0,
    };
    // SAFETY: the descriptor is a vCPU's; the attribute points at a u64 that outlives both calls.
    unsafe {
        if libc::ioctl(vcpu.as_raw_fd(), KVM_HAS_DEVICE_ATTR, &attribute) == 0
            && libc::ioctl(vcpu.as_raw_fd(), KVM_SET_DEVICE_ATTR, &attribute) == 0
        {
            return Ok(());
        }
    }
    let entry = kvm_msr_entry { index: MSR_TSC, data: crate::clock::host_tsc(), ..Default::default() };
    let msrs = Msrs::from_entries(&[entry]).map_err(|_| MachineError::Cpu("time stamp counter"))?;
    vcpu.set_msrs(&msrs).map_err(refused("set the TSC"))?;
    Ok(())
}
