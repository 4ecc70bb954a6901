//! Which pages of a guest's memory differ from their base, and which do not matter.
//!
//! A page that was never touched, and one that still is the golden file's, is told from `/proc/self/pagemap` without
//! looking at it: looking would fill it in. All others are compared byte by byte, so a page that was written and is
//! equal again drops out, and nothing depends on a dirty log that a restore would have to start anew.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use dormouse_abi::{LARGE_PAGE, PAGE};

use crate::machine::Ram;
use crate::mapped::Mapped;
use crate::shared::SharedPage;

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// The page is a file's or shared: in a private mapping, not yet copied.
const FILE: u64 = 1 << 61;

/// Pages of a large page.
pub const REGION_PAGES: usize = (LARGE_PAGE / PAGE) as usize;

/// A golden memory file, mapped for reading beside the guest.
#[derive(Debug)]
pub struct Base {
    /// Its name in headers.
    pub name: String,
    pub file: File,
    bytes: Mapped,
}

impl Base {
    /// Of a golden memory file of `len` bytes.
    pub fn new(name: String, file: File, len: u64) -> io::Result<Self> {
        if file.metadata()?.len() != len {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the golden memory has another size"));
        }
        let bytes = Mapped::new(&file)?;
        Ok(Self { name, file, bytes })
    }

    /// The bytes of a page.
    pub fn page(&self, number: usize) -> &[u8] {
        let at = number * PAGE as usize;
        &self.bytes[at..at + PAGE as usize]
    }

    /// Whether these bytes are what it has from an address on.
    pub fn has(&self, address: u64, bytes: &[u8]) -> bool {
        let from = usize::try_from(address).unwrap_or(usize::MAX);
        self.bytes.get(from..).and_then(|rest| rest.get(..bytes.len())) == Some(bytes)
    }

    /// Lays all that it holds over new guest memory; the rest is of small pages until the guest has run for a while.
    pub fn map(&self, ram: &Ram) -> io::Result<()> {
        let regions = self.regions()?;
        let mut region = 0;
        for run in regions.chunk_by(|one, next| one == next) {
            if run[0] {
                ram.map_file(&self.file, region as u64 * LARGE_PAGE, run.len() as u64 * LARGE_PAGE)?;
            }
            region += run.len();
        }
        ram.prefer_large(false);
        Ok(())
    }

    /// For each large page, whether the file has any data there.
    pub fn regions(&self) -> io::Result<Vec<bool>> {
        let mut regions = vec![false; self.bytes.len() / LARGE_PAGE as usize];
        let mut region = 0;
        // One question a large page, not one an extent: the file may have thousands.
        while region < regions.len() {
            let at = region as i64 * LARGE_PAGE as i64;
            // SAFETY: seeking has no memory effects.
            let data = unsafe { libc::lseek(self.file.as_raw_fd(), at, libc::SEEK_DATA) };
            if data < 0 {
                let error = io::Error::last_os_error();
                return if error.raw_os_error() == Some(libc::ENXIO) { Ok(regions) } else { Err(error) };
            }
            region = (data as u64 / LARGE_PAGE) as usize;
            if let Some(region) = regions.get_mut(region) {
                *region = true;
            }
            region += 1;
        }
        Ok(regions)
    }
}

pub(super) static ZERO: [u8; PAGE as usize] = [0; PAGE as usize];

/// The content of a page that differs.
pub enum Content<'a> {
    /// Never touched, while the base has something there.
    Zero,
    Bytes(&'a [u8]),
}

impl Content<'_> {
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Zero => &ZERO,
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// Bit `i` set: page `i` of memory is free in the guest and its content does not matter.
///
/// But for one thing: a guest takes a free page that it never used to be zero. In a clone's base it is, since clone and
/// golden guest have used the same pages; a guest that was booted by itself has another past than the golden one it is
/// compared with, so there the golden file's bytes must not show through.
pub struct Free {
    pool: u64,
    bits: Vec<u8>,
    foreign: bool,
}

impl Free {
    /// Reads the guest's bitmap. A bitmap that does not lie in memory frees nothing.
    ///
    /// # Safety
    /// The vCPU is out of the guest and no device runs.
    pub unsafe fn read(ram: &Ram, shared: &SharedPage) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::bitmap(ram, shared, shared.get_free_bitmap()) }
    }

    /// Only the pages that the guest does not use while it runs either.
    ///
    /// # Safety
    /// As for [`Free::read`].
    pub unsafe fn unused(ram: &Ram, shared: &SharedPage) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::bitmap(ram, shared, shared.get_unused_bitmap()) }
    }

    unsafe fn bitmap(ram: &Ram, shared: &SharedPage, at: u64) -> Self {
        // An older kernel tells nothing.
        let len = if at == 0 { 0 } else { shared.get_free_bitmap_len() };
        let info = dormouse_abi::SYSTEM + dormouse_abi::system::BOOT_INFO;
        let pool_at = info + std::mem::offset_of!(dormouse_abi::BootInfo, slots) as u64;
        // SAFETY: the caller's promise is that of `frozen`.
        let (pool, bits) = unsafe { (ram.frozen(pool_at, 8), ram.frozen(at, len)) };
        let foreign = shared.get_clone_count() == 0;
        match (pool.and_then(|pool| pool.try_into().ok()).map(u64::from_le_bytes), bits) {
            (Some(pool), Some(bits)) if pool % PAGE == 0 => Self { pool: pool / PAGE, bits: bits.to_vec(), foreign },
            _ => Self { pool: 0, bits: Vec::new(), foreign },
        }
    }

    /// All free pages, as ascending ranges of page numbers.
    pub fn ranges(&self) -> Vec<std::ops::Range<usize>> {
        let mut ranges: Vec<std::ops::Range<usize>> = Vec::new();
        let mut add = |from: usize, len: usize| match ranges.last_mut() {
            Some(last) if last.end == from => last.end += len,
            _ => ranges.push(from..from + len),
        };
        for (index, byte) in self.bits.iter().enumerate() {
            let first = self.pool as usize + index * 8;
            match byte {
                0 => {}
                0xff => add(first, 8),
                byte => (0..8).filter(|bit| byte & (1 << bit) != 0).for_each(|bit| add(first + bit, 1)),
            }
        }
        ranges
    }

    pub fn has(&self, page: usize) -> bool {
        let Some(bit) = (page as u64).checked_sub(self.pool) else { return false };
        self.bits.get((bit / 8) as usize).is_some_and(|byte| byte & (1 << (bit % 8)) != 0)
    }
}

/// What the host knows of this process' pages: opened once, since a jail has no `/proc`.
pub fn pagemap() -> io::Result<&'static File> {
    static PAGEMAP: OnceLock<File> = OnceLock::new();
    if PAGEMAP.get().is_none() {
        let _ = PAGEMAP.set(File::open("/proc/self/pagemap")?);
    }
    PAGEMAP.get().ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Calls `each` with every page that differs from the base and matters, in order.
///
/// # Safety
/// The vCPU is out of the guest and no device runs.
pub unsafe fn differing<E: From<io::Error>>(
    ram: &Ram,
    base: Option<&Base>,
    free: &Free,
    mut each: impl FnMut(usize, Content<'_>, Option<&[u8]>) -> Result<(), E>,
) -> Result<(), E> {
    let pagemap = pagemap()?;
    let in_base = match base {
        Some(base) => base.regions()?,
        None => vec![false; (ram.len() / LARGE_PAGE) as usize],
    };
    let mut entries = vec![0u8; REGION_PAGES * 8];
    for (region, in_base) in in_base.into_iter().enumerate() {
        let first = region * REGION_PAGES;
        let host = ram.host_base() as u64 + region as u64 * LARGE_PAGE;
        pagemap.read_exact_at(&mut entries, host / PAGE * 8)?;
        for (offset, entry) in entries.chunks_exact(8).enumerate() {
            let entry = u64::from_le_bytes(entry.try_into().unwrap_or_default());
            let number = first + offset;
            // A huge zero page of anonymous memory that was only read also counts as a file's.
            let ours = entry & SWAPPED != 0 || (entry & PRESENT != 0 && (entry & FILE == 0 || !ram.is_file(region)));
            let base_page = base.filter(|_| in_base).map(|base| base.page(number));
            if free.has(number) {
                if free.foreign && base_page.is_some_and(|page| page != ZERO) {
                    each(number, Content::Zero, base_page)?;
                }
                continue;
            }
            if !ours {
                // Not there: the golden file's page where that is mapped, zero where nothing is.
                if entry & PRESENT == 0 && base_page.is_some() && !ram.is_file(region) && base_page != Some(&ZERO[..]) {
                    each(number, Content::Zero, base_page)?;
                }
                continue;
            }
            // SAFETY: the caller's promise is that of `frozen`; the page lies in memory.
            let Some(bytes) = (unsafe { ram.frozen(number as u64 * PAGE, PAGE) }) else { continue };
            if bytes != base_page.unwrap_or(&ZERO) {
                each(number, Content::Bytes(bytes), base_page)?;
            }
        }
    }
    Ok(())
}
