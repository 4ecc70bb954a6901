//! Whose turn it is to start a VM: so many at once, and tenants one after the other.
//!
//! When many databases are spoken to at the same moment, starting all of them together would make each slow and take all
//! of the host's memory. So no more start at once than set, none while the host has less memory left than is kept free,
//! and the next turn goes to the tenant who has waited longest since its last: a thousand databases of one tenant don't
//! keep another's waiting, and no tenant has more than three quarters of the turns, which databases that hang may hold for
//! long. A tenant's own start in the order in which they asked.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::identity::TenantId;

/// How often memory is looked at while turns wait for it: a database that falls asleep gives its back after it has said so.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Gives turns. Cheap to clone.
#[derive(Clone)]
pub struct Turns {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Memory (bytes) that is kept free.
    reserve: u64,
    /// Memory (bytes) that the host could still give; `None` where it cannot be told.
    available: fn() -> Option<u64>,
}

struct Queue {
    free: usize,
    /// Turns that one tenant may have.
    most_each: usize,
    held: HashMap<TenantId, usize>,
    /// Tenants with somebody waiting, in the order of their turns.
    tenants: VecDeque<TenantId>,
    waiting: HashMap<TenantId, VecDeque<oneshot::Sender<Turn>>>,
    /// Somebody looks at the memory again later.
    looked_after: bool,
    /// When there was last seen to be enough.
    enough_at: Option<Instant>,
}

/// The right to be starting a VM; over when it is dropped.
pub struct Turn {
    /// Until it is over.
    of: Option<(Turns, TenantId)>,
}

impl Turns {
    /// `at_once` turns; none is given while the host has less than `reserve` bytes available.
    pub fn new(at_once: usize, reserve: u64) -> Turns {
        Turns::with(at_once, reserve, available)
    }

    fn with(at_once: usize, reserve: u64, available: fn() -> Option<u64>) -> Turns {
        let queue = Queue {
            free: at_once,
            most_each: at_once - at_once / 4,
            held: HashMap::new(),
            tenants: VecDeque::new(),
            waiting: HashMap::new(),
            looked_after: false,
            enough_at: None,
        };
        Turns { shared: Arc::new(Shared { queue: Mutex::new(queue), reserve, available }) }
    }

    /// A turn for a database of `tenant`. May be dropped while it waits.
    pub async fn take(&self, tenant: &TenantId) -> Turn {
        let answer = {
            let mut queue = self.lock();
            let (sender, answer) = oneshot::channel();
            if !queue.waiting.contains_key(tenant) {
                queue.tenants.push_back(tenant.clone());
            }
            let waiting = queue.waiting.entry(tenant.clone()).or_default();
            // Those who have left would only pile up while there are no turns.
            while waiting.front().is_some_and(|first| first.is_closed()) {
                waiting.pop_front();
            }
            waiting.push_back(sender);
            answer
        };
        self.give();
        match answer.await {
            Ok(turn) => turn,
            // The queue is gone only with `self`.
            Err(_) => unreachable!("a turn that waits was thrown away"),
        }
    }

    /// Whether turns wait for memory, not for others' to end.
    pub fn lacks_memory(&self) -> bool {
        self.lock().looked_after
    }

    /// Whether the host has as much memory as is kept free.
    pub fn memory_is_enough(&self) -> bool {
        self.has_memory(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the turns that can be given.
    fn give(&self) {
        loop {
            let mut queue = self.lock();
            if queue.free == 0 || queue.tenants.is_empty() {
                return;
            }
            if !self.has_memory(&mut queue) {
                if !std::mem::replace(&mut queue.looked_after, true) {
                    tokio::spawn(self.clone().look_again());
                }
                return;
            }
            let Some((tenant, next)) = queue.next() else { return };
            queue.free -= 1;
            *queue.held.entry(tenant.clone()).or_default() += 1;
            drop(queue);
            if let Err(mut unwanted) = next.send(Turn { of: Some((self.clone(), tenant)) })
                && let Some((_, tenant)) = unwanted.of.take()
            {
                // Whoever waited has left just now. Not by dropping it, which would come back here.
                self.lock().take_back(&tenant);
            }
        }
    }

    /// A turn means a guest's memory: what was enough for one is looked at again for the next, but in the same millisecond.
    fn has_memory(&self, queue: &mut Queue) -> bool {
        const FRESH: Duration = Duration::from_millis(1);
        if self.shared.reserve == 0 || queue.enough_at.is_some_and(|at| at.elapsed() < FRESH) {
            return true;
        }
        let enough = (self.shared.available)().is_none_or(|bytes| bytes >= self.shared.reserve);
        queue.enough_at = enough.then(Instant::now);
        enough
    }

    async fn look_again(self) {
        tokio::time::sleep(LOOK_AGAIN).await;
        self.lock().looked_after = false;
        self.give();
    }
}

impl Queue {
    /// Who is next, with that tenant's next turn put behind the others'. Nobody, if all who wait have what they may have.
    fn next(&mut self) -> Option<(TenantId, oneshot::Sender<Turn>)> {
        loop {
            let may_have = |tenant: &TenantId| self.held.get(tenant).is_none_or(|held| *held < self.most_each);
            let at = self.tenants.iter().position(may_have)?;
            let tenant = self.tenants.remove(at)?;
            let waiting = self.waiting.get_mut(&tenant)?;
            let next = waiting.pop_front();
            if waiting.is_empty() {
                self.waiting.remove(&tenant);
            } else {
                self.tenants.push_back(tenant.clone());
            }
            // Who has left is passed over.
            if let Some(next) = next.filter(|next| !next.is_closed()) {
                return Some((tenant, next));
            }
        }
    }

    fn take_back(&mut self, tenant: &TenantId) {
        self.free += 1;
        if let Some(held) = self.held.get_mut(tenant) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(tenant);
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some((turns, tenant)) = self.of.take() {
            turns.lock().take_back(&tenant);
            turns.give();
        }
    }
}

/// MemAvailable of the host.
fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn tenant() -> TenantId {
        TenantId::random().unwrap()
    }

    fn plenty() -> Option<u64> {
        Some(u64::MAX)
    }

    /// Begins to wait, so that the order of the calls is the order of the queue.
    async fn ask(turns: &Turns, who: &TenantId, done: &Arc<Mutex<Vec<String>>>) -> tokio::task::JoinHandle<()> {
        let before = turns.lock().waiting.values().map(VecDeque::len).sum::<usize>();
        let (turns, who, done) = (turns.clone(), who.clone(), done.clone());
        let asked = tokio::spawn({
            let turns = turns.clone();
            async move {
                let turn = turns.take(&who).await;
                done.lock().unwrap().push(who.to_string());
                drop(turn);
            }
        });
        while turns.lock().waiting.values().map(VecDeque::len).sum::<usize>() == before {
            tokio::task::yield_now().await;
        }
        asked
    }

    #[tokio::test]
    async fn a_tenant_with_many_does_not_keep_another_waiting() {
        let turns = Turns::with(1, 0, plenty);
        let (many, few) = (tenant(), tenant());
        let first = turns.take(&many).await;
        let done = Arc::new(Mutex::new(Vec::new()));
        let mut asked = Vec::new();
        for _ in 0..5 {
            asked.push(ask(&turns, &many, &done).await);
        }
        for _ in 0..2 {
            asked.push(ask(&turns, &few, &done).await);
        }
        drop(first);
        for task in asked {
            task.await.unwrap();
        }
        let order: Vec<_> = done.lock().unwrap().iter().map(|who| who == few.as_str()).collect();
        assert_eq!(order, [false, true, false, true, false, false, false]);
        assert!(turns.lock().waiting.is_empty() && turns.lock().tenants.is_empty());
        assert_eq!(turns.lock().free, 1);
    }

    #[tokio::test]
    async fn one_tenant_does_not_hold_all_turns() {
        let turns = Turns::with(4, 0, plenty);
        let (many, few) = (tenant(), tenant());
        let held = [turns.take(&many).await, turns.take(&many).await, turns.take(&many).await];
        let mut fourth = Box::pin(turns.take(&many));
        assert!(waits(&mut fourth).await);
        drop(tokio::time::timeout(Duration::from_secs(5), turns.take(&few)).await.unwrap());
        drop(held);
        drop(tokio::time::timeout(Duration::from_secs(5), fourth).await.unwrap());
        assert!(turns.lock().held.is_empty() && turns.lock().free == 4);
    }

    #[tokio::test]
    async fn no_more_than_set_at_once_and_none_is_lost() {
        let turns = Turns::with(2, 0, plenty);
        let who = tenant();
        let (a, b) = (turns.take(&who).await, turns.take(&who).await);
        // One that gives up while it waits, and one that gives up with its turn already given.
        assert!(waits(turns.take(&who)).await);
        let mut late = Box::pin(turns.take(&who));
        assert!(waits(&mut late).await);
        drop(a);
        drop(late);
        assert_eq!(turns.lock().free, 1);
        let third = tokio::time::timeout(Duration::from_secs(5), turns.take(&who)).await;
        drop((b, third.unwrap()));
        assert_eq!(turns.lock().free, 2);
    }

    /// Whether it still waits when it has been polled.
    async fn waits(take: impl Future<Output = Turn>) -> bool {
        tokio::time::timeout(Duration::ZERO, take).await.is_err()
    }

    #[tokio::test]
    async fn none_starts_while_memory_is_short() {
        static LEFT: AtomicU64 = AtomicU64::new(99);
        let turns = Turns::with(8, 100, || Some(LEFT.load(Ordering::Relaxed)));
        let who = tenant();
        assert!(tokio::time::timeout(2 * LOOK_AGAIN, turns.take(&who)).await.is_err());
        assert!(turns.lacks_memory());
        let waiting = tokio::spawn({
            let (turns, who) = (turns.clone(), who.clone());
            async move { turns.take(&who).await }
        });
        tokio::task::yield_now().await;
        LEFT.store(100, Ordering::Relaxed);
        drop(waiting.await.unwrap());
        assert!(!turns.lacks_memory());
    }

    #[test]
    fn the_host_tells_its_memory() {
        assert!(available().unwrap() > 1 << 20);
    }
}
