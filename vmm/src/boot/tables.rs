//! Page tables, GDT, TSS and IDT of a guest.
//!
//! All page tables lie in the first 2 MiB, which nothing maps: one top-level entry, one page of 1 GiB entries,
//! and a page of 2 MiB entries for each GiB in use.

use dormouse_abi::{DOORBELL, LARGE_PAGE, PAGE, SLOT_BASE, SLOT_STRIDE, SYSTEM, TEXT, VECTOR_STUB_LEN, selector, system};
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, put};
use crate::machine::{Ram, cpu::TSS_LEN};

/// Offset of the top-level table in the page-table area. Its page 0 stays empty.
pub const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const FIRST_PD: u64 = 0x3000;
const GIB: u64 = 1 << 30;

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
/// Of an entry, where its table or page lies.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What the page tables depend on.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Physical address of slot 0's hot page.
    pub slots: u64,
    pub slot_count: u32,
    /// Distances from the program's start, as in [`dormouse_abi::Program`].
    pub shared_end: u64,
    pub hot: u64,
}

/// The most process slots that fit between the slots' base and the doorbell.
pub const MAX_SLOTS: u64 = (DOORBELL - SLOT_BASE) / SLOT_STRIDE;

/// Page tables under construction: the 1 GiB table, and the 2 MiB tables in the order they were first used.
struct Tables {
    pdpt: [u64; 512],
    pds: Vec<[u64; 512]>,
}

impl Tables {
    fn map(&mut self, virt: u64, phys: u64, writable: bool) -> Result<(), BootError> {
        let gib = (virt / GIB) as usize;
        let Some(entry) = self.pdpt.get_mut(gib) else {
            return Err(misfit(format!("{virt:#x} is beyond one top-level entry")));
        };
        if *entry == 0 {
            *entry = (FIRST_PD + self.pds.len() as u64 * 4096) | PRESENT | WRITE | USER | ACCESSED;
            self.pds.push([0; 512]);
        }
        let pd = ((*entry & !0xfff) - FIRST_PD) / 4096;
        // Accessed and dirty are set beforehand: the CPU then never writes the tables, so they stay equal to the
        // golden snapshot's.
        let flags = PRESENT | USER | ACCESSED | DIRTY | LARGE | if writable { WRITE } else { 0 };
        self.pds[pd as usize][((virt % GIB) / LARGE_PAGE) as usize] = phys | flags;
        Ok(())
    }
}

fn misfit(problem: String) -> BootError {
    BootError::Misfit { what: "page tables", problem }
}

/// Writes the page tables.
pub fn page_tables(ram: &Ram, layout: &Layout) -> Result<(), BootError> {
    if u64::from(layout.slot_count) > MAX_SLOTS {
        return Err(misfit(format!("{} slots, at most {MAX_SLOTS}", layout.slot_count)));
    }
    let mut tables = Tables { pdpt: [0; 512], pds: Vec::new() };
    for page in (LARGE_PAGE..ram.len()).step_by(LARGE_PAGE as usize) {
        tables.map(page, page, !(TEXT..TEXT + layout.shared_end).contains(&page))?;
    }
    for slot in 0..u64::from(layout.slot_count) {
        let base = SLOT_BASE + slot * SLOT_STRIDE;
        tables.map(base + layout.hot, layout.slots + slot * LARGE_PAGE, true)?;
    }
    tables.map(DOORBELL, DOORBELL, true)?;

    if FIRST_PD + tables.pds.len() as u64 * 4096 > LARGE_PAGE {
        return Err(misfit("they do not fit in 2 MiB".to_owned()));
    }
    put(ram, "page tables", PML4, &(PDPT | PRESENT | WRITE | USER | ACCESSED).to_le_bytes())?;
    put_table(ram, PDPT, &tables.pdpt)?;
    for (index, pd) in tables.pds.iter().enumerate() {
        put_table(ram, FIRST_PD + index as u64 * 4096, pd)?;
    }
    Ok(())
}

/// Maps in small pages the large ones that `wanted` picks by their number; [`accessed`] tells which have been accessed since. For a
/// rehearsal alone: the tables are no longer the golden snapshot's. Those of a guest that has been watched before stay as they are.
pub fn split(ram: &Ram, wanted: impl Fn(u64) -> bool) -> Result<(), BootError> {
    let pdpt = entries(ram, PDPT)?;
    let tables: Vec<u64> = pdpt.into_iter().filter(|entry| entry & PRESENT != 0).map(|entry| entry & ADDRESS).collect();
    let mut next = FIRST_PD + tables.len() as u64 * 4096;
    for table in &tables {
        next += entries(ram, *table)?.iter().filter(|entry| **entry & (PRESENT | LARGE) == PRESENT).count() as u64 * 4096;
    }
    for table in tables {
        let mut pd = entries(ram, table)?;
        for entry in pd.iter_mut().filter(|entry| **entry & LARGE != 0 && wanted((**entry & ADDRESS) / LARGE_PAGE)) {
            if next == LARGE_PAGE {
                return Err(misfit("they do not fit in 2 MiB".to_owned()));
            }
            let (first, flags) = (*entry & ADDRESS, *entry & (PRESENT | WRITE | USER));
            put_table(ram, next, &std::array::from_fn(|page| (first + page as u64 * PAGE) | flags))?;
            *entry = next | PRESENT | WRITE | USER | ACCESSED;
            next += 4096;
        }
        put_table(ram, table, &pd)?;
    }
    Ok(())
}

/// A small page that the guest has accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accessed {
    /// Where the guest sees it.
    pub address: u64,
    /// Its number in the guest's memory.
    pub page: u32,
    pub written: bool,
}

/// What the guest has accessed since [`split`], by address.
pub fn accessed(ram: &Ram) -> Result<Vec<Accessed>, BootError> {
    let mut found = Vec::new();
    for (gib, table) in (0..).step_by(GIB as usize).zip(entries(ram, PDPT)?).filter(|(_, entry)| entry & PRESENT != 0) {
        let tables = (gib..).step_by(LARGE_PAGE as usize).zip(entries(ram, table & ADDRESS)?);
        for (large, table) in tables.filter(|(_, entry)| entry & PRESENT != 0 && entry & LARGE == 0) {
            let pages = (large..).step_by(PAGE as usize).zip(entries(ram, table & ADDRESS)?);
            found.extend(pages.filter(|(_, entry)| entry & ACCESSED != 0).map(|(address, entry)| Accessed {
                address,
                page: ((entry & ADDRESS) / PAGE) as u32,
                written: entry & DIRTY != 0,
            }));
        }
    }
    Ok(found)
}

fn entries(ram: &Ram, table: u64) -> Result<[u64; 512], BootError> {
    let mut bytes = [0; 4096];
    let read = ram.view().read_slice(&mut bytes, GuestAddress(table));
    read.map_err(|error| misfit(format!("they cannot be read at {table:#x}: {error}")))?;
    let (words, _) = bytes.as_chunks::<8>();
    Ok(std::array::from_fn(|index| u64::from_le_bytes(words[index])))
}

fn put_table(ram: &Ram, at: u64, entries: &[u64; 512]) -> Result<(), BootError> {
    let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    put(ram, "page tables", at, &bytes)
}

/// Writes GDT, TSS and IDT; `vectors` is where the kernel's 256 ring-0 stubs begin.
pub fn descriptors(ram: &Ram, vectors: u64) -> Result<(), BootError> {
    const CODE_0: u64 = 0x00af_9b00_0000_ffff;
    const DATA_0: u64 = 0x00cf_9300_0000_ffff;
    const CODE_3_COMPAT: u64 = 0x00cf_fb00_0000_ffff;
    const DATA_3: u64 = 0x00cf_f300_0000_ffff;
    const CODE_3: u64 = 0x00af_fb00_0000_ffff;
    let tss = SYSTEM + system::TSS;
    let tss_low = (TSS_LEN - 1)
        | (tss & 0xff_ffff) << 16
        | 0x8b << 40 // present, busy 64-bit TSS
        | (tss >> 24 & 0xff) << 56;
    let gdt = [0, CODE_0, DATA_0, CODE_3_COMPAT, DATA_3, CODE_3, tss_low, tss >> 32];
    let bytes: Vec<u8> = gdt.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    put(ram, "descriptor tables", SYSTEM + system::GDT, &bytes)?;

    let mut bytes = [0u8; TSS_LEN as usize];
    bytes[4..12].copy_from_slice(&(SYSTEM + system::RING0_STACK_TOP).to_le_bytes());
    // No port-access bitmap: its base is past the segment's limit.
    bytes[102..104].copy_from_slice(&(TSS_LEN as u16).to_le_bytes());
    put(ram, "descriptor tables", tss, &bytes)?;

    let mut idt = Vec::with_capacity(4096);
    for vector in 0..256u64 {
        let stub = vectors + vector * VECTOR_STUB_LEN;
        // Interrupt gates; only the breakpoint may be raised by an instruction of ring 3.
        let kind: u64 = if vector == 3 { 0xee } else { 0x8e };
        let low = (stub & 0xffff) | u64::from(selector::RING0_CODE) << 16 | kind << 40 | (stub >> 16 & 0xffff) << 48;
        idt.extend_from_slice(&low.to_le_bytes());
        idt.extend_from_slice(&(stub >> 32).to_le_bytes());
    }
    put(ram, "descriptor tables", SYSTEM + system::IDT, &idt)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks the tables as the CPU would.
    fn walk(ram: &Ram, virt: u64) -> Option<(u64, bool)> {
        let read = |at: u64| ram.view().read_obj::<u64>(GuestAddress(at)).unwrap();
        let pml4e = read(PML4 + (virt >> 39 & 511) * 8);
        let pdpte = if pml4e & 1 == 0 { return None } else { read((pml4e & !0xfff) + (virt >> 30 & 511) * 8) };
        let pde = if pdpte & 1 == 0 { return None } else { read((pdpte & !0xfff) + (virt >> 21 & 511) * 8) };
        (pde & 1 != 0).then_some((pde & 0xf_ffff_ffe0_0000 | virt & 0x1f_ffff, pde & WRITE != 0))
    }

    #[test]
    fn every_part_of_the_map_is_where_the_abi_says() {
        let ram = Ram::new(256 << 20).unwrap();
        let layout = Layout { slots: 32 << 20, slot_count: 96, shared_end: 4 << 20, hot: 6 << 20 };
        page_tables(&ram, &layout).unwrap();
        assert_eq!(walk(&ram, 0), None);
        assert_eq!(walk(&ram, LARGE_PAGE - 1), None);
        assert_eq!(walk(&ram, SYSTEM), Some((SYSTEM, true)));
        assert_eq!(walk(&ram, TEXT - 1), Some((TEXT - 1, true)));
        assert_eq!(walk(&ram, TEXT), Some((TEXT, false)));
        assert_eq!(walk(&ram, TEXT + (4 << 20) - 1), Some((TEXT + (4 << 20) - 1, false)));
        assert_eq!(walk(&ram, TEXT + (4 << 20)), Some((TEXT + (4 << 20), true)));
        assert_eq!(walk(&ram, (256 << 20) - 1), Some(((256 << 20) - 1, true)));
        assert_eq!(walk(&ram, 256 << 20), None);
        for slot in [0, 1, 95] {
            let base = SLOT_BASE + slot * SLOT_STRIDE;
            assert_eq!(walk(&ram, base + 5), None, "text is at its own address alone");
            assert_eq!(walk(&ram, base + (4 << 20)), None, "guard");
            assert_eq!(walk(&ram, base + (6 << 20) + 9), Some(((32 << 20) + slot * LARGE_PAGE + 9, true)));
            assert_eq!(walk(&ram, base + (8 << 20)), None);
        }
        assert_eq!(walk(&ram, SLOT_BASE + 96 * SLOT_STRIDE), None);
        assert_eq!(walk(&ram, DOORBELL + 4), Some((DOORBELL + 4, true)));
    }

    #[test]
    fn what_is_split_is_mapped_as_before_and_tells_what_was_accessed() {
        let ram = Ram::new(64 << 20).unwrap();
        page_tables(&ram, &Layout { slots: 32 << 20, slot_count: 8, shared_end: 4 << 20, hot: 6 << 20 }).unwrap();
        let (text, first_slot) = (TEXT / LARGE_PAGE, (32 << 20) / LARGE_PAGE);
        split(&ram, |page| page == text || page == first_slot).unwrap();
        assert!(accessed(&ram).unwrap().is_empty());
        // The place of a small page's entry, and the entry, of one that has any.
        let entry = |virt: u64| {
            let word = |table: u64, shift: u32| (table & ADDRESS) + (virt >> shift & 511) * 8;
            let read = |at: u64| ram.view().read_obj::<u64>(GuestAddress(at)).unwrap();
            let large = read(word(read(word(PDPT, 30)), 21));
            (large & LARGE == 0).then(|| (word(large, 12), read(word(large, 12))))
        };
        let (in_text, in_slot, same) = (TEXT + 5 * PAGE, SLOT_BASE + (6 << 20) + 3 * PAGE, (32 << 20) + 3 * PAGE);
        for (virt, phys, writable) in [(in_text, in_text, 0), (in_slot, same, WRITE), (same, same, WRITE)] {
            let (_, entry) = entry(virt).unwrap();
            assert_eq!((entry & ADDRESS, entry & WRITE), (phys, writable));
        }
        assert_eq!(entry(TEXT + LARGE_PAGE), None, "another large page");
        for (virt, bits) in [(in_text, ACCESSED), (in_slot, ACCESSED | DIRTY)] {
            let (at, entry) = entry(virt).unwrap();
            ram.view().write_obj(entry | bits, GuestAddress(at)).unwrap();
        }
        let of = |address, phys: u64, written| Accessed { address, page: (phys / PAGE) as u32, written };
        assert_eq!(accessed(&ram).unwrap(), [of(in_text, in_text, false), of(in_slot, same, true)]);
    }

    #[test]
    fn the_largest_guest_fits_and_a_larger_is_refused() {
        let ram = Ram::new(64 << 20).unwrap();
        let mut layout = Layout { slots: 32 << 20, slot_count: MAX_SLOTS as u32, shared_end: 16 << 20, hot: 18 << 20 };
        page_tables(&ram, &layout).unwrap();
        layout.slot_count += 1;
        assert!(page_tables(&ram, &layout).is_err());
    }
}
