//! Resets of a password change the metadata and the database, which must end with the same one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

use crate::identity::DatabaseId;

/// Resets of passwords, one at a time of each database.
#[derive(Default)]
pub(crate) struct Resets(Mutex<HashMap<DatabaseId, Weak<Turn>>>);

type Turn = tokio::sync::Mutex<()>;

impl Resets {
    pub async fn turn(&self, id: &DatabaseId) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.get(id).and_then(Weak::upgrade).unwrap_or_else(|| {
                turns.retain(|_, turn| turn.strong_count() > 0);
                let turn = Arc::new(Turn::default());
                turns.insert(id.clone(), Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn one_at_a_time_of_each_database_and_none_is_remembered() {
        let resets = Resets::default();
        let id = |letter: &str| DatabaseId::parse(&format!("db_{}", letter.repeat(20))).unwrap();
        let (a, b) = (id("a"), id("b"));
        let first = resets.turn(&a).await;
        let other = resets.turn(&b).await;
        assert!(timeout(Duration::ZERO, resets.turn(&a)).await.is_err());
        drop(first);
        drop((resets.turn(&a).await, other));
        drop(resets.turn(&id("c")).await);
        assert_eq!(resets.0.lock().unwrap().len(), 1);
    }
}
