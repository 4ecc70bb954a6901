//! Cancel keys: the pooler's own, because the guest's are the same in every clone of one snapshot.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use subtle::ConstantTimeEq;

use crate::session::Session;

/// Bytes of a secret for protocol 3.0, where it is a number, and for 3.2.
const SHORT: usize = 4;
const LONG: usize = 32;

/// The system has no random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system has no random bytes")]
pub(crate) struct NoRandomness;

/// All sessions, by the process number that their clients were given. Numbers are random, so that in protocol 3.0,
/// too, 63 bits have to be guessed.
#[derive(Default)]
pub(crate) struct Keys(Mutex<HashMap<i32, Arc<Session>>>);

impl Keys {
    fn map(&self) -> MutexGuard<'_, HashMap<i32, Arc<Session>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a session with a process number that no other has, and a secret fit for protocol 3.`minor`.
    pub fn issue(
        &self,
        minor: u16,
        make: impl FnOnce(i32, Box<[u8]>) -> Arc<Session>,
    ) -> Result<Arc<Session>, NoRandomness> {
        let mut secret = vec![0; if minor >= 2 { LONG } else { SHORT }].into_boxed_slice();
        getrandom::fill(&mut secret).map_err(|_| NoRandomness)?;
        let mut map = self.map();
        loop {
            let mut process = [0; 4];
            getrandom::fill(&mut process).map_err(|_| NoRandomness)?;
            // Positive: some clients take a negative one for none.
            let process = i32::from_be_bytes(process) & i32::MAX;
            if process != 0 && !map.contains_key(&process) {
                let session = make(process, secret);
                map.insert(process, session.clone());
                return Ok(session);
            }
        }
    }

    /// The session that this key belongs to.
    pub fn find(&self, process: i32, secret: &[u8]) -> Option<Arc<Session>> {
        let session = self.map().get(&process)?.clone();
        bool::from(session.key.secret.ct_eq(secret)).then_some(session)
    }

    pub fn remove(&self, session: &Session) {
        self.map().remove(&session.key.process);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::SessionCounts;
    use crate::session::Key;

    fn issue(keys: &Keys, minor: u16) -> Arc<Session> {
        keys.issue(minor, |process, secret| {
            let key = Key { process, secret, guest_process: 1, guest_secret: Box::new([1; 4]) };
            let counts = SessionCounts { session: 1, sent: 0, received: 0 };
            Session::new("db_00000000000000000000".parse().unwrap(), "e".into(), counts, key)
        })
        .unwrap()
    }

    #[test]
    fn found_by_both_parts_only() {
        let keys = Keys::default();
        let (a, b) = (issue(&keys, 0), issue(&keys, 2));
        assert_eq!((a.key.secret.len(), b.key.secret.len()), (4, 32));
        assert!(Arc::ptr_eq(&keys.find(a.key.process, &a.key.secret).unwrap(), &a));
        assert!(Arc::ptr_eq(&keys.find(b.key.process, &b.key.secret).unwrap(), &b));
        assert!(keys.find(a.key.process, &b.key.secret).is_none());
        assert!(keys.find(b.key.process, &b.key.secret[..4]).is_none());
        assert!(keys.find(b.key.process, &[]).is_none());
        keys.remove(&a);
        assert!(keys.find(a.key.process, &a.key.secret).is_none());
    }
}
