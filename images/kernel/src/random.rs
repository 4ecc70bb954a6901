//! Random numbers: ChaCha20, seeded by the VMM at boot and again after every restore, so that clones of one
//! snapshot never see the same stream.

use crate::global::Global;
use core::cell::RefCell;
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
