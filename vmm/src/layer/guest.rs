//! A range of guest memory, as the scattered slices of one request.
//!
//! File bytes go between host files and these slices without a copy in between. The guest may change its memory at
//! any time, so nothing here is ever borrowed as a Rust slice, and whoever parses bytes takes them out once.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use vm_memory::VolatileSlice;

/// `len` bytes from `start` of the slices laid end to end.
#[derive(Clone, Copy)]
pub struct GuestBytes<'a> {
    slices: &'a [VolatileSlice<'a>],
    start: usize,
    len: usize,
}

/// What Linux takes in one call.
const IOV_MAX: usize = 1024;

impl<'a> GuestBytes<'a> {
    pub fn new(slices: &'a [VolatileSlice<'a>]) -> Self {
        let len = slices.iter().fold(0usize, |n, s| n.saturating_add(s.len()));
        GuestBytes { slices, start: 0, len }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// At most `len` bytes from `offset`: less, or nothing, where the range ends before.
    pub fn range(&self, offset: usize, len: usize) -> GuestBytes<'a> {
        let offset = offset.min(self.len);
        GuestBytes { slices: self.slices, start: self.start + offset, len: len.min(self.len - offset) }
    }

    /// The parts of slices that make up this range, at most [`IOV_MAX`] of them.
    fn parts(&self) -> impl Iterator<Item = VolatileSlice<'a>> + use<'a> {
        let (mut skip, mut left) = (self.start, self.len);
        let slices = self.slices;
        slices.iter().filter_map(move |slice| {
            if left == 0 || skip >= slice.len() {
                skip = skip.saturating_sub(slice.len());
                return None;
            }
            let part = slice.subslice(skip, left.min(slice.len() - skip)).ok()?;
            skip = 0;
            left -= part.len();
            Some(part)
        })
    }

    /// Copies out as many bytes as both have; returns how many.
    pub fn copy_to(&self, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        for part in self.parts() {
            done += part.copy_to(&mut buffer[done..]);
        }
        done
    }

    /// Copies in as many bytes as both have; returns how many.
    pub fn copy_from(&self, bytes: &[u8]) -> usize {
        let mut done = 0;
        for part in self.parts() {
            let n = part.len().min(bytes.len() - done);
            part.copy_from(&bytes[done..done + n]);
            done += n;
        }
        done
    }

    pub fn zero(&self) {
        for part in self.parts() {
            let guard = part.ptr_guard_mut();
            // SAFETY: the guard keeps the slice's `len` bytes mapped and writable; no reference to them exists.
            unsafe { std::ptr::write_bytes(guard.as_ptr(), 0, part.len()) };
        }
    }

    /// Fills the range from the file; returns how many bytes there were before the file's end.
    pub fn read_from(&self, file: &File, offset: u64) -> io::Result<usize> {
        // SAFETY: `transfer` passes iovecs that lie in live guest memory.
        self.transfer(offset, |iov, n, at| unsafe { libc::preadv(file.as_raw_fd(), iov, n, at) })
    }

    /// Writes the range to the file. Less than the whole is returned only together with no error from the host,
    /// which then takes no more.
    pub fn write_to(&self, file: &File, offset: u64) -> io::Result<usize> {
        // SAFETY: as above.
        self.transfer(offset, |iov, n, at| unsafe { libc::pwritev(file.as_raw_fd(), iov, n, at) })
    }

    fn transfer(
        &self,
        offset: u64,
        call: impl Fn(*const libc::iovec, libc::c_int, libc::off_t) -> isize,
    ) -> io::Result<usize> {
        let mut done = 0;
        while done < self.len {
            let guards: Vec<_> =
                self.range(done, self.len).parts().take(IOV_MAX).map(|p| (p.ptr_guard_mut(), p.len())).collect();
            let iov: Vec<libc::iovec> = guards
                .iter()
                .map(|(guard, len)| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: *len })
                .collect();
            let n = call(iov.as_ptr(), iov.len() as libc::c_int, (offset + done as u64) as libc::off_t);
            match n {
                0 => break,
                1.. => done += n as usize,
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() == io::ErrorKind::Interrupted {
                        continue;
                    }
                    // What did arrive is the answer; the caller meets the error again if it goes on.
                    if done > 0 {
                        break;
                    }
                    return Err(error);
                }
            }
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_over_many_slices_copy_like_one_buffer() {
        let mut memory: Vec<u8> = (0..100).collect();
        let (a, rest) = memory.split_at_mut(10);
        let (b, c) = rest.split_at_mut(1);
        let slices = [VolatileSlice::from(a), VolatileSlice::from(b), VolatileSlice::from(c)];
        let all = GuestBytes::new(&slices);
        for start in [0, 5, 9, 10, 11, 50, 99, 100, 150] {
            for len in [0, 1, 2, 6, 60, 200] {
                let mut out = [0xff; 200];
                let n = all.range(start, len).copy_to(&mut out);
                let expected: Vec<u8> = (0..100).skip(start).take(len).collect();
                assert_eq!(&out[..n], expected, "start {start} len {len}");
            }
        }
        all.range(9, 3).zero();
        all.range(20, 3).copy_from(&[7, 8, 9, 10]);
        assert_eq!(memory[8..13], [8, 0, 0, 0, 12]);
        assert_eq!(memory[19..24], [19, 7, 8, 9, 23]);
    }
}
