//! Nothing can run: whether to look out for a while before halting.
//!
//! An exit to the VMM costs some 2 µs with hardware support and ten times that without, and under load what the guest waits
//! for (a client's next statement, the end of a flush) often comes sooner. So the kernel first looks out by itself, for no
//! longer than two exits take, which it times on its requests for files. And only while it pays (`pace.rs`): a guest whose
//! last waits were long halts at once, and one that has halted does not look out again before something has run.
//!
//! Nothing is decided while it looks out: idleness is told, dirty blocks are written and a suspend is begun at the halt.

mod pace;

use crate::arch;
use crate::global::Global;
use crate::shared::shared;
use crate::time;
use crate::vsock;
use core::cell::Cell;
use pace::Pace;

static PACE: Global<Cell<Pace>> = Global::new(Cell::new(Pace::NEW));

/// Carries out an exit that is served at once, and takes its time.
pub fn timed(exit: impl FnOnce()) {
    let began = arch::rdtsc();
    exit();
    PACE.get().update(|pace| pace.exit_took(arch::rdtsc().saturating_sub(began)));
}

/// A time in which no task can run.
#[derive(Default)]
pub struct Wait {
    /// When it began; TSC.
    began: Option<u64>,
    /// It was looked out for long enough. The TSC may start anew during a halt, so nothing is compared with it after that.
    spent: bool,
}

impl Wait {
    /// Looks out; true as soon as there may be something, false when it is time to halt. `deadline` is the next timer's.
    pub fn look(&mut self, deadline: u64) -> bool {
        let began = *self.began.get_or_insert_with(arch::rdtsc);
        let patience = if self.spent { 0 } else { PACE.get().get().patience() };
        if patience > 0 {
            // Answers that wait are what the next statements wait for.
            vsock::hand_over();
        }
        while arch::rdtsc().saturating_sub(began) < patience {
            if shared().event() != 0 || time::now() >= deadline {
                return true;
            }
            core::hint::spin_loop();
        }
        self.spent = true;
        false
    }

    /// A task can run.
    pub fn over(self) {
        if let Some(began) = self.began {
            PACE.get().update(|pace| pace.waited(arch::rdtsc().saturating_sub(began)));
        }
    }
}
