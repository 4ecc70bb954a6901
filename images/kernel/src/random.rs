//! Random numbers: ChaCha20, seeded from the entropy device and the shared page at boot, and again from the shared
//! page after every restore, so that clones of one snapshot never see the same stream.

use crate::global::Global;
use crate::virtio::Queue;
use core::cell::RefCell;
use dormouse_abi as abi;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

static GENERATOR: Global<RefCell<Option<ChaCha20Rng>>> = Global::new(RefCell::new(None));

/// Mixes 64 fresh bytes into the generator. What it was before also counts, so a weak new seed does no harm.
pub fn reseed(entropy: &[u8; 64]) {
    let mut seed = [0u8; 32];
    let mut generator = GENERATOR.get().borrow_mut();
    if let Some(old) = generator.as_mut() {
        old.fill_bytes(&mut seed);
    }
    for (i, byte) in entropy.iter().enumerate() {
        seed[i % 32] ^= byte.rotate_left((i / 32) as u32 * 3);
    }
    *generator = Some(ChaCha20Rng::from_seed(seed));
}

pub fn fill(out: &mut [u8]) {
    match GENERATOR.get().borrow_mut().as_mut() {
        Some(generator) => generator.fill_bytes(out),
        None => panic!("random numbers were asked for before the generator was seeded"),
    }
}

/// The first seed: what the VMM laid on the shared page, and what the entropy device gives.
pub fn init(entropy: &[u8; 64]) {
    reseed(entropy);
    let mut device = Queue::new(abi::queue::RNG);
    let mut bytes = [0u8; 64];
    // The boot stack is mapped at its physical address, and the store of the kick completes only when the device has
    // filled the buffer.
    if device.push(&[], &[(bytes.as_mut_ptr() as u64, bytes.len() as u32)]).is_some() {
        device.kick();
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
        if device.pop().is_some_and(|(_, len)| len > 0) {
            reseed(core::hint::black_box(&bytes));
            return;
        }
    }
    crate::klog!("the entropy device gave nothing: seeded from the shared page alone");
}
