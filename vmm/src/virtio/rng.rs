//! virtio-rng: fills every buffer from the host's generator.

use std::io;

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

use super::{give_back, pop};

/// The most bytes given for one request: a guest wants seeds, not a stream.
const MOST: usize = 4096;

/// Fills `bytes` from the host's generator.
pub fn fill(bytes: &mut [u8]) -> io::Result<()> {
    let mut at = 0;
    while at < bytes.len() {
        let rest = &mut bytes[at..];
        // SAFETY: the pointer and length are those of `rest`.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match got {
            got if got > 0 => at += got as usize,
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// Serves all requests; true if there was any.
pub fn serve(queue: &mut Queue, memory: &GuestMemoryMmap) -> bool {
    let mut served = false;
    while let Some(chain) = pop(queue, memory) {
        let mut written = 0;
        for slice in &chain.writable {
            let len = slice.len().min(MOST - written);
            let mut bytes = vec![0; len];
            if fill(&mut bytes).is_err() {
                break;
            }
            slice.copy_from(&bytes);
            written += len;
        }
        give_back(queue, memory, chain.head, written);
        served = true;
    }
    served
}
