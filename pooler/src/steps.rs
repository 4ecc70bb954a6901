//! The steps of a wake on this side, which the host puts together with its own.

use rustix::time::{ClockId, clock_gettime};

/// A step and when it was done: µs on the host's monotonic clock, which all its processes have in common.
pub type Step = (&'static str, u64);

/// That clock now, µs.
pub fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Never negative.
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

/// The steps so far of one client's wake; of a client that waits for none, nothing is kept.
#[derive(Debug, Default)]
#[allow(clippy::box_collection, reason = "a held session pays for one pointer")]
pub(crate) struct Steps(Option<Box<Vec<Step>>>);

impl Steps {
    pub fn begin(name: &'static str) -> Steps {
        Steps(Some(Box::new(vec![(name, monotonic_us())])))
    }

    /// Notes that it is done, the first time it is.
    pub fn note(&mut self, name: &'static str) {
        self.note_at(name, monotonic_us());
    }

    /// Notes that it was done then, the first time it was.
    pub fn note_at(&mut self, name: &'static str, at: u64) {
        if let Some(steps) = &mut self.0
            && steps.iter().all(|(noted, _)| *noted != name)
        {
            steps.push((name, at));
        }
    }

    /// None so far, of what goes on beside others'.
    pub fn empty() -> Steps {
        Steps(Some(Box::default()))
    }

    /// Takes in what went on beside these.
    pub fn join(&mut self, other: Steps) {
        if let (Some(steps), Some(other)) = (&mut self.0, other.0) {
            steps.extend(*other);
        }
    }

    /// Whether the guest has been heard.
    pub fn has(&self, name: &str) -> bool {
        self.0.as_ref().is_some_and(|steps| steps.iter().any(|(noted, _)| *noted == name))
    }

    /// All of them; from now on none are kept.
    pub fn take(&mut self) -> Option<Vec<Step>> {
        self.0.take().map(|steps| *steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_noted_once_and_only_while_they_are_kept() {
        let mut steps = Steps::default();
        steps.note("a");
        assert_eq!(steps.take(), None);
        let mut steps = Steps::begin("a");
        steps.note("b");
        let first = steps.0.as_ref().unwrap()[1];
        steps.note("b");
        assert!(steps.has("b") && !steps.has("c"));
        let taken = steps.take().unwrap();
        assert_eq!((taken.len(), taken[1]), (2, first));
        assert!(taken[0].1 <= taken[1].1);
        assert_eq!(steps.take(), None);
    }

    #[test]
    fn what_went_on_beside_comes_along_if_they_are_kept() {
        let beside = || {
            let mut beside = Steps::empty();
            beside.note("b");
            beside
        };
        let mut steps = Steps::begin("a");
        steps.join(beside());
        steps.note("c");
        let names: Vec<_> = steps.take().unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a", "b", "c"]);
        let mut none = Steps::default();
        none.join(beside());
        assert_eq!(none.take(), None);
    }
}
