//! What happens to a database that its owner may want to know of later: what is not as usual, and what was asked for. Not
//! its sleeps and wakes, which are many.

use serde::Serialize;
use utoipa::ToSchema;

/// A kind of event. Names are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// It was made.
    Created,
    /// It started from its data directory, by crash recovery if it had not been shut down; sessions held from before ended.
    StartedCold,
    /// Its snapshot did not fit and was put aside: a cold start.
    SnapshotRefused,
    /// Its guest made no progress and was ended by the watchdog; its console log has the tasks.
    Hung,
    /// Its virtual machine ended unexpectedly.
    Died,
    /// It could not be woken.
    WakeFailed,
    /// It could not be put to sleep, and stays awake.
    SuspendFailed,
    /// It could not be packed, and sleeps on as it was left. Told of the first attempt of those that follow one another.
    PackFailed,
    /// A setting of `ALTER SYSTEM` that kept it from starting was undone.
    SettingsUndone,
    /// It was moved to another image: a new kernel, or a minor update of Postgres.
    ImageAdopted,
    /// It was shut down because someone asked for it.
    Restarted,
}

impl EventKind {
    pub const ALL: [EventKind; 11] = [
        EventKind::Created,
        EventKind::StartedCold,
        EventKind::SnapshotRefused,
        EventKind::Hung,
        EventKind::Died,
        EventKind::WakeFailed,
        EventKind::SuspendFailed,
        EventKind::PackFailed,
        EventKind::SettingsUndone,
        EventKind::ImageAdopted,
        EventKind::Restarted,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::Created => "created",
            EventKind::StartedCold => "started_cold",
            EventKind::SnapshotRefused => "snapshot_refused",
            EventKind::Hung => "hung",
            EventKind::Died => "died",
            EventKind::WakeFailed => "wake_failed",
            EventKind::SuspendFailed => "suspend_failed",
            EventKind::PackFailed => "pack_failed",
            EventKind::SettingsUndone => "settings_undone",
            EventKind::ImageAdopted => "image_adopted",
            EventKind::Restarted => "restarted",
        }
    }
}
