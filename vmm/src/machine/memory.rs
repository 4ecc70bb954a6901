//! Guest memory: one contiguous, 2 MiB-aligned mapping at guest-physical 0.
//!
//! It is one mapping of address space but not one of backing: a restore lays parts of the golden file over it
//! (`MAP_FIXED`) before the guest runs, which is why this module owns the mapping and hands vm-memory a view.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dormouse_abi::{LARGE_PAGE, PAGE, RAM_MAX};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// Why guest memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Guest memory must be a whole number of 2 MiB pages between 16 MiB and the ABI's limit.
    #[error("{0} bytes cannot be guest memory: it must be whole 2 MiB pages, at least 16 MiB and at most 32 GiB")]
    Size(u64),
    /// The host would not give the address space.
    #[error("cannot map {bytes} bytes of guest memory: {source}")]
    Map { bytes: u64, source: io::Error },
    /// vm-memory refused the mapping.
    #[error("cannot describe guest memory: {0}")]
    Describe(String),
}

/// The reservation, unmapped when the last user is gone.
#[derive(Debug)]
struct Reservation {
    start: *mut libc::c_void,
    len: usize,
}

// SAFETY: the reservation is only an address and a length; access to the memory goes through vm-memory's
// volatile slices or atomics.
unsafe impl Send for Reservation {}
// SAFETY: as above.
unsafe impl Sync for Reservation {}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: start and len are what mmap returned; every view holds an `Arc` of this value.
        unsafe { libc::munmap(self.start, self.len) };
    }
}

/// Guest memory. Cloning it clones the view, not the memory.
#[derive(Clone, Debug)]
pub struct Ram {
    view: GuestMemoryMmap,
    base: usize,
    len: u64,
    // One bit a large page: the golden file is mapped there.
    files: Arc<[AtomicBool]>,
    // One bit a page: it was made this guest's own beforehand.
    own: Arc<Mutex<Vec<u64>>>,
    _reservation: Arc<Reservation>,
}

impl Ram {
    /// Maps `len` bytes of zeroes, in huge pages where the host has them.
    pub fn new(len: u64) -> Result<Self, MemoryError> {
        if !len.is_multiple_of(LARGE_PAGE) || !(16 << 20..=RAM_MAX).contains(&len) {
            return Err(MemoryError::Size(len));
        }
        let whole = (len + LARGE_PAGE) as usize;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choosing.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                whole,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(MemoryError::Map { bytes: len, source: io::Error::last_os_error() });
        }
        let reservation = Arc::new(Reservation { start, len: whole });
        let base = (start as usize).next_multiple_of(LARGE_PAGE as usize);
        // SAFETY: within the reservation. Failure (no huge pages on this host) costs speed only.
        unsafe { libc::madvise(base as *mut libc::c_void, len as usize, libc::MADV_HUGEPAGE) };
        // SAFETY: as above; a core dump of the VMM must not hold a tenant's data.
        unsafe { libc::madvise(base as *mut libc::c_void, len as usize, libc::MADV_DONTDUMP) };
        // SAFETY: `base..base+len` lies within the reservation, which the returned value keeps alive.
        let region: MmapRegion = unsafe {
            MmapRegion::build_raw(
                base as *mut u8,
                len as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            )
        }
        .map_err(|error| MemoryError::Describe(error.to_string()))?;
        let region = GuestRegionMmap::new(region, GuestAddress(0)).ok_or(MemoryError::Size(len))?;
        let view =
            GuestMemoryMmap::from_regions(vec![region]).map_err(|error| MemoryError::Describe(error.to_string()))?;
        let files = (0..len / LARGE_PAGE).map(|_| AtomicBool::new(false)).collect();
        let own = Arc::new(Mutex::new(vec![0; (len / PAGE).div_ceil(64) as usize]));
        Ok(Self { view, base, len, files, own, _reservation: reservation })
    }

    /// The view through which all guest memory is read and written.
    pub fn view(&self) -> &GuestMemoryMmap {
        &self.view
    }

    /// Bytes of RAM.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never true: a guest has memory.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Host address of guest-physical 0.
    pub fn host_base(&self) -> usize {
        self.base
    }

    /// Lays `[offset, offset + len)` of `file` over the same guest-physical range, copy-on-write.
    ///
    /// Only before the guest runs: what was there is gone.
    pub fn map_file(&self, file: &std::fs::File, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.checked_add(len).filter(|end| *end <= self.len);
        if end.is_none() || !offset.is_multiple_of(LARGE_PAGE) || !len.is_multiple_of(LARGE_PAGE) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let at = (self.base as u64 + offset) as *mut libc::c_void;
        // SAFETY: the range lies within this RAM's own reservation, checked above, so MAP_FIXED replaces nothing
        // of anyone else's. The file is a golden memory file, which is never changed once it is named.
        let mapped = unsafe {
            libc::mmap(
                at,
                len as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        for region in offset / LARGE_PAGE..(offset + len) / LARGE_PAGE {
            self.files[region as usize].store(true, Ordering::Relaxed);
        }
        // SAFETY: the mapping just made. Failure costs speed only.
        unsafe {
            libc::madvise(at, len as usize, libc::MADV_HUGEPAGE);
            libc::madvise(at, len as usize, libc::MADV_DONTDUMP);
        }
        Ok(())
    }

    /// Says whether the host is to take large pages for what is no file's and not there yet.
    ///
    /// Where they are cleared one by one a large page costs some 0.1 ms, on a virtual machine whose host takes free memory back 5 ms:
    /// much of a wake, for a few small pages that most wakes use of it.
    pub fn prefer_large(&self, large: bool) {
        let advice = if large { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        let mut region = 0;
        for run in self.files.chunk_by(|one, next| one.load(Ordering::Relaxed) == next.load(Ordering::Relaxed)) {
            let (offset, len) = (region as u64 * LARGE_PAGE, run.len() as u64 * LARGE_PAGE);
            region += run.len();
            if !run[0].load(Ordering::Relaxed) {
                let at = (self.base as u64 + offset) as *mut libc::c_void;
                // SAFETY: within this RAM's own reservation. Failure costs speed only.
                unsafe { libc::madvise(at, len as usize, advice) };
            }
        }
    }

    /// Makes whole pages this guest's own before they are written, those of them that were not made so before: one call for
    /// many costs less than a fault for each. Where it does not work the faults do.
    pub fn populate(&self, offset: u64, len: u64) {
        if self.host(offset, len).is_err() {
            return;
        }
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut page, end) = (offset / PAGE, (offset + len) / PAGE);
        while page < end {
            let first = page;
            while page < end && own[page as usize / 64] >> (page % 64) & 1 == 0 {
                own[page as usize / 64] |= 1 << (page % 64);
                page += 1;
            }
            let at = (self.base as u64 + first * PAGE) as *mut libc::c_void;
            if first < page {
                // SAFETY: within this RAM's own reservation; what is there to be read stays.
                unsafe { libc::madvise(at, ((page - first) * PAGE) as usize, libc::MADV_POPULATE_WRITE) };
            } else {
                page += 1;
            }
        }
    }

    /// Replaces a mapping of the golden file by zeroes. The caller knows that nobody wants what is there.
    pub fn unmap_file(&self, offset: u64, len: u64) -> io::Result<()> {
        let at = self.host(offset, len)?;
        if !offset.is_multiple_of(LARGE_PAGE) || !len.is_multiple_of(LARGE_PAGE) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        // SAFETY: within this RAM's own reservation, so MAP_FIXED replaces nothing of anyone else's; a running KVM is told
        // by the host's kernel that the pages are gone.
        let mapped = unsafe {
            libc::mmap(
                at,
                len as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        for region in offset / LARGE_PAGE..(offset + len) / LARGE_PAGE {
            self.files[region as usize].store(false, Ordering::Relaxed);
        }
        // SAFETY: the mapping just made. Failure costs speed only.
        unsafe {
            libc::madvise(at, len as usize, libc::MADV_HUGEPAGE);
            libc::madvise(at, len as usize, libc::MADV_DONTDUMP);
        }
        Ok(())
    }

    /// Gives anonymous memory back to the host: it reads as zeroes. The caller knows that nobody wants what is there.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let at = self.host(offset, len)?;
        // SAFETY: within this RAM's own reservation.
        match unsafe { libc::madvise(at, len as usize, libc::MADV_DONTNEED) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// For each page from `offset` on, whether the host has memory for it (bit 0). Of a file's mapping it tells what the
    /// host caches of the file.
    pub fn residency(&self, offset: u64, pages: &mut [u8]) -> io::Result<()> {
        let len = pages.len() * PAGE as usize;
        let at = self.host(offset, len as u64)?;
        // SAFETY: within this RAM's own reservation; the vector has one byte a page.
        match unsafe { libc::mincore(at, len, pages.as_mut_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn host(&self, offset: u64, len: u64) -> io::Result<*mut libc::c_void> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok((self.base as u64 + offset) as *mut libc::c_void),
            _ => Err(io::Error::from(io::ErrorKind::InvalidInput)),
        }
    }

    /// Whether any of it is a mapping of the golden file.
    pub fn has_files(&self) -> bool {
        self.files.iter().any(|file| file.load(Ordering::Relaxed))
    }

    /// Whether large page `region` is a mapping of the golden file.
    pub fn is_file(&self, region: usize) -> bool {
        self.files.get(region).is_some_and(|file| file.load(Ordering::Relaxed))
    }

    /// The bytes of a guest-physical range, for reading while no vCPU and no device runs.
    ///
    /// # Safety
    /// Nothing may write the range while the slice lives: the vCPU is out of the guest and devices are stopped.
    pub unsafe fn frozen(&self, offset: u64, len: u64) -> Option<&[u8]> {
        offset.checked_add(len).filter(|end| *end <= self.len)?;
        // SAFETY: in range of the reservation; the caller promises that nobody writes.
        Some(unsafe { std::slice::from_raw_parts((self.base as u64 + offset) as *const u8, len as usize) })
    }

    /// The bytes of a guest-physical range, for filling before the guest's first instruction.
    ///
    /// # Safety
    /// Nothing else may access the range while the slice lives.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn thawing(&self, offset: u64, len: u64) -> Option<&mut [u8]> {
        offset.checked_add(len).filter(|end| *end <= self.len)?;
        // SAFETY: in range of the reservation; the caller promises exclusive access.
        Some(unsafe { std::slice::from_raw_parts_mut((self.base as u64 + offset) as *mut u8, len as usize) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    /// Flags of the mapping that begins at a guest-physical address, as the host tells them.
    fn flags(ram: &Ram, offset: u64) -> String {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", ram.host_base() as u64 + offset);
        let mapping = maps.lines().skip_while(|line| !line.starts_with(&start));
        mapping.map(str::to_owned).find(|line| line.starts_with("VmFlags:")).unwrap_or_default() + " "
    }

    #[test]
    fn pages_are_small_until_large_ones_are_preferred_and_a_file_s_stay_as_they_are() {
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            return eprintln!("skipped: this kernel has no large pages to prefer");
        }
        let ram = Ram::new(16 << 20).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(16 << 20).unwrap();
        ram.map_file(&file, 4 << 20, 2 << 20).unwrap();
        let large = |offset: u64| (flags(&ram, offset).contains(" hg "), flags(&ram, offset).contains(" nh "));
        ram.prefer_large(false);
        assert_eq!([0, 4 << 20, 6 << 20].map(large), [(false, true), (true, false), (false, true)]);
        ram.prefer_large(true);
        assert_eq!([0, 4 << 20, 6 << 20].map(large), [(true, false); 3]);
    }

    #[test]
    fn memory_is_aligned_for_huge_pages_and_refuses_odd_sizes() {
        let ram = Ram::new(16 << 20).unwrap();
        assert_eq!(ram.host_base() % LARGE_PAGE as usize, 0);
        ram.view().write_obj(7u64, GuestAddress((16 << 20) - 8)).unwrap();
        assert!(ram.view().write_obj(7u64, GuestAddress((16 << 20) - 7)).is_err());
        assert!(matches!(Ram::new((16 << 20) + 4096), Err(MemoryError::Size(_))));
        assert!(matches!(Ram::new(2 << 20), Err(MemoryError::Size(_))));
    }
}
