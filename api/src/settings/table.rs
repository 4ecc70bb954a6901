//! The table of settings. Order is the order of `dormouse config show` and of `docs/settings.md`.

/// One setting: its key in `dormouse.toml` (`section.name`), from which the flag and the variable follow.
#[derive(Debug)]
pub struct Setting {
    pub key: &'static str,
    pub default: &'static str,
    pub help: &'static str,
}

impl Setting {
    /// The flag without dashes: `api.listen` is `--api-listen`.
    pub fn flag(&self) -> String {
        self.key.replace(['.', '_'], "-")
    }

    /// The variable: `api.listen` is `DORMOUSE_API_LISTEN`.
    pub fn variable(&self) -> String {
        format!("DORMOUSE_{}", self.key.replace('.', "_").to_uppercase())
    }
}

const fn s(key: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting { key, default, help }
}

/// All settings but the plans.
pub const SETTINGS: &[Setting] = &[
    s("home", ".dormouse", "Folder of all state"),
    s("api.listen", "127.0.0.1:8080", "Address of the REST API and the console"),
    s("api.body_limit_kib", "64", "Largest request body, in KiB"),
    s("api.event_streams", "256", "Event streams open at once"),
    s("api.session_minutes", "60", "Life of a console session, in minutes"),
    s("console.path", "", "Folder of a console build to serve instead of the built-in one"),
    s("pooler.listen", "127.0.0.1:5432", "Address Postgres clients connect to"),
    s("pooler.public", "", "HOST:PORT written in connection strings, if not the listen address"),
    s("pooler.tls_certificate", "", "PEM certificate chain of the pooler"),
    s("pooler.tls_key", "", "PEM private key of the pooler"),
    s("pooler.plain", "loopback", "Who may connect without TLS: loopback, always or never"),
    s("pooler.max_clients", "20000", "Client connections at once"),
    s("pooler.password_guesses", "20", "Failed logins a minute to one database, from one address; 0 for no limit"),
    s("pooler.begin_ahead_ms", "3000", "How long a session begun before its client's proof is kept, in ms; 0 for none"),
    s("pooler.cancel_guesses", "100", "Cancel requests with a wrong key a minute from one address; 0 for no limit"),
    s("host.vmm_program", "", "Program run as the VMM, if not this one"),
    s("host.wake_timeout_ms", "30000", "Longest a wake may take, in ms"),
    s("host.suspend_wait_ms", "30000", "Longest a suspend waits for a running statement, in ms"),
    s("host.wakes_at_once", "8", "VMs being started at once"),
    s("host.memory_reserve_mib", "512", "Available memory, in MiB, below which no VM is started; 0 for no limit"),
    s("host.jail", "on", "Whether VMMs are jailed: on, or off for debugging"),
    s("host.jail_uids", "1879048192", "First of the user ids that VMMs take"),
    s("host.cgroup", "own", "Control group that those of VMMs are made in; own for the server's, if it will do, empty for none"),
    s("host.standby_vms", "4", "VMs made ready before they are needed; 0 for none"),
    s("host.pack_after_s", "3600", "Seconds asleep after which a database is packed; 0 for never"),
    s("host.pack_timeout_s", "600", "Longest that packing a database may take, in seconds"),
    s("host.wake_queue", "500", "Requests that may wait for one database's wake"),
    s("host.console_log_mib", "1", "Size at which a guest's console log is rotated, in MiB"),
    s("host.watchdog_ms", "10000", "vCPU time without progress after which a guest is ended, in ms; 0 for never"),
    s("host.events_kept", "100", "Events kept of each database"),
    s("host.pg_version", "17", "Major version of Postgres of a database that names none"),
    s("log.level", "info", "off, error, warn, info, debug or trace"),
    s("log.format", "auto", "Lines on stderr: text, json, or auto (text on a terminal)"),
    s("log.file_mib", "16", "Size at which the log file is rotated, in MiB"),
    s("log.files", "5", "Rotated log files kept"),
];
