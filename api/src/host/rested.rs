//! What actors knew of databases that have come to rest: a wake soon after need not read the row again, which takes as long
//! as a tenth of the wake.
//!
//! What is kept holds until a row is changed by anyone but its actor (`Metadata::changes`): a change of any row ends it for
//! all. A row is read after that number, so what was kept is never older than it says.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Facts, State};
use crate::identity::DatabaseId;

/// Databases of which something is kept, at most; some 400 bytes each.
const MOST: usize = 4096;

/// What an actor knew in the end.
pub(crate) struct Known {
    pub facts: Facts,
    pub state: State,
    pub message: Option<String>,
}

#[derive(Default)]
struct Kept {
    young: HashMap<DatabaseId, Known>,
    old: HashMap<DatabaseId, Known>,
}

#[derive(Default)]
pub(crate) struct Rested(Mutex<Kept>);

impl Rested {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Only of one that rests: what is to be deleted is left to its row.
    pub fn keep(&self, known: Known) {
        if !matches!(known.state, State::Suspended | State::Stopped | State::Error) {
            return;
        }
        let mut kept = self.lock();
        if kept.young.len() >= MOST / 2 {
            kept.old = std::mem::take(&mut kept.young);
        }
        kept.young.insert(known.facts.id.clone(), known);
    }

    /// What is known of a database, if it still holds; it is kept no longer. `changes` is the number now.
    pub fn take(&self, id: &DatabaseId, changes: u64) -> Option<Known> {
        let mut kept = self.lock();
        // Both: an older word must not come up later.
        let (young, old) = (kept.young.remove(id), kept.old.remove(id));
        young.or(old).filter(|known| known.facts.changes == changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::TenantId;

    fn known(id: &DatabaseId, changes: u64, cool_down_ms: u64) -> Known {
        let facts = Facts {
            id: id.clone(),
            tenant: TenantId::default_tenant(),
            tenant_name: "t".into(),
            name: "d".into(),
            pg_version: 17,
            image: "i".into(),
            memory_mib: 512,
            storage_mib: 1024,
            cool_down_ms,
            has_files: true,
            written: true,
            changes,
        };
        Known { facts, state: State::Suspended, message: None }
    }

    #[test]
    fn what_is_kept_is_had_once_and_only_while_it_holds() {
        let (rested, ids) = (Rested::default(), [(); MOST].map(|()| DatabaseId::random().unwrap()));
        rested.keep(known(&ids[0], 7, 1));
        assert!(rested.take(&ids[0], 8).is_none(), "a row has changed");
        assert!(rested.take(&ids[0], 7).is_none(), "and it is gone");
        rested.keep(known(&ids[0], 7, 1));
        rested.keep(known(&ids[0], 7, 2));
        assert_eq!(rested.take(&ids[0], 7).unwrap().facts.cool_down_ms, 2);
        assert!(rested.take(&ids[0], 7).is_none());
        rested.keep(Known { state: State::Deleting, ..known(&ids[0], 7, 1) });
        assert!(rested.take(&ids[0], 7).is_none(), "its delete failed, and is to be asked again");
        // The oldest go.
        ids.iter().chain(&ids[..1]).for_each(|id| rested.keep(known(id, 7, 3)));
        let kept = rested.lock();
        assert!(kept.young.len() + kept.old.len() <= MOST);
        drop(kept);
        assert!(rested.take(&ids[MOST - 1], 7).is_some());
        assert!(rested.take(&ids[1], 7).is_none());
    }
}
