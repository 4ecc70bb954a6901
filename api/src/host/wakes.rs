//! The last wakes, step by step, and how long all of them took.
//!
//! A wake goes through the pooler, this process and the VMM. Each notes its steps on the host's monotonic clock; they meet
//! here. Only the last of all wakes are kept, and only in memory: a database that sleeps costs nothing for it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_pooler::Step;
use serde::Serialize;
use utoipa::ToSchema;

use super::metrics::Histogram;
use crate::identity::DatabaseId;
use crate::metadata::now_ms;

/// Wakes kept, of all databases together.
const KEPT: usize = 1000;

/// How a database came to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WakeKind {
    /// From its own snapshot.
    Resume,
    /// As a clone of the golden snapshot: its first start.
    Clone,
    /// From its data directory.
    Cold,
}

impl WakeKind {
    pub const ALL: [WakeKind; 3] = [WakeKind::Resume, WakeKind::Clone, WakeKind::Cold];

    pub fn as_str(self) -> &'static str {
        match self {
            WakeKind::Resume => "resume",
            WakeKind::Clone => "clone",
            WakeKind::Cold => "cold",
        }
    }
}

/// One wake.
#[derive(Clone, Debug)]
pub struct Wake {
    /// When it was awake, ms since 1970.
    pub at: i64,
    pub kind: WakeKind,
    /// When the VMM had said that it runs, µs on the monotonic clock.
    ready: u64,
    /// Each with the time at which it was done, µs on the monotonic clock; not in order.
    steps: Vec<(String, u64)>,
    client: bool,
    guest: bool,
}

impl Wake {
    /// The steps in order, each with the µs since the first.
    pub fn steps(&self) -> Vec<(&str, u64)> {
        let mut steps: Vec<_> = self.steps.iter().map(|(name, at)| (name.as_str(), *at)).collect();
        steps.sort_by_key(|(_, at)| *at);
        let first = steps.first().map_or(0, |(_, at)| *at);
        steps.into_iter().map(|(name, at)| (name, at - first)).collect()
    }

    /// Nothing more of it will come: a client was answered, and the VMM has told what it did for that.
    pub fn is_complete(&self) -> bool {
        self.client && self.guest
    }
}

/// Of all databases.
#[derive(Default)]
pub struct Wakes {
    last: Mutex<VecDeque<(DatabaseId, Wake)>>,
    /// Answers that came before their wake was heard of here, as a session's that was bound early may.
    early: Mutex<VecDeque<(DatabaseId, Vec<Step>)>>,
    /// From asked to running, by [`WakeKind`].
    pub ready: [Histogram; WakeKind::ALL.len()],
    /// From the first byte of whoever asked to the first byte of the answer.
    pub answered: Histogram,
}

impl Wakes {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(DatabaseId, Wake)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A database is awake that was asked for at `asked` (µs).
    pub fn woken(&self, id: &DatabaseId, kind: WakeKind, (asked, ready): (u64, u64), steps: Vec<(String, u64)>) {
        self.ready[kind as usize].observe(Duration::from_micros(ready.saturating_sub(asked)));
        let wake = Wake { at: now_ms(), kind, ready, steps, client: false, guest: false };
        let mut last = self.lock();
        if last.len() >= KEPT {
            last.pop_front();
        }
        last.push_back((id.clone(), wake));
        drop(last);
        let answer = {
            let mut early = self.early();
            let at = early.iter().position(|(of, _)| of == id);
            at.and_then(|at| early.remove(at))
        };
        // One from before it was asked for is of a database that was awake then.
        if let Some((_, steps)) = answer
            && steps.last().is_some_and(|(_, at)| *at >= asked)
        {
            self.answered(id, &steps);
        }
    }

    fn early(&self) -> MutexGuard<'_, VecDeque<(DatabaseId, Vec<Step>)>> {
        self.early.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the VMM did after it had said that it runs.
    pub fn served(&self, id: &DatabaseId, steps: Vec<(String, u64)>) {
        self.change(id, |wake| {
            for (name, at) in steps {
                if wake.steps.iter().all(|(known, _)| *known != name) {
                    wake.steps.push((name, at));
                }
            }
            wake.guest = true;
        });
    }

    /// A client has its answer. Of those who waited for one wake the first is the one that counts, and one that came when
    /// all was done did not wait for it.
    pub fn answered(&self, id: &DatabaseId, steps: &[Step]) {
        let asked = steps.iter().find(|(name, _)| *name == "wake_asked").map(|(_, at)| *at);
        let (Some(asked), Some(first), Some(last)) = (asked, steps.first(), steps.last()) else { return };
        let counts = self.change(id, |wake| {
            let counts = !wake.client && asked <= wake.ready;
            if counts {
                wake.client = true;
                wake.steps.extend(steps.iter().map(|(name, at)| ((*name).to_owned(), *at)));
            }
            (counts, asked <= wake.ready)
        });
        match counts {
            Some((true, _)) => self.answered.observe(Duration::from_micros(last.1.saturating_sub(first.1))),
            Some((false, true)) => {}
            // Of a wake to come, or of none.
            _ => {
                let mut early = self.early();
                early.retain(|(of, _)| of != id);
                if early.len() >= KEPT {
                    early.pop_front();
                }
                early.push_back((id.clone(), steps.to_vec()));
            }
        }
    }

    /// The last wake of a database, if it is among those that are kept.
    pub fn last(&self, id: &DatabaseId) -> Option<Wake> {
        self.change(id, |wake| wake.clone())
    }

    fn change<T>(&self, id: &DatabaseId, change: impl FnOnce(&mut Wake) -> T) -> Option<T> {
        self.lock().iter_mut().rev().find(|(of, _)| of == id).map(|(_, wake)| change(wake))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(letter: char) -> DatabaseId {
        DatabaseId::parse(&format!("db_{}", letter.to_string().repeat(20))).unwrap()
    }

    #[test]
    fn the_parts_of_a_wake_meet_in_the_order_of_time() {
        let wakes = Wakes::default();
        let own = |list: &[(&str, u64)]| list.iter().map(|(name, at)| ((*name).to_owned(), *at)).collect::<Vec<_>>();
        wakes.woken(&id('a'), WakeKind::Resume, (110, 150), own(&[("spawned", 120), ("memory", 140)]));
        // One that asked after it was ready did not wait for it.
        wakes.answered(&id('a'), &[("accepted", 10), ("wake_asked", 151), ("first_byte_back", 170)]);
        assert!(!wakes.last(&id('a')).unwrap().is_complete());
        wakes.answered(&id('a'), &[("accepted", 100), ("wake_asked", 105), ("first_byte_back", 160)]);
        wakes.answered(&id('a'), &[("accepted", 101), ("wake_asked", 106), ("first_byte_back", 180)]);
        wakes.answered(&id('b'), &[("accepted", 1), ("wake_asked", 1), ("first_byte_back", 2)]);
        wakes.served(&id('a'), own(&[("memory", 140), ("answered", 158)]));
        let wake = wakes.last(&id('a')).unwrap();
        assert_eq!(
            wake.steps(),
            [("accepted", 0), ("wake_asked", 5), ("spawned", 20), ("memory", 40), ("answered", 58), ("first_byte_back", 60)]
        );
        assert!(wake.is_complete());
        assert_eq!((wakes.ready[0].count(), wakes.answered.count()), (1, 1));
        assert!(wakes.last(&id('b')).is_none());
    }

    #[test]
    fn an_answer_that_comes_before_its_wake_is_heard_of_is_that_wake_s() {
        let wakes = Wakes::default();
        wakes.woken(&id('a'), WakeKind::Resume, (10, 50), Vec::new());
        // One asked when it was awake, and not one of the next wake.
        wakes.answered(&id('a'), &[("query_received", 60), ("wake_asked", 61), ("first_byte_back", 70)]);
        wakes.woken(&id('a'), WakeKind::Resume, (110, 150), Vec::new());
        assert!(wakes.last(&id('a')).unwrap().steps().is_empty());
        wakes.answered(&id('a'), &[("query_received", 200), ("wake_asked", 201), ("first_byte_back", 240)]);
        wakes.woken(&id('a'), WakeKind::Resume, (203, 250), vec![("memory".into(), 230)]);
        let wake = wakes.last(&id('a')).unwrap();
        assert_eq!(wake.steps(), [("query_received", 0), ("wake_asked", 1), ("memory", 30), ("first_byte_back", 40)]);
        assert_eq!(wakes.answered.count(), 1);
    }

    #[test]
    fn only_the_last_wakes_are_kept() {
        let wakes = Wakes::default();
        wakes.woken(&id('a'), WakeKind::Cold, (0, 1), Vec::new());
        for n in 0..KEPT as u64 {
            wakes.woken(&id('b'), WakeKind::Clone, (n, n), vec![("ready".into(), n)]);
        }
        assert!(wakes.last(&id('a')).is_none());
        assert_eq!(wakes.last(&id('b')).unwrap().ready, KEPT as u64 - 1);
    }
}
