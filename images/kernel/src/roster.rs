//! The roster: where the VMM finds every process in guest memory, to tell of them when this kernel can't.
//!
//! It costs the running kernel nothing: the VMM reads the very fields that the scheduler works with, which is why the
//! head of [`Task`] has the layout of [`abi::TaskHead`].

use crate::global::Global;
use crate::shared::shared;
use crate::task::{Kind, State, Task, Timer};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec;
use core::cell::{Cell, RefCell};
use core::mem::{offset_of, size_of};
use dormouse_abi::{self as abi, TaskHead};

static PLACES: Global<RefCell<&'static [Cell<u64>]>> = Global::new(RefCell::new(&[]));

/// Makes room for twice as many as can live at once: those that have ended stay until they are reaped.
pub fn init(slots: usize) {
    let places: &'static [Cell<u64>] = Box::leak(vec![Cell::new(0); 2 * slots].into_boxed_slice());
    *PLACES.get().borrow_mut() = places;
    shared().set_tasks_len(places.len() as u32);
    shared().set_tasks(places.as_ptr() as u64);
}

/// Lists a task. One too many is not listed, and is a task all the same.
pub fn enter(task: &Rc<Task>) {
    if let Some(place) = PLACES.get().borrow().iter().find(|place| place.get() == 0) {
        place.set(Rc::as_ptr(task) as u64);
    }
}

/// Strikes out a task that is about to be freed.
pub fn leave(task: &Task) {
    let address = core::ptr::from_ref(task) as u64;
    if let Some(place) = PLACES.get().borrow().iter().find(|place| place.get() == address) {
        place.set(0);
    }
}

/// A process's name, NUL-padded.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Name([u8; NAME_LEN]);

const NAME_LEN: usize = size_of::<TaskHead>() - offset_of!(TaskHead, name);

impl Name {
    /// As much of the text as there is room for, without what is not ASCII.
    pub fn new(text: &[u8]) -> Self {
        let mut name = [0; NAME_LEN];
        for (to, byte) in name.iter_mut().zip(text.iter().filter(|byte| byte.is_ascii())) {
            *to = *byte;
        }
        Self(name)
    }
}

impl core::fmt::Display for Name {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let len = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        f.write_str(core::str::from_utf8(&self.0[..len]).unwrap_or("?"))
    }
}

const _: () = {
    assert!(offset_of!(Task, pid) == offset_of!(TaskHead, pid));
    assert!(offset_of!(Task, parent) == offset_of!(TaskHead, parent));
    assert!(offset_of!(Task, kind) == offset_of!(TaskHead, kind));
    assert!(offset_of!(Task, state) == offset_of!(TaskHead, state));
    assert!(size_of::<State>() == 8 && offset_of!(TaskHead, status) == offset_of!(TaskHead, state) + 4);
    assert!(offset_of!(Task, waits_for_client) == offset_of!(TaskHead, waits_for_client));
    assert!(offset_of!(Task, context) == offset_of!(TaskHead, context));
    assert!(offset_of!(Task, deadline) == offset_of!(TaskHead, deadline_ns));
    assert!(offset_of!(Task, timer) == offset_of!(TaskHead, timer_ns) && size_of::<Timer>() == 16);
    assert!(offset_of!(Task, run_ns) == offset_of!(TaskHead, run_ns));
    assert!(offset_of!(Task, name) == offset_of!(TaskHead, name));
    assert!(Kind::Housekeeper as u32 == abi::task_kind::HOUSEKEEPER);
    assert!(Kind::Backend as u32 == abi::task_kind::BACKEND);
    assert!(Kind::Worker as u32 == abi::task_kind::WORKER);
};
