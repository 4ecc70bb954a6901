//! The pages that nearly every database changes, which a VMM that stands by makes its own before it is known whose it is.
//!
//! They are noted by a rehearsal when the golden snapshot is made (`dormouse_images::rehearse`): all databases of an image
//! are clones of one guest, and what differs between it and a used clone lies mostly in the same pages; so do those that sessions
//! use and give back. A hint, no more: a page that is missing in the list costs a fault, one too many costs its memory.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use dormouse_abi::PAGE;

use super::pages::own_of_files;
use super::read::{ReadError, Snapshot};
use crate::machine::Ram;

/// Writes the numbers of a snapshot's pages, and of all others of the golden memory that its guest has written to, to a file:
/// ascending, four bytes each, little-endian.
pub fn note(snapshot: &Path, ram: &Ram, to: &Path) -> Result<(), ReadError> {
    let Some(snapshot) = Snapshot::open(snapshot)? else {
        return Err(io::Error::from(io::ErrorKind::NotFound).into());
    };
    let mut pages: BTreeSet<u32> = snapshot.frames.iter().flat_map(|frame| &frame.pages).copied().collect();
    pages.extend(own_of_files(ram)?);
    fill_up(&mut pages);
    Ok(std::fs::write(to, pages.iter().flat_map(|page| page.to_le_bytes()).collect::<Vec<u8>>())?)
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
    let list = match std::fs::read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    let (numbers, _) = list.as_chunks::<4>();
    let numbers: Vec<u32> = numbers.iter().map(|number| u32::from_le_bytes(*number)).collect();
    for run in numbers.chunk_by(|one, next| one.checked_add(1) == Some(*next)) {
        ram.populate(u64::from(run[0]) * PAGE, run.len() as u64 * PAGE);
    }
    Ok(numbers.len())
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
        assert_eq!(own_of_files(&ram).unwrap(), [1025, 1026]);
        // SAFETY: nobody else has this memory.
        assert_eq!(unsafe { ram.frozen(1025 * PAGE, PAGE) }.unwrap(), [7u8; 4096]);
        assert_eq!(own(&ram, Path::new("/nowhere")).unwrap(), 0);
    }
}
