//! Statics of a kernel that runs on one vCPU and is never preempted.

use core::cell::UnsafeCell;

/// A static that only kernel code touches.
///
/// There is one vCPU, and the preemption trampoline never runs the kernel while the kernel is already running
/// (`arch::IN_KERNEL`), so no two accesses overlap except by re-entrance, which `RefCell` and `Cell` inside check.
pub struct Global<T>(UnsafeCell<T>);

// SAFETY: see above: there is no second thread of kernel code.
unsafe impl<T> Sync for Global<T> {}

impl<T> Global<T> {
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }
    pub fn get(&self) -> &T {
        // SAFETY: only shared references are ever given out.
        unsafe { &*self.0.get() }
    }
}
