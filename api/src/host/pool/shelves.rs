//! What stands by for what: how many of each kind there are, how many there should be, which is made next.
//!
//! No I/O and no clock. A kind begins with one place and gets twice as many each time it is asked for in vain; one that
//! nobody asks for is forgotten with its places.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long a kind that nobody asked for keeps its places.
pub const REMEMBERED: Duration = Duration::from_secs(600);

/// What a VMM can be made ready for without knowing the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    pub image: String,
    pub memory_mib: u64,
}

struct Shelf<T> {
    kind: Kind,
    asked: Instant,
    /// How many are wanted.
    places: usize,
    ready: VecDeque<T>,
}

/// The shelves of all kinds, `most` things on them at most.
pub struct Shelves<T> {
    most: usize,
    shelves: Vec<Shelf<T>>,
}

impl<T> Shelves<T> {
    pub fn new(most: usize) -> Self {
        Self { most, shelves: Vec::new() }
    }

    /// Forgets all kinds; gives what stood by for them.
    pub fn clear(&mut self) -> Vec<T> {
        self.shelves.drain(..).flat_map(|shelf| shelf.ready).collect()
    }

    /// Has a place for this kind.
    pub fn expect(&mut self, kind: &Kind, now: Instant) {
        if self.find(kind).is_none() {
            self.shelves.push(Shelf { kind: kind.clone(), asked: now, places: 1, ready: VecDeque::new() });
        }
    }

    /// Takes one; in vain, more of it will be wanted.
    pub fn take(&mut self, kind: &Kind, now: Instant) -> Option<T> {
        let most = self.most;
        let Some(shelf) = self.find(kind) else {
            self.expect(kind, now);
            return None;
        };
        shelf.asked = now;
        let taken = shelf.ready.pop_front();
        if taken.is_none() {
            shelf.places = (shelf.places * 2).min(most);
        }
        taken
    }

    /// Puts one where it belongs, if it is still wanted.
    pub fn put(&mut self, kind: &Kind, thing: T) {
        if let Some(shelf) = self.find(kind) {
            shelf.ready.push_back(thing);
        }
    }

    /// Removes those that are no longer of use; whether there were any.
    pub fn discard(&mut self, is_gone: impl Fn(&T) -> bool) -> bool {
        let before = self.len();
        for shelf in &mut self.shelves {
            shelf.ready.retain(|thing| !is_gone(thing));
        }
        self.len() < before
    }

    /// The kind of which the next is to be made; forgets the kinds that nobody asks for, and gives a place to one that
    /// has none.
    pub fn next(&mut self, now: Instant) -> Option<Kind> {
        self.shelves.retain(|shelf| now.saturating_duration_since(shelf.asked) < REMEMBERED);
        let total = self.len();
        let lacking = self.shelves.iter().filter(|shelf| shelf.ready.len() < shelf.places);
        let lacking = lacking.min_by_key(|shelf| (shelf.ready.len(), Reverse(shelf.asked)))?;
        let (kind, asked, none) = (lacking.kind.clone(), lacking.asked, lacking.ready.is_empty());
        if total >= self.most {
            let fullest = self.shelves.iter_mut().max_by_key(|shelf| (shelf.ready.len(), Reverse(shelf.asked)))?;
            if !none || (fullest.ready.len() < 2 && fullest.asked >= asked) {
                return None;
            }
            fullest.ready.pop_front()?;
        }
        Some(kind)
    }

    /// How many stand by.
    pub fn len(&self) -> usize {
        self.shelves.iter().map(|shelf| shelf.ready.len()).sum()
    }

    fn find(&mut self, kind: &Kind) -> Option<&mut Shelf<T>> {
        self.shelves.iter_mut().find(|shelf| shelf.kind == *kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(image: &str) -> Kind {
        Kind { image: image.into(), memory_mib: 512 }
    }

    /// Makes all that is wanted.
    fn fill(shelves: &mut Shelves<u32>, now: Instant) {
        while let Some(kind) = shelves.next(now) {
            shelves.put(&kind, 0);
            assert!(shelves.len() <= shelves.most);
        }
    }

    #[test]
    fn it_grows_with_demand_up_to_the_setting() {
        let (mut shelves, now) = (Shelves::new(4), Instant::now());
        assert_eq!(shelves.next(now), None, "nobody has asked");
        shelves.expect(&kind("a"), now);
        fill(&mut shelves, now);
        assert_eq!(shelves.len(), 1);
        for expected in [2, 4, 4] {
            while shelves.take(&kind("a"), now).is_some() {}
            fill(&mut shelves, now);
            assert_eq!(shelves.len(), expected);
        }
        let mut none = Shelves::<u32>::new(0);
        none.take(&kind("a"), now);
        assert_eq!(none.next(now), None);
    }

    #[test]
    fn a_kind_asked_for_later_gets_a_place_of_the_fullest() {
        let (mut shelves, now) = (Shelves::new(2), Instant::now());
        shelves.expect(&kind("a"), now);
        shelves.take(&kind("a"), now);
        fill(&mut shelves, now);
        assert_eq!(shelves.len(), 2);
        shelves.take(&kind("b"), now + Duration::from_secs(1));
        fill(&mut shelves, now + Duration::from_secs(1));
        let (mut a, mut b) = (0, 0);
        for shelf in &shelves.shelves {
            *if shelf.kind == kind("a") { &mut a } else { &mut b } += shelf.ready.len();
        }
        assert_eq!((a, b), (1, 1));
        // One place: it is the last asker's.
        let mut one = Shelves::new(1);
        one.expect(&kind("a"), now);
        fill(&mut one, now);
        one.take(&kind("b"), now + Duration::from_secs(1));
        fill(&mut one, now + Duration::from_secs(1));
        assert_eq!(one.len(), 1);
        assert!(one.take(&kind("b"), now + Duration::from_secs(2)).is_some());
    }

    #[test]
    fn what_nobody_asks_for_is_forgotten_and_what_is_gone_is_replaced() {
        let (mut shelves, now) = (Shelves::new(2), Instant::now());
        shelves.expect(&kind("a"), now);
        fill(&mut shelves, now);
        shelves.discard(|_| true);
        assert_eq!(shelves.next(now), Some(kind("a")));
        assert_eq!(shelves.next(now + REMEMBERED), None);
        shelves.put(&kind("a"), 0);
        assert_eq!(shelves.len(), 0, "made for a kind that has been forgotten meanwhile");
    }
}
