//! The pages that nearly every database changes, which a VMM that stands by makes its own before it is known whose it is; and
//! those that nearly every wake touches, which it has its guest touch before that is anyone's, so that KVM has them mapped.
//!
//! They are noted by a rehearsal when the golden snapshot is made (`dormouse_images::rehearse`): all databases of an image
//! are clones of one guest, and what differs between it and a used clone lies mostly in the same pages; so do those that sessions
//! use and give back. A hint, no more: a page that is missing in a list costs a fault, one too many costs its memory.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use dormouse_abi::{DOORBELL, KERNEL, KernelHeader, LARGE_PAGE, PAGE, doorbell};
use dormouse_images::manifest::file;
use kvm_ioctls::VcpuExit;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::State;
use super::pages::REGION_PAGES;
use super::read::{ReadError, Snapshot};
use crate::boot::{BootError, tables};
use crate::codec::Malformed;
use crate::machine::state::CpuState;
use crate::machine::{Machine, MachineError, Ram};

/// Has it seen from now on which pages of the golden memory the guest touches. Before its first instruction.
pub fn watch(ram: &Ram) -> Result<(), BootError> {
    tables::split(ram, |region| ram.is_file(region as usize))
}

/// Writes both lists to a folder, of a guest that was watched and has been suspended: the numbers of its snapshot's pages, and of those
/// that it has written to, ascending, four bytes each; and the addresses of those that it has touched, ascending, eight bytes each; all
/// little-endian.
pub fn note(snapshot: &Path, ram: &Ram, folder: &Path) -> Result<(), ReadError> {
    let Some(snapshot) = Snapshot::open(snapshot)? else {
        return Err(io::Error::from(io::ErrorKind::NotFound).into());
    };
    let touched = tables::accessed(ram).map_err(io::Error::other)?;
    let mut own: BTreeSet<u32> = snapshot.frames.iter().flat_map(|frame| &frame.pages).copied().collect();
    own.extend(touched.iter().filter(|page| page.written).map(|page| page.page));
    // Its page tables are others only since it was watched.
    let mut own = own.split_off(&(REGION_PAGES as u32));
    fill_up(&mut own);
    let own: Vec<u8> = own.iter().flat_map(|page| page.to_le_bytes()).collect();
    std::fs::write(folder.join(file::HOT), own)?;
    let touched: Vec<u8> = touched.iter().flat_map(|page| page.address.to_le_bytes()).collect();
    Ok(std::fs::write(folder.join(file::TOUCHED), touched)?)
}

/// KVM maps so many neighbours at one fault, if the first of them and those behind it are all the guest's own.
const GROUP: u32 = 8;

/// Adds what is missing to groups of which half is there.
fn fill_up(pages: &mut BTreeSet<u32>) {
    let list: Vec<u32> = pages.iter().copied().collect();
    for group in list.chunk_by(|one, next| one / GROUP == next / GROUP).filter(|group| group.len() >= GROUP as usize / 2) {
        let first = group[0] / GROUP * GROUP;
        pages.extend(first..first + GROUP);
    }
}

/// Makes the pages that the file lists this guest's own. Without the file, or past the guest's end, it does nothing.
pub fn own(ram: &Ram, file: &Path) -> io::Result<usize> {
    let numbers: Vec<u32> = listed(file)?.into_iter().map(u32::from_le_bytes).collect();
    for run in numbers.chunk_by(|one, next| one.checked_add(1) == Some(*next)) {
        ram.populate(u64::from(run[0]) * PAGE, run.len() as u64 * PAGE);
    }
    Ok(numbers.len())
}

/// The numbers of so many bytes that a file lists; none without it.
fn listed<const N: usize>(file: &Path) -> io::Result<Vec<[u8; N]>> {
    match std::fs::read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => Ok(read?.as_chunks().0.to_vec()),
    }
}

/// Why a guest could not be made to touch its pages.
#[derive(Debug, thiserror::Error)]
pub enum TouchError {
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Memory(#[from] GuestMemoryError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    State(#[from] Malformed),
    /// It did something else.
    #[error("it left by {0}")]
    Left(String),
}

/// Where the last page is, in the guest's memory and for its CPU.
fn last_page(ram: &Ram) -> u64 {
    ram.len() - PAGE
}

/// What a guest is to touch, and the golden guest's CPU to do so.
pub struct Touch {
    cpu: CpuState,
    /// Where its kernel's routine begins.
    entry: u64,
    /// The pages' addresses, those first that are wanted most.
    list: Vec<u64>,
}

/// So many pages are touched at a time, some 2 µs each if the golden memory is cached: whoever wants it waits no longer.
const AT_A_TIME: usize = 64;

impl Touch {
    /// Of the list in a file, for a guest that has the golden memory; `None` without one, and of a guest that cannot: for want of the
    /// routine, on another CPU than the golden guest's, or where the golden memory has something in its last page.
    pub fn open(machine: &Machine, golden: &Snapshot, file: &Path) -> Result<Option<Self>, TouchError> {
        let list: Vec<u64> = listed(file)?.into_iter().map(u64::from_le_bytes).collect();
        if list.is_empty() {
            return Ok(None);
        }
        let (ram, cpu) = (&machine.ram, State::decode(&golden.state)?.cpu);
        let at = KERNEL + std::mem::offset_of!(KernelHeader, touch) as u64;
        let routine: u32 = ram.view().read_obj(GuestAddress(at))?;
        let same = golden.header.identity == machine.identity;
        let can = same && routine != 0 && !ram.is_file((last_page(ram) / LARGE_PAGE) as usize);
        Ok(can.then_some(Self { cpu, entry: KERNEL + u64::from(routine), list }))
    }

    /// Has the guest touch them, unless it is `wanted` before it has come to the end. What its CPU is afterwards is nobody's: a
    /// restore sets all of it.
    pub fn run(self, machine: &mut Machine, mut wanted: impl FnMut() -> bool) -> Result<(), TouchError> {
        // What is to be touched stands in the last page, which is given back, so that it is zeroes again as in the golden memory.
        let at = last_page(&machine.ram);
        let cpu = self.cpu.at(self.entry, at);
        cpu.apply(&machine.vcpu)?;
        for pages in self.list.chunks(AT_A_TIME).take_while(|_| !wanted()) {
            // The last one ends it.
            let words: Vec<u8> = pages.iter().chain(&[0]).flat_map(|word| word.to_le_bytes()).collect();
            machine.ram.view().write_slice(&words, GuestAddress(at))?;
            cpu.apply_registers(&machine.vcpu)?;
            let interrupted = match machine.vcpu.run() {
                Ok(VcpuExit::MmioWrite(address, _)) if address == DOORBELL + doorbell::HALT => false,
                // The host stops it for something of its own.
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => true,
                other => return Err(TouchError::Left(format!("{other:?}"))),
            };
            machine.enter_and_leave()?;
            if interrupted {
                break;
            }
        }
        Ok(machine.ram.discard(at, PAGE)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_group_becomes_a_whole_one_and_less_stays() {
        let mut pages = BTreeSet::from([3, 8, 10, 11, 15, 16, 17, 18, 31]);
        fill_up(&mut pages);
        assert_eq!(pages, BTreeSet::from([3, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 31]));
    }

    #[test]
    fn listed_pages_are_the_guest_s_own_and_others_are_not() {
        let ram = Ram::new(16 << 20).unwrap();
        let golden = tempfile::tempfile().unwrap();
        golden.set_len(16 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&golden, &vec![7u8; 2 << 20], 4 << 20).unwrap();
        ram.map_file(&golden, 4 << 20, 2 << 20).unwrap();
        let list = tempfile::NamedTempFile::new().unwrap();
        // Two in the golden file's mapping, one past the guest's end, and half a number.
        let bytes: Vec<u8> = [1025u32, 1026, 1 << 30].iter().flat_map(|number| number.to_le_bytes()).chain([1]).collect();
        std::fs::write(list.path(), bytes).unwrap();
        assert_eq!(own(&ram, list.path()).unwrap(), 3);
        // A page's entry in the map of this process: bit 61 is set while it is a file's.
        let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
        let entry = |page: u64| {
            let mut entry = [0; 8];
            let at = (ram.host_base() as u64 / PAGE + page) * 8;
            std::os::unix::fs::FileExt::read_exact_at(&pagemap, &mut entry, at).unwrap();
            u64::from_le_bytes(entry)
        };
        for (page, own) in [(1024, false), (1025, true), (1026, true), (1027, false)] {
            assert_eq!(entry(page) >> 63 == 1 && entry(page) >> 61 & 1 == 0, own, "page {page}");
        }
        // SAFETY: nobody else has this memory.
        assert_eq!(unsafe { ram.frozen(1025 * PAGE, PAGE) }.unwrap(), [7u8; 4096]);
        assert_eq!(own(&ram, Path::new("/nowhere")).unwrap(), 0);
    }
}
