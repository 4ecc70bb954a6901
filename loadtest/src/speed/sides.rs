//! The two sides of a comparison: where work is sent, and who spends CPU time on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::SpeedError;
use crate::client::{Client, Target};
use crate::cpu::{self, Cpu};
use crate::native::{Native, Programs, Setup};
use crate::pgbouncer::Bouncer;
use crate::rest::Created;
use crate::vm::Vm;

/// CPU time of one part of a side.
#[derive(Debug, Clone, Serialize)]
pub struct Share {
    pub who: &'static str,
    pub user_us: f64,
    pub system_us: f64,
}

impl Share {
    pub fn new(who: &'static str, spent: Cpu, each: f64) -> Self {
        Self {
            who,
            user_us: spent.user.as_secs_f64() * 1e6 * each,
            system_us: spent.system.as_secs_f64() * 1e6 * each,
        }
    }
}

pub trait Side {
    fn target(&self) -> Target;
    /// CPU time until now, by part.
    fn shares(&self) -> Result<Vec<(&'static str, Cpu)>, SpeedError>;
    /// Exits of the VM until now, by reason.
    fn exits(&self) -> Result<Option<BTreeMap<String, u64>>, SpeedError>;
}

/// A database behind Dormouse's pooler.
pub struct Dormouse {
    target: Target,
    vm: Vm,
    /// The process of `dormouse up`: pooler, API and host in one.
    server: u32,
}

impl Dormouse {
    pub fn new(home: &Path, created: &Created) -> Result<Self, SpeedError> {
        let path = home.join("run").join("server.json");
        let wrong = || SpeedError::NoServer(path.display().to_string());
        let text = std::fs::read_to_string(&path).map_err(|_| wrong())?;
        let server: serde_json::Value = serde_json::from_str(&text).map_err(|_| wrong())?;
        let server = server.get("pid").and_then(serde_json::Value::as_u64);
        Ok(Self {
            target: created.target()?,
            vm: Vm::new(home, &created.database.id),
            server: server
                .and_then(|pid| pid.try_into().ok())
                .ok_or_else(wrong)?,
        })
    }
}

impl Side for Dormouse {
    fn target(&self) -> Target {
        self.target.clone()
    }

    fn shares(&self) -> Result<Vec<(&'static str, Cpu)>, SpeedError> {
        let (vcpu, others) = self.vm.cpu()?;
        Ok(vec![
            ("vCPU thread", vcpu),
            ("VMM's other threads", others),
            ("server (pooler)", cpu::of_process(self.server)),
        ])
    }

    fn exits(&self) -> Result<Option<BTreeMap<String, u64>>, SpeedError> {
        Ok(self.vm.status()?.exits())
    }
}

/// How native PostgreSQL is reached, and on which CPUs it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Route {
    pub pinned: bool,
    pub pooled: bool,
}

impl Route {
    /// What ratios are to.
    pub const YARDSTICK: Self = Self {
        pinned: true,
        pooled: true,
    };
    /// What is printed beside it.
    pub const BESIDE: [Self; 3] = [
        Self {
            pinned: true,
            pooled: false,
        },
        Self {
            pinned: false,
            pooled: true,
        },
        Self {
            pinned: false,
            pooled: false,
        },
    ];
}

impl std::fmt::Display for Route {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match (self.pinned, self.pooled) {
            (true, true) => "pinned, PgBouncer",
            (true, false) => "pinned, direct",
            (false, true) => "unpinned, PgBouncer",
            (false, false) => "unpinned, direct",
        })
    }
}

/// A setting as both sides have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    pub name: String,
    pub value: String,
}

/// Native PostgreSQL with PgBouncer before it.
pub struct Yardstick {
    // Ended first, as the later one is what it connects to.
    bouncer: Bouncer,
    native: Native,
    core: usize,
    route: Route,
    settings: Vec<Setting>,
}

/// Settings that name places or libraries of the guest, or shape only its log.
const GUESTS_OWN: &str = "'shared_preload_libraries', 'data_directory', 'config_file', 'hba_file', 'ident_file', \
    'external_pid_file', 'listen_addresses', 'unix_socket_directories', 'port', 'dynamic_library_path', \
    'extension_control_path', 'log_destination', 'logging_collector', 'log_line_prefix', 'lc_messages', 'lc_monetary', \
    'lc_numeric', 'lc_time'";

impl Yardstick {
    /// A data directory with Dormouse's settings on the file system of its home, a server on it, and PgBouncer.
    pub fn start(
        programs: &Programs,
        home: &Path,
        dormouse: &Dormouse,
        core: usize,
    ) -> Result<Self, SpeedError> {
        let mut client = Client::connect(&dormouse.target)?;
        let settings = settings(&mut client)?;
        let version = client.value("show server_version")?;
        let segment = client.value(
            "select setting::bigint / 1048576 from pg_settings where name = 'wal_segment_size'",
        )?;
        client.close()?;
        let mut initdb: Vec<_> = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin"]
            .map(str::to_owned)
            .to_vec();
        initdb.push("--builtin-locale=C.UTF-8".to_owned());
        initdb.push(format!("--wal-segsize={segment}"));
        let mut native = Native::create_with(
            programs,
            Setup {
                core: Some(core),
                disk: Some(PathBuf::from(home)),
                initdb,
                settings: settings
                    .iter()
                    .map(|setting| (setting.name.clone(), setting.value.clone()))
                    .collect(),
            },
        )?;
        native.start()?;
        let native_version = Client::connect(&native.target())?.value("show server_version")?;
        if native_version != version {
            return Err(SpeedError::OtherVersion {
                dormouse: version,
                native: native_version,
            });
        }
        Ok(Self {
            bouncer: Bouncer::start(&native)?,
            native,
            core,
            route: Route::YARDSTICK,
            settings,
        })
    }

    pub fn set(&mut self, route: Route) -> Result<(), SpeedError> {
        self.native.run_on(route.pinned.then_some(self.core))?;
        self.route = route;
        Ok(())
    }

    /// A folder that is removed with the server.
    pub fn folder(&self) -> &Path {
        self.native.socket_folder()
    }

    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }
}

/// All that a server was set to beyond PostgreSQL's defaults, by its own word. Of the libraries it preloads, those that
/// native has too.
fn settings(client: &mut Client) -> Result<Vec<Setting>, SpeedError> {
    let rows = client.query(&format!(
        "select name, current_setting(name) from pg_settings
         where source in ('configuration file', 'command line') and context <> 'internal'
           and (name not like '%.%' or name like 'pg_stat_statements.%') and name not in ({GUESTS_OWN})
         union all
         select 'shared_preload_libraries', 'pg_stat_statements' from pg_settings
         where name = 'pg_stat_statements.max'
         order by 1"
    ))?;
    Ok(rows
        .into_iter()
        .filter_map(|row| {
            let mut values = row.into_iter().flatten();
            Some(Setting {
                name: values.next()?,
                value: values.next()?,
            })
        })
        .collect())
}

impl Side for Yardstick {
    fn target(&self) -> Target {
        if self.route.pooled {
            self.bouncer.target().clone()
        } else {
            self.native.target()
        }
    }

    fn shares(&self) -> Result<Vec<(&'static str, Cpu)>, SpeedError> {
        let postmaster = self.native.postmaster();
        let server = postmaster.map_or(Cpu::default(), cpu::of_family);
        Ok(vec![
            ("PostgreSQL's processes", server),
            ("PgBouncer", cpu::of_process(self.bouncer.pid())),
        ])
    }

    fn exits(&self) -> Result<Option<BTreeMap<String, u64>>, SpeedError> {
        Ok(None)
    }
}
