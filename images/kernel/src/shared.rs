//! The page shared with the VMM, field by field, each access volatile.

use dormouse_abi as abi;

/// A handle on [`abi::Shared`]; zero-sized.
#[derive(Clone, Copy)]
pub struct SharedPage;

/// Clock parameters, one consistent reading being the caller's affair.
pub struct Clock {
    pub shift: u32,
    pub mult: u64,
    pub tsc_base: u64,
    pub mono_ns: u64,
    pub wall_ns: u64,
}

pub const fn shared() -> SharedPage {
    SharedPage
}

const PAGE: *mut abi::Shared = (abi::SYSTEM + abi::system::SHARED) as *mut abi::Shared;

macro_rules! reads {
    ($($field:ident: $type:ty),* $(,)?) => { $(pub fn $field(self) -> $type {
        // SAFETY: the page is mapped for the guest's whole life; the field is aligned.
        unsafe { core::ptr::read_volatile(&raw const (*PAGE).$field) }
    })* };
}
macro_rules! writes {
    ($($name:ident => $field:ident: $type:ty),* $(,)?) => { $(pub fn $name(self, value: $type) {
        // SAFETY: as above; the kernel is the only writer of these fields.
        unsafe { core::ptr::write_volatile(&raw mut (*PAGE).$field, value) }
    })* };
}

impl SharedPage {
    reads! {
        time_seq: u32, restore_count: u64, clone_count: u64, entropy: [u8; 64], event: u32, shutdown: u32,
        processes: u32, unknown_calls: u32, ready: u32, kill: i32, attended: u32,
    }
    writes! {
        set_event => event: u32, set_next_deadline => next_deadline_ns: u64, set_last_active => last_active_ns: u64,
        set_busy => busy: u32, set_want_tick => want_tick: u32, set_ready => ready: u32,
        set_settings_undone => settings_undone: u32,
        set_free_bitmap => free_bitmap: u64, set_free_bitmap_len => free_bitmap_len: u64,
        set_pages_used => pages_used: u64, set_processes => processes: u32, set_unknown_calls => unknown_calls: u32,
        set_attended => attended: u32, set_tasks => tasks: u64, set_tasks_len => tasks_len: u32,
        set_unused_bitmap => unused_bitmap: u64, set_cache_pages => cache_pages: u64, set_heap_used => heap_used: u64, set_kill => kill: i32,
    }
    pub fn clock(self) -> Clock {
        // SAFETY: as above.
        unsafe {
            Clock {
                shift: core::ptr::read_volatile(&raw const (*PAGE).time_shift),
                mult: core::ptr::read_volatile(&raw const (*PAGE).time_mult),
                tsc_base: core::ptr::read_volatile(&raw const (*PAGE).tsc_base),
                mono_ns: core::ptr::read_volatile(&raw const (*PAGE).mono_ns),
                wall_ns: core::ptr::read_volatile(&raw const (*PAGE).wall_ns),
            }
        }
    }
}
