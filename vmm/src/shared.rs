//! Typed access to [`dormouse_abi::Shared`], the page through which the guest and the VMM talk.
//!
//! Every access is atomic or volatile: the guest may run on another core at the same time. What the guest
//! writes there is never trusted further than as a hint of when to look.

use std::mem::offset_of;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering, fence};

use dormouse_abi::{SYSTEM, Shared, system};

use crate::machine::Ram;

/// The shared page of one guest.
#[derive(Clone, Debug)]
pub struct SharedPage {
    base: usize,
    // Keeps the mapping.
    _ram: Ram,
}

macro_rules! fields {
    ($($get:ident $(/ $set:ident)? : $field:ident $atomic:ident $int:ty, $doc:literal;)*) => {$(
        #[doc = $doc]
        pub fn $get(&self) -> $int {
            self.$field().load(Ordering::Acquire)
        }
        $(#[doc = concat!("Sets `", stringify!($field), "`.")]
        pub fn $set(&self, value: $int) {
            self.$field().store(value, Ordering::Release);
        })?
        fn $field(&self) -> &$atomic {
            // SAFETY: the field lies in the shared page, which lies in guest memory that `_ram` keeps mapped;
            // it is aligned, and both sides access it atomically.
            unsafe { $atomic::from_ptr((self.base + offset_of!(Shared, $field)) as *mut $int) }
        }
    )*};
}

impl SharedPage {
    /// The shared page of the guest with this memory.
    pub fn new(ram: &Ram) -> Self {
        Self { base: ram.host_base() + (SYSTEM + system::SHARED) as usize, _ram: ram.clone() }
    }

    fields! {
        get_event / set_event: event AtomicU32 u32, "1 while the guest has been asked to look up and has not yet.";
        get_shutdown / set_shutdown: shutdown AtomicU32 u32, "1 once Postgres has been asked to end.";
        get_next_deadline / set_next_deadline: next_deadline_ns AtomicU64 u64, "Earliest armed timer, guest-monotonic ns; `u64::MAX` for none.";
        get_last_active: last_active_ns AtomicU64 u64, "Guest-monotonic ns when something other than a periodic timer last ran.";
        get_busy: busy AtomicU32 u32, "Processes at work.";
        get_want_tick: want_tick AtomicU32 u32, "1 while more than one task could run.";
        get_ready: ready AtomicU32 u32, "1 once Postgres accepts connections.";
        get_settings_undone: settings_undone AtomicU32 u32, "1 if this boot put the settings of `ALTER SYSTEM` aside.";
        get_free_bitmap: free_bitmap AtomicU64 u64, "Physical address of the page pool's bitmap.";
        get_free_bitmap_len: free_bitmap_len AtomicU64 u64, "Bytes of the page pool's bitmap.";
        get_unused_bitmap: unused_bitmap AtomicU64 u64, "Physical address of the bitmap of pages that hold nothing at all.";
        get_pages_used: pages_used AtomicU64 u64, "Pages of the pool in use.";
        get_cache_pages: cache_pages AtomicU64 u64, "Pages of the pool that only cache the share.";
        get_kill / set_kill: kill AtomicI32 i32, "A process to be killed; 0 for none.";
        get_heap_used: heap_used AtomicU64 u64, "Bytes in use of the kernel's heap.";
        get_restore_count / set_restore_count: restore_count AtomicU64 u64, "Restores of this memory.";
        get_clone_count / set_clone_count: clone_count AtomicU64 u64, "Times this memory became another database.";
        get_attended: attended AtomicU32 u32, "Times the kernel has looked up when asked to.";
        get_tasks: tasks AtomicU64 u64, "Address of the list of tasks; 0 in a kernel that has none, and does not count `attended`.";
        get_unknown_calls: unknown_calls AtomicU32 u32, "System calls answered ENOSYS.";
        get_time_seq / set_time_seq: time_seq AtomicU32 u32, "The sequence lock over the time.";
        get_time_shift / set_time_shift: time_shift AtomicU32 u32, "Published shift.";
        get_time_mult / set_time_mult: time_mult AtomicU64 u64, "Published multiplier.";
        get_tsc_base / set_tsc_base: tsc_base AtomicU64 u64, "Published TSC base.";
        get_mono / set_mono: mono_ns AtomicU64 u64, "Published guest-monotonic time, ns.";
        get_wall / set_wall: wall_ns AtomicU64 u64, "Published wall-clock time, ns since 1970.";
    }

    /// Writes one publication of the time under the sequence lock.
    pub fn publish_time(&self, shift: u32, mult: u64, tsc_base: u64, mono_ns: u64, wall_ns: u64) {
        let odd = self.get_time_seq() | 1;
        self.set_time_seq(odd);
        fence(Ordering::SeqCst);
        self.set_time_shift(shift);
        self.set_time_mult(mult);
        self.set_tsc_base(tsc_base);
        self.set_mono(mono_ns);
        self.set_wall(wall_ns);
        fence(Ordering::SeqCst);
        self.set_time_seq(odd.wrapping_add(1));
    }

    /// Writes 64 fresh random bytes from the host's generator.
    pub fn refill_entropy(&self) -> std::io::Result<()> {
        const WORDS: usize = 8;
        let mut bytes = [0u8; WORDS * 8];
        crate::virtio::rng::fill(&mut bytes)?;
        for (index, word) in bytes.chunks_exact(8).enumerate() {
            let at = self.base + offset_of!(Shared, entropy) + index * 8;
            let mut value = [0; 8];
            value.copy_from_slice(word);
            // SAFETY: within the shared page, 8-aligned (checked below), mapped while `_ram` lives.
            unsafe { AtomicU64::from_ptr(at as *mut u64) }.store(u64::from_le_bytes(value), Ordering::Release);
        }
        Ok(())
    }
}

const _: () = assert!(offset_of!(Shared, entropy) % 8 == 0);
