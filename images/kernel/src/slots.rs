//! Process slots: one program, many times its data.
//!
//! The program's read-only segments are at the address for which they are linked, the same for all. A slot has its own
//! *hot page*: stack, data, bss and first heap together, so that one process is one large page to restore. It lies where
//! it would if the program were linked for the slot's base, and `%fs` is set to the difference: code finds data by it.
//!
//! ```text
//! TEXT                TEXT+shared_end             base+hot            base+data         brk
//!  | text and rodata    |      …       (unmapped) | ◂── stack | data | bss | heap ──▸ |
//! ```

use crate::errno::{Errno, Result};
use crate::global::Global;
use crate::pages;
use crate::random;
use alloc::vec::Vec;
use core::cell::Cell;
use dormouse_abi as abi;

static SLOTS: Global<Cell<Option<(usize, abi::Program)>>> = Global::new(Cell::new(None));
static PHYSICAL: Global<Cell<u64>> = Global::new(Cell::new(0));
static HOT: Global<Cell<u64>> = Global::new(Cell::new(0));

pub fn init(boot: &abi::BootInfo) {
    PHYSICAL.get().set(boot.slots);
    HOT.get().set(boot.program.hot);
    SLOTS.get().set(Some((boot.slot_count as usize, boot.program)));
}

/// The physical address of a mapped one; only addresses in slots differ from it. Runs of bytes within one large
/// page stay together.
pub fn physical(address: u64) -> u64 {
    if address < abi::SLOT_BASE {
        return address;
    }
    let slot = (address - abi::SLOT_BASE) / abi::SLOT_STRIDE;
    let offset = (address - abi::SLOT_BASE) % abi::SLOT_STRIDE;
    // Below its hot page a slot has nothing: an address that nothing is at stays one.
    match offset.checked_sub(HOT.get().get()) {
        Some(inside) => PHYSICAL.get().get() + slot * abi::LARGE_PAGE + inside,
        None => address,
    }
}

/// A slot in use by one process.
pub struct Slot {
    pub index: usize,
    /// Virtual base.
    base: u64,
    /// `%fs`'s base: what is added to the link address of data.
    pub segment: u64,
    /// First byte of the heap in the hot page, and its limit.
    pub heap: u64,
    pub heap_end: u64,
    /// Whether the heap part may hold another process's bytes.
    pub used_before: bool,
    /// Lowest address of the stack.
    pub stack_low: u64,
    /// First byte past the stack.
    pub stack_top: u64,
    pub entry: u64,
    program: abi::Program,
}

/// Takes a free slot and loads the program's writable segment into it.
pub fn take() -> Result<Slot> {
    let (count, program) = SLOTS.get().get().ok_or(Errno::EAGAIN)?;
    let (index, used_before) = pages::take_slot(count).ok_or(Errno::EAGAIN)?;
    let base = abi::SLOT_BASE + index as u64 * abi::SLOT_STRIDE;
    let data = base + program.data;
    // SAFETY: the hot page is this slot's alone, and nothing runs in it now.
    unsafe {
        core::ptr::copy_nonoverlapping(
            program.data_copy as *const u8,
            data as *mut u8,
            program.data_file_len as usize,
        );
        core::ptr::write_bytes(
            (data + program.data_file_len) as *mut u8,
            0,
            (program.data_mem_len - program.data_file_len) as usize,
        );
    }
    let segment = base - abi::TEXT;
    // SAFETY: the VMM laid the array, and each of its addresses is that of a word in the data segment.
    unsafe {
        for word in core::slice::from_raw_parts(program.words as *const u32, program.words_len as usize) {
            let word = (u64::from(*word) + segment) as *mut u64;
            word.write_unaligned(word.read_unaligned().wrapping_add(segment));
        }
    }
    Ok(Slot {
        index,
        base,
        segment,
        heap: (data + program.data_mem_len).next_multiple_of(abi::PAGE),
        heap_end: base + program.hot + abi::LARGE_PAGE,
        used_before,
        stack_low: base + program.hot,
        stack_top: data & !15,
        entry: abi::TEXT + program.entry,
        program,
    })
}

impl Drop for Slot {
    fn drop(&mut self) {
        let start = PHYSICAL.get().get() + self.index as u64 * abi::LARGE_PAGE;
        pages::free(start as *mut u8, (abi::LARGE_PAGE / abi::PAGE) as usize);
    }
}

impl Slot {
    /// Puts fresh random bytes in Postgres' own generator: after a clone, before it runs again.
    pub fn reseed(&self) {
        if self.program.prng_state != 0 {
            let mut bytes = [0u8; 16];
            random::fill(&mut bytes);
            // SAFETY: the offset is that of a 16-byte variable in the data segment (image manifest).
            unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), (self.base + self.program.prng_state) as *mut u8, 16) };
        }
    }

    /// Lays arguments, environment and auxiliary vector at the top of the stack as the ABI wants them; returns
    /// the stack pointer.
    pub fn lay_stack(&self, args: &[Vec<u8>], env: &[Vec<u8>]) -> Result<u64> {
        let mut at = self.stack_top;
        let mut place = |bytes: &[u8], nul: usize| -> u64 {
            at -= (bytes.len() + nul) as u64;
            // SAFETY: below the stack's top in this slot's hot page; the size was checked by the caller.
            unsafe {
                core::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len());
                if nul == 1 {
                    (at as *mut u8).add(bytes.len()).write(0);
                }
            }
            at
        };
        let size: usize = args.iter().chain(env).map(|s| s.len() + 9).sum();
        if size > 64 << 10 {
            return Err(Errno::E2BIG);
        }
        let mut seed = [0u8; 16];
        random::fill(&mut seed);
        let at_random = place(&seed, 0);
        let arg_addresses: Vec<u64> = args.iter().map(|s| place(s, 1)).collect();
        let env_addresses: Vec<u64> = env.iter().map(|s| place(s, 1)).collect();
        const UID: u64 = crate::task::UID as u64;
        let auxiliary: [(u64, u64); 15] = [
            (3, abi::TEXT + self.program.phdr),
            (4, 56),
            (5, self.program.phnum),
            (6, abi::PAGE),
            (7, 0),
            (8, 0),
            (9, self.entry),
            (11, UID),
            (12, UID),
            (13, UID),
            (14, UID),
            (17, 100),
            (23, 0),
            (25, at_random),
            (0, 0),
        ];
        let mut words: Vec<u64> = Vec::new();
        words.push(args.len() as u64);
        words.extend(&arg_addresses);
        words.push(0);
        words.extend(&env_addresses);
        words.push(0);
        for (kind, value) in auxiliary {
            words.push(kind);
            words.push(value);
        }
        let stack = (at - words.len() as u64 * 8) & !15;
        for (i, word) in words.iter().enumerate() {
            // SAFETY: as above.
            unsafe { (stack as *mut u64).add(i).write(*word) };
        }
        Ok(stack)
    }
}
