//! The page pool beside a list of which pages are taken.

#[allow(dead_code)]
#[path = "../../src/pages.rs"]
mod pages;

use crate::model::Chance;
use dormouse_abi::PAGE;

const COUNT: usize = 4096;
/// The pool has no process slots here; its bitmaps are one page.
const OWN: usize = 1;

struct Taken {
    base: u64,
    pages: Vec<bool>,
    /// First page and length of what was given.
    runs: Vec<(usize, usize)>,
}

impl Taken {
    fn first_free(&self, count: usize) -> Option<usize> {
        (0..=COUNT - count).find(|&from| self.is_free(from, count))
    }

    fn last_free(&self, count: usize) -> Option<usize> {
        (0..=COUNT - count).rev().find(|&from| self.is_free(from, count))
    }

    fn is_free(&self, from: usize, count: usize) -> bool {
        self.pages[from..from + count].iter().all(|taken| !taken)
    }

    fn left(&self) -> usize {
        self.pages.iter().filter(|taken| !**taken).count()
    }

    fn note(&mut self, from: usize, count: usize) {
        self.pages[from..from + count].fill(true);
        self.runs.push((from, count));
    }

    fn address(&self, page: usize) -> *mut u8 {
        (self.base + page as u64 * PAGE) as *mut u8
    }
}

#[test]
fn mappings_are_taken_from_the_start_and_caches_from_the_end() {
    // With a share whose cache is empty: there is nothing to give back.
    let _alone = crate::tests::boot(|_| {});
    let memory = vec![0u8; (COUNT + 1) * PAGE as usize];
    let base = (memory.as_ptr() as u64).next_multiple_of(PAGE);
    pages::init(base, base, base + COUNT as u64 * PAGE);
    let mut model = Taken { base, pages: vec![false; COUNT], runs: Vec::new() };
    model.pages[..OWN].fill(true);
    let (mut chance, mut refused) = (Chance::new(7), 0);
    for _ in 0..20_000 {
        let longest = if chance.below(20) == 0 { 300 } else { 16 };
        let count = 1 + chance.below(longest);
        let fits = model.left() >= count + pages::headroom().1;
        match chance.below(5) {
            0 | 1 => {
                let expected = model.first_free(count).filter(|_| fits);
                let got = pages::alloc(count);
                assert_eq!(got, expected.map(|page| model.address(page)));
                if let Some(start) = got {
                    // SAFETY: the pool's, so this test's own.
                    let bytes = unsafe { core::slice::from_raw_parts_mut(start, count * PAGE as usize) };
                    assert!(bytes.iter().all(|&byte| byte == 0));
                    bytes.fill(0xff);
                }
                expected.map_or_else(|| refused += 1, |page| model.note(page, count));
            }
            2 => {
                let expected = model.last_free(count).filter(|_| fits);
                assert_eq!(pages::alloc_spare(count), expected.map(|page| model.address(page)));
                expected.map_or_else(|| refused += 1, |page| model.note(page, count));
            }
            _ if model.runs.is_empty() => {}
            _ => {
                let (from, count) = model.runs.swap_remove(chance.below(model.runs.len()));
                model.pages[from..from + count].fill(false);
                pages::free(model.address(from), count);
            }
        }
        assert_eq!(pages::usage(), (COUNT - model.left(), COUNT));
    }
    assert!(refused > 0, "the pool was never full");
}
