//! A page as what differs from its base: a map of its words, one bit each, and then those words.
//!
//! Of what a used clone changes most pages differ in a few words. Written over memory that has the base already, nothing
//! but their cache lines is touched, which is most of what a wake saves over whole pages.

use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};

use dormouse_abi::PAGE;

/// Bytes of a word.
const WORD: usize = 8;
/// Words of a page that one word of its map stands for.
const GROUP: usize = 64;
/// Bytes of a cache line, whose words have one byte of a map.
const LINE: usize = 8 * WORD;
/// Bytes of a page's map.
const MAP: usize = PAGE as usize / WORD / 8;
/// From so many words on a page is taken whole: what lies together compresses better than what is picked out of it.
const MANY: u32 = 256;
/// The longest that a page can become, bytes.
pub const LONGEST: usize = MAP + PAGE as usize;

fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().unwrap_or_default())
}

/// Appends a page's difference from its base, both of [`PAGE`] bytes.
pub fn encode(page: &[u8], base: &[u8], out: &mut Vec<u8>) {
    let mut map = [0u64; PAGE as usize / WORD / GROUP];
    for (group, (page, base)) in map.iter_mut().zip(page.chunks(GROUP * WORD).zip(base.chunks(GROUP * WORD))) {
        for (bit, (page, base)) in page.chunks_exact(WORD).zip(base.chunks_exact(WORD)).enumerate() {
            *group |= u64::from(page != base) << bit;
        }
    }
    if map.iter().map(|group| group.count_ones()).sum::<u32>() >= MANY {
        map = [u64::MAX; _];
    }
    map.iter().for_each(|group| out.extend_from_slice(&group.to_le_bytes()));
    for (group, page) in map.iter().zip(page.chunks(GROUP * WORD)) {
        let words = page.chunks_exact(WORD).enumerate().filter(|(bit, _)| group >> bit & 1 == 1);
        words.for_each(|(_, word)| out.extend_from_slice(word));
    }
}

/// The first page's difference and the others'. `None`: there is none, or not all of it.
pub fn split(deltas: &[u8]) -> Option<(&[u8], &[u8])> {
    let map = deltas.first_chunk::<MAP>()?;
    let words: u32 = map.chunks_exact(WORD).map(|group| word(group).count_ones()).sum();
    deltas.split_at_checked(MAP + words as usize * WORD)
}

/// Asks for the cache lines that [`apply`] will write: a wake waits for memory more than for anything else it does here.
pub fn fetch(delta: &[u8], page: &mut [u8]) {
    for (lines, page) in delta[..MAP].iter().zip(page.chunks_exact(LINE)) {
        if *lines != 0 {
            // SAFETY: a hint, of an address that is there.
            unsafe { _mm_prefetch::<_MM_HINT_ET0>(page.as_ptr().cast()) };
        }
    }
}

/// Whether these are the differences of so many pages, and nothing besides.
pub fn are_of(deltas: &[u8], pages: usize) -> bool {
    (0..pages).try_fold(deltas, |deltas, _| split(deltas).map(|(_, others)| others)).is_some_and(<[u8]>::is_empty)
}

/// Makes a base's page the one that one part of [`split`] tells of.
pub fn apply(delta: &[u8], page: &mut [u8]) {
    let (map, mut words) = delta.split_at(MAP);
    for (group, page) in map.chunks_exact(WORD).zip(page.chunks_exact_mut(GROUP * WORD)) {
        let mut group = word(group);
        let (own, rest) = words.split_at(group.count_ones() as usize * WORD);
        words = rest;
        if group == u64::MAX {
            page.copy_from_slice(own);
            continue;
        }
        for word in own.chunks_exact(WORD) {
            let at = group.trailing_zeros() as usize * WORD;
            page[at..at + WORD].copy_from_slice(word);
            group &= group - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages of all kinds against a base of threes: equal, one word at each end, a few, every other, nearly all, all.
    #[test]
    fn pages_come_back_and_cut_ones_are_refused() {
        let base = [3u8; PAGE as usize];
        let with = |words: &mut dyn Iterator<Item = usize>| {
            let mut page = base;
            words.for_each(|at| page[at * WORD + at % WORD] = at as u8 ^ 0x5a);
            page
        };
        let pages = [
            base,
            with(&mut [0, 511].into_iter()),
            with(&mut (0..512).step_by(37)),
            with(&mut (0..512).step_by(2)),
            with(&mut (64..128)),
            with(&mut (0..511)),
            [0; PAGE as usize],
        ];
        let mut deltas = Vec::new();
        pages.iter().for_each(|page| encode(page, &base, &mut deltas));
        let mut rest = &deltas[..];
        for page in &pages {
            let (delta, others) = split(rest).unwrap();
            assert!(delta.len() <= LONGEST);
            let mut back = base;
            apply(delta, &mut back);
            assert!(back == *page);
            assert!((0..delta.len()).step_by(7).all(|cut| split(&delta[..cut]).is_none()));
            rest = others;
        }
        assert!(rest.is_empty() && split(rest).is_none());
        assert!(are_of(&deltas, pages.len()) && !are_of(&deltas, pages.len() - 1) && !are_of(&deltas, pages.len() + 1));
        assert_eq!(split(&deltas).unwrap().0.len(), MAP, "an equal page has no words");
    }
}
