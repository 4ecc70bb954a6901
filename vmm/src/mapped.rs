//! A file's bytes, mapped for reading: what nobody looks at is never read.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;

/// Files of images are never changed once they have their names, so what is mapped of them stays what it is.
#[derive(Debug)]
pub struct Mapped {
    map: *const u8,
    len: usize,
}

// SAFETY: a read-only mapping of a file that never changes.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// All of the file.
    pub fn new(file: &File) -> io::Result<Self> {
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        // SAFETY: a fresh read-only mapping at an address of the kernel's choosing.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped_len(len),
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { map: map.cast(), len })
    }
}

/// There is no mapping of no bytes; of an empty file, one is a page that nobody reads.
fn mapped_len(len: usize) -> usize {
    len.max(1)
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping, which lives as long as self, of a file that never changes.
        unsafe { std::slice::from_raw_parts(self.map, self.len) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: what `new` mapped; slices of it borrow self.
        unsafe { libc::munmap(self.map.cast_mut().cast(), mapped_len(self.len)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_file_and_an_empty_one_is_empty() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(&*Mapped::new(&file).unwrap(), b"");
        let bytes: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
        assert_eq!(&*Mapped::new(&file).unwrap(), bytes);
    }
}
