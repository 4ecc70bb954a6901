//! What a snapshot keeps of the vCPU.
//!
//! The registers, the special registers, the vector state and pending events. No model-specific registers: the
//! guest runs in ring 3 and its ring-0 stubs write none, so they are all as KVM made them; the bases of FS and GS
//! are among the special registers, and the TSC is the host's.

use kvm_bindings::{kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave};
use kvm_ioctls::VcpuFd;

use super::{MachineError, refused};
use crate::codec::{Malformed, Reader, Writer};

/// The vCPU's state.
pub struct CpuState {
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    events: kvm_vcpu_events,
}

/// Types of the KVM ABI: plain integers, any bytes are a value of them.
///
/// # Safety
/// The type is `repr(C)`, without padding that is uninitialised when KVM has filled it, and valid for all bytes.
unsafe trait Plain: Default {}
// SAFETY: structs of integers filled by the kernel, declared by bindgen with explicit padding fields.
unsafe impl Plain for kvm_regs {}
// SAFETY: as above.
unsafe impl Plain for kvm_sregs {}
// SAFETY: as above.
unsafe impl Plain for kvm_xsave {}
// SAFETY: as above.
unsafe impl Plain for kvm_xcrs {}
// SAFETY: as above.
unsafe impl Plain for kvm_vcpu_events {}

fn put<T: Plain>(out: &mut Writer, value: &T) {
    // SAFETY: `Plain` says that all bytes of the value are initialised.
    out.bytes(unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) });
}

fn get<T: Plain>(from: &mut Reader) -> Result<T, Malformed> {
    let bytes = from.bytes()?;
    if bytes.len() != size_of::<T>() {
        return Err(Malformed);
    }
    // SAFETY: as many bytes as the type has, and `Plain` says that any bytes are a value.
    Ok(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
}

impl CpuState {
    /// Reads the vCPU's state. Its last exit must have been completed (an entry with `immediate_exit`).
    pub fn read(vcpu: &VcpuFd) -> Result<Self, MachineError> {
        Ok(Self {
            regs: vcpu.get_regs().map_err(refused("read the registers"))?,
            sregs: vcpu.get_sregs().map_err(refused("read the special registers"))?,
            xsave: vcpu.get_xsave().map_err(refused("read the vector state"))?,
            xcrs: vcpu.get_xcrs().map_err(refused("read which vector state is on"))?,
            events: vcpu.get_vcpu_events().map_err(refused("read pending events"))?,
        })
    }

    /// Gives a new vCPU this state.
    pub fn apply(&self, vcpu: &VcpuFd) -> Result<(), MachineError> {
        vcpu.set_sregs(&self.sregs).map_err(refused("set the special registers"))?;
        vcpu.set_xcrs(&self.xcrs).map_err(refused("turn vector state on"))?;
        // SAFETY: XCR0 never has a component whose state needs more than the 4096 bytes of `kvm_xsave`.
        unsafe { vcpu.set_xsave(&self.xsave) }.map_err(refused("set the vector state"))?;
        self.apply_registers(vcpu)?;
        vcpu.set_vcpu_events(&self.events).map_err(refused("set pending events"))
    }

    /// Gives it the general registers alone, where the rest is so already.
    pub fn apply_registers(&self, vcpu: &VcpuFd) -> Result<(), MachineError> {
        vcpu.set_regs(&self.regs).map_err(refused("set the registers"))
    }

    /// The same about to run something else: at `rip`, with `rdi`.
    pub fn at(self, rip: u64, rdi: u64) -> Self {
        Self { regs: kvm_regs { rip, rdi, rflags: self.regs.rflags, ..Default::default() }, events: Default::default(), ..self }
    }

    pub fn save(&self, out: &mut Writer) {
        put(out, &self.regs);
        put(out, &self.sregs);
        put(out, &self.xsave);
        put(out, &self.xcrs);
        put(out, &self.events);
    }

    pub fn load(from: &mut Reader) -> Result<Self, Malformed> {
        Ok(Self { regs: get(from)?, sregs: get(from)?, xsave: get(from)?, xcrs: get(from)?, events: get(from)? })
    }
}
