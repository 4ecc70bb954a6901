//! Limits on guessing: passwords, roles, cancel keys. In memory, bounded, and gone with the server.
//!
//! | what | counted for | when |
//! |---|---|---|
//! | wrong passwords | a database and a client address | the proof is wrong |
//! | logins that ask the guest | a database, all addresses together that it does not know | it is asked; given back when the password is proven |
//! | those of them that find it asleep | the same; three in ten minutes | the same |
//! | sessions begun before the proof | a database, a client address and what is asked for | one for each proof, within an hour of it |
//! | wrong cancel keys | a client address | nobody has that key |
//!
//! Each else may be so many in a minute, at once or one by one. An address is known to a database for an hour after a
//! password was proven from there: a crowd of strangers cannot keep those who belong there out.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::host::DatabaseId;

const MINUTE: Duration = Duration::from_secs(60);
/// Wakes for strangers, and in which time.
const WAKES: u32 = 3;
const WAKES_PERIOD: Duration = Duration::from_secs(600);
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
    wakes: Limit<DatabaseId>,
    keys: Limit<Origin>,
    known: Fading<(DatabaseId, Origin)>,
    /// Proofs for which no session has been begun ahead yet; of what was asked for, its hash.
    proofs: Fading<(DatabaseId, u64, Origin)>,
    hasher: RandomState,
}

impl Guesses {
    /// Of each kind so many in a minute; 0 for no limit.
    pub fn new(passwords: u32, cancels: u32) -> Guesses {
        Guesses {
            passwords: Limit::new(passwords, MINUTE),
            strangers: Limit::new(passwords, MINUTE),
            wakes: Limit::new(if passwords == 0 { 0 } else { WAKES }, WAKES_PERIOD),
            keys: Limit::new(cancels, MINUTE),
            known: Fading::default(),
            proofs: Fading::default(),
            hasher: RandomState::new(),
        }
    }

    /// Whether this address may still give passwords for this database.
    pub fn may_try(&self, database: DatabaseId, peer: SocketAddr) -> bool {
        self.passwords.allows(&(database, peer.into()))
    }

    pub fn wrong_password(&self, database: DatabaseId, peer: SocketAddr) {
        self.passwords.charge((database, peer.into()));
    }

    /// A password was proven from this address, for who asked for `what`.
    pub fn proven(&self, database: DatabaseId, what: impl Hash, peer: SocketAddr) {
        let until = Instant::now() + KNOWN;
        self.known.put((database, peer.into()), until);
        self.proofs.put((database, self.hasher.hash_one(what), peer.into()), until);
    }

    /// Whether a session may be begun for who asks for `what` before the proof of its password. A proof from this address, for the very
    /// same, is taken for it: who gives no other one has no more begun.
    pub fn may_begin(&self, database: DatabaseId, what: impl Hash, peer: SocketAddr) -> bool {
        self.proofs.take(&(database, self.hasher.hash_one(what), peer.into()))
    }

    /// Whether the guest may be asked for a role that this address names. It counts from now on, however many come at
    /// one time, until the password is proven. `wakes`: it is asleep.
    pub fn may_ask(&self, database: DatabaseId, peer: SocketAddr, wakes: bool) -> Option<Question<'_>> {
        let is_stranger = self.known.until(&(database, peer.into())).is_none();
        let wakes = wakes && is_stranger;
        if wakes && !self.wakes.take(database) {
            return None;
        }
        if is_stranger && !self.strangers.take(database) {
            if wakes {
                self.wakes.give_back(&database);
            }
            return None;
        }
        Some(Question { guesses: self, database, is_stranger, wakes })
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
    /// It comes from an address that the database does not know.
    pub is_stranger: bool,
    /// It counts as a wake for a stranger.
    wakes: bool,
}

impl Question<'_> {
    /// The password was proven: it was no guess.
    pub fn proven(self) {
        if self.is_stranger {
            self.guesses.strangers.give_back(&self.database);
        }
        if self.wakes {
            self.guesses.wakes.give_back(&self.database);
        }
    }
}

/// So many in a period of each key: each takes its share of it, and what is taken may be a period ahead of the clock.
struct Limit<K> {
    /// `None`: no limit.
    share: Option<Duration>,
    period: Duration,
    taken: Fading<K>,
}

impl<K: Hash + Eq + Copy> Limit<K> {
    /// 0 for no limit.
    fn new(most: u32, period: Duration) -> Limit<K> {
        Limit { share: period.checked_div(most), period, taken: Fading::default() }
    }

    fn allows(&self, key: &K) -> bool {
        self.allows_at(key, Instant::now())
    }

    fn allows_at(&self, key: &K, now: Instant) -> bool {
        let Some(share) = self.share else { return true };
        self.taken.until(key).is_none_or(|until| until.saturating_duration_since(now) + share <= self.period)
    }

    /// Charges it if it is allowed, in one step.
    fn take(&self, key: K) -> bool {
        let Some(share) = self.share else { return true };
        let now = Instant::now();
        self.taken.change(key, |until| {
            let taken = until.map_or(now, |until| until.max(now)) + share;
            (taken <= now + self.period).then_some(taken)
        })
    }

    fn give_back(&self, key: &K) {
        let Some(share) = self.share else { return };
        self.taken.change(*key, |until| until?.checked_sub(share));
    }

    fn charge(&self, key: K) {
        let Some(share) = self.share else { return };
        let now = Instant::now();
        // Of many at one time no more than a period's worth is held against whoever it was.
        let most = now + self.period;
        self.taken.change(key, |until| Some((until.map_or(now, |until| until.max(now)) + share).min(most)));
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
        self.change(key, |_| Some(until));
    }

    /// Takes it out; says whether it still meant something.
    fn take(&self, key: &K) -> bool {
        self.map().remove(key).is_some_and(|until| until > Instant::now())
    }

    /// Gives a key another time, by the one that it has; says whether it did.
    fn change(&self, key: K, change: impl FnOnce(Option<Instant>) -> Option<Instant>) -> bool {
        let mut map = self.map();
        let Some(until) = change(map.get(&key).copied()) else { return false };
        if map.len() >= MAX_KEYS && !map.contains_key(&key) {
            let now = Instant::now();
            map.retain(|_, until| *until > now);
            if map.len() >= MAX_KEYS {
                // A quarter at a time, so that not each newcomer has all of them looked at.
                let mut times: Vec<Instant> = map.values().copied().collect();
                let (_, last, _) = times.select_nth_unstable(MAX_KEYS / 4 - 1);
                map.retain(|_, until| *until > *last);
            }
        }
        map.insert(key, until);
        true
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
        guesses.proven(id("a"), "app", peer("192.0.2.1"));
        let stranger = |n: u8| peer(&format!("192.0.2.{n}"));
        (0..9).for_each(|_| guesses.may_ask(id("a"), stranger(2), false).unwrap().proven());
        // However many are under way, and whether or not they have failed yet.
        let first = guesses.may_ask(id("a"), stranger(2), false).unwrap();
        let _second = guesses.may_ask(id("a"), stranger(3), false).unwrap();
        assert!(guesses.may_ask(id("a"), stranger(4), false).is_none());
        first.proven();
        let _third = guesses.may_ask(id("a"), stranger(4), false).unwrap();
        assert!(guesses.may_ask(id("a"), stranger(5), false).is_none());
        assert!(guesses.may_ask(id("b"), stranger(5), false).is_some_and(|question| question.is_stranger));
        for _ in 0..9 {
            assert!(guesses.may_ask(id("a"), peer("192.0.2.1"), false).is_some_and(|question| !question.is_stranger));
        }
    }

    #[test]
    fn strangers_wake_a_database_less_often_than_they_ask_it() {
        let guesses = Guesses::new(5, 0);
        let here = peer("192.0.2.1");
        (0..9).for_each(|_| guesses.may_ask(id("a"), here, true).unwrap().proven());
        for _ in 0..WAKES {
            assert!(guesses.may_ask(id("a"), here, true).is_some());
        }
        assert!(guesses.may_ask(id("a"), here, true).is_none());
        // Awake, it is asked as often as else, and asleep no more for that.
        assert!((0..2).all(|_| guesses.may_ask(id("a"), here, false).is_some()));
        assert!(guesses.may_ask(id("a"), here, false).is_none());
        let soon = Instant::now() + MINUTE;
        assert!(guesses.strangers.allows_at(&id("a"), soon) && !guesses.wakes.allows_at(&id("a"), soon));
        guesses.proven(id("a"), "app", here);
        (0..9).for_each(|_| assert!(guesses.may_ask(id("a"), here, true).is_some()));
        let unlimited = Guesses::new(0, 0);
        (0..9).for_each(|_| assert!(unlimited.may_ask(id("a"), here, true).is_some()));
    }

    #[test]
    fn one_session_is_begun_ahead_for_each_proof_of_the_same_from_the_same_address() {
        let guesses = Guesses::new(0, 0);
        let (here, there) = (peer("192.0.2.1"), peer("192.0.2.2"));
        assert!(!guesses.may_begin(id("a"), "app", here));
        (0..2).for_each(|_| guesses.proven(id("a"), "app", here));
        assert!(!guesses.may_begin(id("b"), "app", here));
        assert!(!guesses.may_begin(id("a"), "other", here));
        assert!(!guesses.may_begin(id("a"), "app", there));
        assert!(guesses.may_begin(id("a"), "app", here));
        assert!(!guesses.may_begin(id("a"), "app", here));
        guesses.proofs.put((id("a"), guesses.hasher.hash_one("app"), here.into()), Instant::now());
        assert!(!guesses.may_begin(id("a"), "app", here));
    }

    #[test]
    fn questions_at_one_time_take_no_more_than_there_are() {
        let guesses = Guesses::new(20, 0);
        let asked = std::thread::scope(|scope| {
            let askers: Vec<_> = (0..4u8)
                .map(|n| {
                    let guesses = &guesses;
                    scope.spawn(move || {
                        let peer = peer(&format!("192.0.2.{n}"));
                        (0..50).filter(|_| guesses.may_ask(id("a"), peer, false).is_some()).count()
                    })
                })
                .collect();
            askers.into_iter().map(|asker| asker.join().unwrap()).sum::<usize>()
        });
        assert_eq!(asked, 20);
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
            assert!(fading.map().len() <= MAX_KEYS);
        }
        // Those that end first have made room.
        let gone = MAX_KEYS / 4;
        assert_eq!(fading.map().len(), MAX_KEYS + 5 - gone);
        assert!(fading.until(&(gone - 1)).is_none() && fading.until(&gone).is_some());
    }
}
