//! Cancel keys: their secrets are the pooler's own, because the guest's are the same in every clone of one snapshot.

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

/// All sessions, by the process number that their clients were given: the guest's own, which is what `pg_backend_pid`
/// says there. Clients compare the two. Guests number alike, so one number stands for many sessions.
#[derive(Default)]
pub(crate) struct Keys(Mutex<HashMap<i32, Vec<Arc<Session>>>>);

impl Keys {
    fn map(&self) -> MutexGuard<'_, HashMap<i32, Vec<Arc<Session>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a session of this process with a secret that no other of its number has, fit for protocol 3.`minor`.
    pub fn issue(
        &self,
        minor: u16,
        process: i32,
        make: impl FnOnce(Box<[u8]>) -> Arc<Session>,
    ) -> Result<Arc<Session>, NoRandomness> {
        let mut secret = vec![0; if minor >= 2 { LONG } else { SHORT }].into_boxed_slice();
        let mut map = self.map();
        let alike = map.entry(process).or_default();
        loop {
            getrandom::fill(&mut secret).map_err(|_| NoRandomness)?;
            if alike.iter().all(|session| session.key.secret != secret) {
                let session = make(secret);
                alike.push(session.clone());
                return Ok(session);
            }
        }
    }

    /// The session that this key belongs to.
    pub fn find(&self, process: i32, secret: &[u8]) -> Option<Arc<Session>> {
        self.map().get(&process)?.iter().find(|session| bool::from(session.key.secret.ct_eq(secret))).cloned()
    }

    pub fn remove(&self, session: &Session) {
        let mut map = self.map();
        let Some(alike) = map.get_mut(&session.key.process) else { return };
        alike.retain(|other| !std::ptr::eq(&**other, session));
        if alike.is_empty() {
            map.remove(&session.key.process);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::SessionCounts;
    use crate::session::Key;

    fn issue(keys: &Keys, minor: u16) -> Arc<Session> {
        keys.issue(minor, 7, |secret| {
            let key = Key { process: 7, secret, guest_secret: Box::new([1; 4]) };
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
        assert!(keys.find(b.key.process, &b.key.secret[..4]).is_none());
        assert!(keys.find(b.key.process, &[]).is_none());
        assert!(keys.find(8, &a.key.secret).is_none());
        keys.remove(&a);
        assert!(keys.find(a.key.process, &a.key.secret).is_none());
        assert!(Arc::ptr_eq(&keys.find(b.key.process, &b.key.secret).unwrap(), &b));
    }
}
