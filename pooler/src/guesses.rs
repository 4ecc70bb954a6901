//! Limits on guessing: passwords, roles, cancel keys. In memory, bounded, and gone with the server.
//!
//! | what | counted for | when |
//! |---|---|---|
//! | wrong passwords | a database and a client address | the proof is wrong |
//! | logins that ask the guest | a database, all addresses together that it does not know | no proof came of it |
//! | wrong cancel keys | a client address | nobody has that key |
//!
//! Each may be so many in a minute, at once or one by one. An address is known to a database for an hour after a
//! password was proven from there: a crowd of strangers cannot keep those who belong there out.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::host::DatabaseId;

const MINUTE: Duration = Duration::from_secs(60);
/// How long an address is known to a database.
const KNOWN: Duration = Duration::from_secs(3600);
/// Keys of one kind that are kept.
const MAX_KEYS: usize = 10_000;

/// An address, of IPv6 the network that its owner was given whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Origin(IpAddr);

impl From<SocketAddr> for Origin {
    fn from(peer: SocketAddr) -> Origin {
        Origin(match peer.ip().to_canonical() {
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
            v4 => v4,
        })
    }
}

pub(crate) struct Guesses {
    passwords: Limit<(DatabaseId, Origin)>,
    strangers: Limit<DatabaseId>,
    keys: Limit<Origin>,
    known: Fading<(DatabaseId, Origin)>,
}

impl Guesses {
    /// Of each kind so many in a minute; 0 for no limit.
    pub fn new(passwords: u32, cancels: u32) -> Guesses {
        Guesses {
            passwords: Limit::new(passwords),
            strangers: Limit::new(passwords),
            keys: Limit::new(cancels),
            known: Fading::default(),
        }
    }

    /// Whether this address may still give passwords for this database.
    pub fn may_try(&self, database: DatabaseId, peer: SocketAddr) -> bool {
        self.passwords.allows(&(database, peer.into()))
    }

    pub fn wrong_password(&self, database: DatabaseId, peer: SocketAddr) {
        self.passwords.charge((database, peer.into()));
    }

    /// A password was proven from this address.
    pub fn proven(&self, database: DatabaseId, peer: SocketAddr) {
        self.known.put((database, peer.into()), Instant::now() + KNOWN);
    }

    /// Whether the guest may be asked for a role that this address names. What is given counts as a guess when it is
    /// dropped, unless it was told that the password was proven.
    pub fn may_ask(&self, database: DatabaseId, peer: SocketAddr) -> Option<Question<'_>> {
        let is_known = self.known.until(&(database, peer.into())).is_some();
        (is_known || self.strangers.allows(&database)).then_some(Question {
            guesses: self,
            database,
            free: is_known,
        })
    }

    pub fn may_cancel(&self, peer: SocketAddr) -> bool {
        self.keys.allows(&peer.into())
    }

    pub fn wrong_key(&self, peer: SocketAddr) {
        self.keys.charge(peer.into());
    }
}

/// A login for which the guest is asked.
pub(crate) struct Question<'a> {
    guesses: &'a Guesses,
    database: DatabaseId,
    free: bool,
}

impl Question<'_> {
    pub fn proven(mut self) {
        self.free = true;
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        if !self.free {
            self.guesses.strangers.charge(self.database);
        }
    }
}

/// So many a minute of each key: each takes its share of a minute, and what is taken may be a minute ahead of the clock.
struct Limit<K> {
    /// `None`: no limit.
    share: Option<Duration>,
    taken: Fading<K>,
}

impl<K: Hash + Eq + Copy> Limit<K> {
    fn new(per_minute: u32) -> Limit<K> {
        Limit { share: MINUTE.checked_div(per_minute), taken: Fading::default() }
    }

    fn allows(&self, key: &K) -> bool {
        self.allows_at(key, Instant::now())
    }

    fn allows_at(&self, key: &K, now: Instant) -> bool {
        let Some(share) = self.share else { return true };
        self.taken.until(key).is_none_or(|until| until.saturating_duration_since(now) + share <= MINUTE)
    }

    fn charge(&self, key: K) {
        let Some(share) = self.share else { return };
        let now = Instant::now();
        let from = self.taken.until(&key).map_or(now, |until| until.max(now));
        // Of many at one time no more than a minute's worth is held against whoever it was.
        self.taken.put(key, (from + share).min(now + MINUTE));
    }
}

/// Keys with a time after which they mean nothing.
struct Fading<K>(Mutex<HashMap<K, Instant>>);

impl<K> Default for Fading<K> {
    fn default() -> Fading<K> {
        Fading(Mutex::default())
    }
}

impl<K: Hash + Eq + Copy> Fading<K> {
    fn map(&self) -> MutexGuard<'_, HashMap<K, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn until(&self, key: &K) -> Option<Instant> {
        self.map().get(key).copied().filter(|until| *until > Instant::now())
    }

    fn put(&self, key: K, until: Instant) {
        let mut map = self.map();
        if map.len() >= MAX_KEYS && !map.contains_key(&key) {
            let now = Instant::now();
            map.retain(|_, until| *until > now);
            if map.len() >= MAX_KEYS
                && let Some(first) = map.iter().min_by_key(|(_, until)| **until).map(|(key, _)| *key)
            {
                map.remove(&first);
            }
        }
        map.insert(key, until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(ip: &str) -> SocketAddr {
        SocketAddr::new(ip.parse().unwrap(), 1)
    }

    fn id(letter: &str) -> DatabaseId {
        format!("db_{}", letter.repeat(20)).parse().unwrap()
    }

    #[test]
    fn so_many_wrong_passwords_by_database_and_address() {
        let guesses = Guesses::new(3, 0);
        let (here, there) = (peer("192.0.2.1"), peer("192.0.2.2"));
        for _ in 0..3 {
            assert!(guesses.may_try(id("a"), here));
            guesses.wrong_password(id("a"), here);
        }
        assert!(!guesses.may_try(id("a"), here));
        assert!(guesses.may_try(id("a"), there));
        assert!(guesses.may_try(id("b"), here));
        let (key, now) = ((id("a"), Origin::from(here)), Instant::now());
        assert!(!guesses.passwords.allows_at(&key, now + Duration::from_secs(19)));
        assert!(guesses.passwords.allows_at(&key, now + Duration::from_secs(21)));
        // However many more were under way, a minute is enough.
        (0..100).for_each(|_| guesses.wrong_password(id("a"), here));
        assert!(guesses.passwords.allows_at(&key, Instant::now() + MINUTE));
        assert!(guesses.may_cancel(here));
    }

    #[test]
    fn a_network_is_one_address_and_a_mapped_address_is_itself() {
        assert_eq!(Origin::from(peer("2001:db8::1")), Origin::from(peer("2001:db8::ffff:2")));
        assert_ne!(Origin::from(peer("2001:db8::1")), Origin::from(peer("2001:db8:0:1::1")));
        assert_eq!(Origin::from(peer("::ffff:192.0.2.1")), Origin::from(peer("192.0.2.1")));
        assert_ne!(Origin::from(peer("192.0.2.1")), Origin::from(peer("192.0.2.2")));
    }

    #[test]
    fn strangers_share_a_limit_and_those_who_are_known_have_none() {
        let guesses = Guesses::new(2, 0);
        guesses.proven(id("a"), peer("192.0.2.1"));
        (0..9).for_each(|_| guesses.may_ask(id("a"), peer("192.0.2.2")).unwrap().proven());
        drop(guesses.may_ask(id("a"), peer("192.0.2.2")).unwrap());
        drop(guesses.may_ask(id("a"), peer("192.0.2.3")).unwrap());
        assert!(guesses.may_ask(id("a"), peer("192.0.2.4")).is_none());
        assert!(guesses.may_ask(id("b"), peer("192.0.2.4")).is_some());
        for _ in 0..9 {
            drop(guesses.may_ask(id("a"), peer("192.0.2.1")).unwrap());
        }
    }

    #[test]
    fn wrong_keys_by_address() {
        let guesses = Guesses::new(0, 2);
        let here = peer("192.0.2.1");
        (0..9).for_each(|_| guesses.wrong_password(id("a"), here));
        assert!(guesses.may_try(id("a"), here));
        (0..2).for_each(|_| guesses.wrong_key(here));
        assert!(!guesses.may_cancel(here));
        assert!(guesses.may_cancel(peer("192.0.2.2")));
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let fading = Fading::default();
        let now = Instant::now();
        for n in 0..MAX_KEYS + 5 {
            fading.put(n, now + KNOWN + Duration::from_millis(n as u64));
        }
        assert_eq!(fading.map().len(), MAX_KEYS);
        assert!(fading.until(&4).is_none() && fading.until(&5).is_some());
    }
}
