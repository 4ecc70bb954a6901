//! Memory of this process itself that a wake is going to use: had beforehand, instead of by a fault for each page.

use std::hint::black_box;

/// What a wake uses: the layer's tables, buffers, what is read. Bytes.
const HEAP: usize = 640 << 10;
/// Of its main thread's stack, bytes.
const STACK: usize = 64 << 10;

/// Makes room on heap and stack, and has it kept. Where that fails the faults do it.
pub fn have_ready() {
    for (what, value) in [
        // One heap for all threads: another would begin with pages of its own.
        (libc::M_ARENA_MAX, 1),
        // What was freed stays, and what is large comes from there too.
        (libc::M_TRIM_THRESHOLD, 16 << 20),
        (libc::M_MMAP_THRESHOLD, 1 << 20),
    ] {
        // SAFETY: settings of the allocator, of values that it knows.
        unsafe { libc::mallopt(what, value) };
    }
    let mut heap = vec![0u8; HEAP];
    heap.iter_mut().step_by(dormouse_abi::PAGE as usize).for_each(|byte| *byte = black_box(1));
    black_box(&heap);
    use_stack();
}

#[inline(never)]
fn use_stack() {
    let mut stack = [0u8; STACK];
    black_box(&mut stack);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_wake_takes_is_there_already() {
        let faults = || {
            let usage = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            usage.rsplit_once(')').unwrap().1.split_whitespace().nth(7).unwrap().parse::<usize>().unwrap()
        };
        // On a thread of its own the tests' other threads' heaps are not in the way; it is the main heap's trimming that
        // counts in a VMM, and each arena's is set alike.
        have_ready();
        have_ready();
        let before = faults();
        let parts: Vec<Vec<u8>> = (0..HEAP / 4 / 8192).map(|_| black_box(vec![1u8; 8192])).collect();
        let after = faults();
        drop(parts);
        assert!(after - before < HEAP / 4 / 4096 / 2, "{} faults", after - before);
    }
}
