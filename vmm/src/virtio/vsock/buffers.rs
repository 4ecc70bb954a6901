//! Copies between a chain's slices of guest memory and bytes of the VMM's.

use std::collections::VecDeque;

use vm_memory::VolatileSlice;

/// Copies the first `len` bytes out; returns the slices after them, or `None` if there are fewer.
pub fn split<'a>(slices: &[VolatileSlice<'a>], len: usize, head: &mut [u8]) -> Option<Vec<VolatileSlice<'a>>> {
    let mut rest = Vec::with_capacity(slices.len());
    let mut at = 0;
    for slice in slices {
        let here = slice.len().min(len - at);
        if here > 0 {
            slice.copy_to(&mut head[at..at + here]);
            at += here;
        }
        if here < slice.len() {
            rest.push(slice.offset(here).ok()?);
        }
    }
    (at == len).then_some(rest)
}

/// Copies bytes to the start of the slices; returns how many fitted.
pub fn place(slices: &[VolatileSlice], bytes: &[u8]) -> usize {
    let mut at = 0;
    for slice in slices {
        let here = slice.len().min(bytes.len() - at);
        slice.copy_from(&bytes[at..at + here]);
        at += here;
    }
    at
}

/// Appends bytes `from..to` of the slices to a buffer.
pub fn append(buffer: &mut VecDeque<u8>, slices: &[VolatileSlice], from: usize, to: usize) {
    let mut at = 0;
    for slice in slices {
        let start = from.clamp(at, at + slice.len()) - at;
        let end = to.clamp(at, at + slice.len()) - at;
        if start < end
            && let Ok(part) = slice.subslice(start, end - start)
        {
            let mut bytes = vec![0; end - start];
            part.copy_to(&mut bytes);
            buffer.extend(&bytes);
        }
        at += slice.len();
    }
}

/// Moves at most `most` bytes from a buffer to the slices; returns how many.
pub fn hand_over(buffer: &mut VecDeque<u8>, slices: &[VolatileSlice], most: usize) -> usize {
    let room: usize = slices.iter().map(VolatileSlice::len).sum();
    let bytes: Vec<u8> = buffer.drain(..most.min(room).min(buffer.len())).collect();
    place(slices, &bytes)
}
