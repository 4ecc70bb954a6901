//! States of a database, as its owner sees them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a database is doing.
///
/// `suspended` and `stopped` hold no memory and no process; both are woken by the next use. From `stopped` that
/// is a cold start, which ends the sessions held for it. `error` says why in `message`; the next use tries again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Creating,
    Running,
    Suspending,
    Suspended,
    Resuming,
    Stopped,
    Deleting,
    Error,
}

impl State {
    pub const ALL: [State; 8] = [
        State::Creating,
        State::Running,
        State::Suspending,
        State::Suspended,
        State::Resuming,
        State::Stopped,
        State::Deleting,
        State::Error,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            State::Creating => "creating",
            State::Running => "running",
            State::Suspending => "suspending",
            State::Suspended => "suspended",
            State::Resuming => "resuming",
            State::Stopped => "stopped",
            State::Deleting => "deleting",
            State::Error => "error",
        }
    }

    pub fn parse(text: &str) -> Option<State> {
        State::ALL.into_iter().find(|s| s.as_str() == text)
    }

    /// Whether no process belongs to the database in this state.
    pub fn at_rest(self) -> bool {
        matches!(self, State::Suspended | State::Stopped | State::Error)
    }
}
