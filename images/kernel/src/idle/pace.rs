//! How long it pays to look out, by what the last waits took.

/// Counts up to this are kept.
const MOST: u8 = 8;
/// So many more short waits than long ones: it pays.
const ENOUGH: u8 = 3;

/// Times are in ticks of the TSC.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The shortest exit there was; `None` before the first.
    exit: Option<u64>,
    /// Counts a short wait up and a long one down.
    short: u8,
}

impl Pace {
    pub const NEW: Self = Self { exit: None, short: 0 };

    #[must_use]
    pub fn exit_took(self, ticks: u64) -> Self {
        Self { exit: Some(self.exit.map_or(ticks, |exit| exit.min(ticks))), ..self }
    }

    /// A wait is over: one with a halt in it took some two exits longer than it had to.
    #[must_use]
    pub fn waited(self, ticks: u64) -> Self {
        let short = match ticks <= 2 * self.limit() {
            true => (self.short + 1).min(MOST),
            false => self.short.saturating_sub(1),
        };
        Self { short, ..self }
    }

    /// What looking out may cost: as much as it may save, an exit and what the host does for one who sleeps and wakes.
    fn limit(&self) -> u64 {
        self.exit.map_or(0, |exit| exit.saturating_mul(2).min(u64::MAX / 2))
    }

    /// How long to look out before halting; 0 if it has not paid of late.
    pub fn patience(&self) -> u64 {
        if self.short >= ENOUGH { self.limit() } else { 0 }
    }
}
