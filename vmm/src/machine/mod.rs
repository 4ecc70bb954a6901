//! One KVM virtual machine with one vCPU that runs wholly in ring 3.
//!
//! - [`memory`]: the RAM;
//! - [`cpu`]: what the CPU looks like at the first instruction;
//! - [`state`]: what of the CPU a snapshot keeps;
//! - [`raw`]: the KVM calls that kvm-ioctls does not offer on x86-64.
//!
//! Promises: no in-kernel interrupt controller, so making and ending a machine costs no kernel grace period;
//! the guest's TSC reads as the host's. Refuses: a host without KVM, or a CPU without AVX, XSAVE and FSGSBASE.

pub mod cpu;
pub mod memory;
pub mod raw;
pub mod state;

use std::io;
use std::os::fd::AsFd;

use dormouse_abi::{DOORBELL, doorbell};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

pub use memory::{MemoryError, Ram};

/// The only version of KVM's interface there has been since 2007.
const KVM_API_VERSION: i32 = 12;

/// Why a machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// `/dev/kvm` is missing or may not be opened.
    #[error("cannot open /dev/kvm: {0}; this machine needs KVM, and this user the right to use it")]
    NoKvm(io::Error),
    /// A KVM call failed.
    #[error("KVM refused to {what}: {source}")]
    Kvm { what: &'static str, source: io::Error },
    /// The CPU lacks what every guest needs.
    #[error("this CPU has no {0}, which the guest needs")]
    Cpu(&'static str),
    /// Guest memory could not be made.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Names the call that failed, for [`MachineError::Kvm`].
pub(crate) fn refused(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> MachineError {
    move |error| MachineError::Kvm { what, source: io::Error::from_raw_os_error(error.errno()) }
}

/// The host's KVM, and what of it and of the CPU the machines are made of: read once, since a jail has neither path nor device.
pub struct Host {
    kvm: Kvm,
    cpuid: CpuId,
    identity: String,
}

impl Host {
    pub fn open() -> Result<Self, MachineError> {
        let kvm = Kvm::new().map_err(|error| MachineError::NoKvm(io::Error::from_raw_os_error(error.errno())))?;
        // A device of that name that is not KVM is no KVM.
        if kvm.get_api_version() != KVM_API_VERSION {
            return Err(MachineError::NoKvm(io::Error::other("it does not speak KVM's interface, version 12")));
        }
        let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(refused("list CPU features"))?;
        cpu::check_and_trim(&mut cpuid)?;
        let identity = cpu::identity(&cpuid);
        Ok(Self { kvm, cpuid, identity })
    }
}

/// A virtual machine with its vCPU, not yet given any state.
pub struct Machine {
    /// The one vCPU.
    pub vcpu: VcpuFd,
    /// Guest memory.
    pub ram: Ram,
    /// Frequency of the guest's TSC, kHz.
    pub tsc_khz: u32,
    /// What identifies the CPU and the host's KVM; a snapshot is bound to it.
    pub identity: String,
    // Dropped after the vCPU: the VM lives as long as the memory slot is used.
    vm: VmFd,
}

impl Machine {
    /// Makes a VM with `ram` as its only memory slot and one vCPU.
    ///
    /// The slot is registered before the vCPU exists: the other way round waits for a grace period of the host.
    pub fn new(host: &Host, ram: Ram) -> Result<Self, MachineError> {
        let vm = host.kvm.create_vm().map_err(refused("create a VM"))?;
        let slot = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: ram.len(),
            userspace_addr: ram.host_base() as u64,
        };
        // SAFETY: the region is this Ram's own mapping, which the returned value keeps for as long as the VM.
        unsafe { vm.set_user_memory_region(slot) }.map_err(refused("register guest memory"))?;
        let vcpu = vm.create_vcpu(0).map_err(refused("create a vCPU"))?;
        vcpu.set_cpuid2(&host.cpuid).map_err(refused("set CPU features"))?;
        let tsc_khz = vcpu.get_tsc_khz().map_err(refused("tell the TSC's frequency"))?;
        raw::set_tsc_to_host(&vcpu)?;
        Ok(Self { vcpu, ram, tsc_khz, identity: host.identity.clone(), vm })
    }

    /// Makes the guest read the host's TSC, as it does at first.
    pub fn read_host_tsc(&self) -> Result<(), MachineError> {
        raw::set_tsc_to_host(&self.vcpu)
    }

    /// Enters the vCPU without running the guest, which completes the exit that it came out with: its registers are whole then. The
    /// first time KVM also makes what it needs for that, a thread among others, some 0.2 ms.
    pub fn enter_and_leave(&mut self) -> Result<(), MachineError> {
        self.vcpu.set_kvm_immediate_exit(1);
        let result = self.vcpu.run().map(|_| ());
        self.vcpu.set_kvm_immediate_exit(0);
        match result {
            Err(error) if error.errno() != libc::EINTR => Err(refused("enter the vCPU")(error)),
            _ => Ok(()),
        }
    }

    /// Has the SEND doorbell wake whoever waits for `counter`.
    pub fn send_wakes(&self, counter: impl AsFd) -> Result<(), MachineError> {
        raw::signal_at(&self.vm, DOORBELL + doorbell::SEND, counter)
            .map_err(|source| MachineError::Kvm { what: "signal a doorbell", source })
    }
}
