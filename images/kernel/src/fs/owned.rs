//! Which blocks of a file the host is known to have room for.

use super::window::BLOCK;
use alloc::vec::Vec;

/// Blocks that are followed: Postgres' files have at most a GiB.
const LIMIT: u64 = (1 << 30) / BLOCK;

/// A set of block numbers.
#[derive(Default)]
pub struct Owned {
    words: Vec<u64>,
}

impl Owned {
    /// Adds the blocks that lie wholly in the range of bytes.
    pub fn add(&mut self, from: u64, to: u64) {
        for block in from.div_ceil(BLOCK)..(to / BLOCK).min(LIMIT) {
            let word = (block / 64) as usize;
            if word >= self.words.len() {
                self.words.resize(word + 1, 0);
            }
            self.words[word] |= 1 << (block % 64);
        }
    }

    /// Whether all of the range, which is one of whole blocks, is in it.
    pub fn covers(&self, from: u64, to: u64) -> bool {
        (from / BLOCK..to / BLOCK)
            .all(|block| self.words.get((block / 64) as usize).is_some_and(|word| word >> (block % 64) & 1 != 0))
    }

    /// Where the first block of the range that is not in it begins; the range's end if there is none.
    pub fn first_missing(&self, from: u64, to: u64) -> u64 {
        (from..to).step_by(BLOCK as usize).find(|&at| !self.covers(at, at + BLOCK)).unwrap_or(to)
    }

    /// Forgets the block at byte `from` and all after it.
    pub fn cut(&mut self, from: u64) {
        let (word, bit) = ((from / BLOCK / 64) as usize, from / BLOCK % 64);
        self.words.truncate(word + 1);
        if let Some(last) = self.words.get_mut(word) {
            *last &= (1 << bit) - 1;
        }
    }
}
