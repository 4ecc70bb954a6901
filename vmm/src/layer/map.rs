//! Which 8 KiB blocks of a template file a layer holds.

/// Unit of copy-up, in bytes: Postgres' page.
pub(crate) const BLOCK: u64 = 8192;

/// A set of block numbers below the file's visible template length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockMap {
    words: Vec<u64>,
}

impl BlockMap {
    pub fn has(&self, block: u64) -> bool {
        self.words.get((block / 64) as usize).is_some_and(|w| w >> (block % 64) & 1 != 0)
    }

    pub fn insert(&mut self, block: u64) {
        let word = (block / 64) as usize;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (block % 64);
    }

    /// Forgets `block` and all after it.
    pub fn cut(&mut self, block: u64) {
        let word = (block / 64) as usize;
        if word < self.words.len() {
            self.words[word] &= (1 << (block % 64)) - 1;
            self.words.truncate(word + 1);
        }
    }

    #[cfg(test)]
    pub fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// Little-endian bits without trailing zero bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|w| w.to_le_bytes()).collect();
        while bytes.last() == Some(&0) {
            bytes.pop();
        }
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> BlockMap {
        let word = |chunk: &[u8]| chunk.iter().rev().fold(0u64, |w, &b| w << 8 | u64::from(b));
        BlockMap { words: bytes.chunks(8).map(word).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_survives_its_bytes_and_a_cut() {
        let mut map = BlockMap::default();
        for b in [0, 7, 8, 63, 64, 200] {
            map.insert(b);
        }
        let again = BlockMap::from_bytes(&map.to_bytes());
        assert!((0..300).all(|b| map.has(b) == again.has(b)));
        assert_eq!(again.count(), 6);
        map.cut(64);
        assert_eq!(map.count(), 4);
        assert!(map.has(63) && !map.has(64));
        map.cut(0);
        assert_eq!(map.to_bytes(), b"");
    }
}
