//! `footprint`: what a database takes: asleep on disk, as `du` counts, and awake in memory and CPU; and what that makes of a
//! host. Used databases (`used.rs`) but for the ones never used.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use thiserror::Error;

use crate::client::{Client, ClientError};
use crate::cpu;
use crate::rest::{self, Created, Rest, RestError};
use crate::stats::percentile;
use crate::used;
use crate::vm::{Vm, VmError};
use crate::wake;

#[derive(Debug, Error)]
pub enum FootprintError {
    #[error("{0}")]
    Rest(#[from] RestError),
    #[error("{0}")]
    Client(#[from] ClientError),
    #[error("{0}")]
    Vm(#[from] VmError),
    #[error("{path}: {source}")]
    Io {
        path: String,
        source: std::io::Error,
    },
    #[error("at least one database is needed")]
    NoDatabases,
}

/// How long the CPU time of idle databases is counted.
const IDLE: Duration = Duration::from_secs(10);
const GB: f64 = 1e9;
const GIB: f64 = (1u64 << 30) as f64;

#[derive(Debug, Serialize)]
pub struct Footprint {
    pub what: String,
    pub databases: usize,
    pub p50_bytes: u64,
    pub max_bytes: u64,
    /// Processes of these databases while they slept.
    pub processes: usize,
}

/// Used databases that are awake and idle at the same time, each with a client connected.
#[derive(Debug, Serialize)]
pub struct Awake {
    pub databases: usize,
    /// Proportional set size of the VM's process, bytes: its own memory, and its share of what it has with others.
    pub p50_pss_bytes: u64,
    pub max_pss_bytes: u64,
    /// Of one core, by one database.
    pub cpu: f64,
}

#[derive(Debug, Serialize)]
pub struct Footprints {
    pub footprints: Vec<Footprint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub awake: Option<Awake>,
}

/// Disk that a tree takes, in bytes: blocks in use, each file once.
pub fn disk_usage(path: &Path) -> std::io::Result<u64> {
    let metadata = std::fs::symlink_metadata(path)?;
    let mut bytes = metadata.blocks() * 512;
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path)? {
            bytes += disk_usage(&entry?.path())?;
        }
    }
    Ok(bytes)
}

/// Makes databases and measures each asleep, as created and used; then `awake` more of them awake at once.
pub fn run(rest: &Rest, home: &Path, databases: usize, awake: usize) -> Result<Footprints, FootprintError> {
    let (mut fresh, mut woken, mut packed) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..databases {
        let created = rest.create(&wake::name("footprint"))?;
        let measured = rest.wait_at_rest(&created.database.id).map_err(Into::into).and_then(|()| asleep(home, &created));
        rest.delete(&created.database.id)?;
        fresh.push(measured?);
        let created = used::create(rest, &wake::name("footprint"), false)?;
        let as_left = asleep(home, &created);
        let measured = rest.pack(&created.database.id).map_err(Into::into).and_then(|()| asleep(home, &created));
        rest.delete(&created.database.id)?;
        woken.push(as_left?);
        packed.push(measured?);
    }
    let summarise = |what: &str, sample: Vec<(u64, usize)>| {
        let mut bytes: Vec<_> = sample.iter().map(|(bytes, _)| *bytes).collect();
        bytes.sort_unstable();
        Some(Footprint {
            what: what.to_owned(),
            databases: bytes.len(),
            p50_bytes: *percentile(&bytes, 50)?,
            max_bytes: *bytes.last()?,
            processes: sample.iter().map(|(_, processes)| processes).sum(),
        })
    };
    let footprints: Option<Vec<_>> =
        [summarise("never used", fresh), summarise("used, as left", woken), summarise("used, packed", packed)]
            .into_iter()
            .collect();
    let footprints = footprints.ok_or(FootprintError::NoDatabases)?;
    let awake = (awake > 0).then(|| all_awake(rest, home, awake)).transpose()?;
    Ok(Footprints { footprints, awake })
}

/// Bytes on disk and processes of one that sleeps.
fn asleep(home: &Path, created: &Created) -> Result<(u64, usize), FootprintError> {
    let id = created.database.id.as_str();
    let folder = home.join("databases").join(id);
    let bytes = match disk_usage(&folder) {
        // Never written, so it owns nothing yet.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        other => other.map_err(|source| FootprintError::Io { path: folder.display().to_string(), source })?,
    };
    Ok((bytes, rest::vm_processes(id).len()))
}

fn all_awake(rest: &Rest, home: &Path, count: usize) -> Result<Awake, FootprintError> {
    eprintln!("using {count} databases, to be awake at once");
    let mut used = Vec::new();
    let mut measure = || -> Result<Awake, FootprintError> {
        for _ in 0..count {
            used.push(used::create(rest, &wake::name("awake"), true)?);
        }
        let mut clients = Vec::new();
        for one in &used {
            let mut client: Client = one.connect()?;
            client.value(&used::first_query(used::random()).0)?;
            clients.push(client);
        }
        idle(home, &used)
    };
    let measured = measure();
    used.iter().try_for_each(|one| rest.delete(&one.database.id))?;
    measured
}

fn idle(home: &Path, used: &[Created]) -> Result<Awake, FootprintError> {
    let vms: Vec<_> = used.iter().map(|one| Vm::new(home, &one.database.id)).collect();
    let processes = vms.iter().map(Vm::process).collect::<Result<Vec<_>, _>>()?;
    let spent = || processes.iter().map(|process| cpu::of_process(*process).total()).sum::<Duration>();
    let (began, before) = (Instant::now(), spent());
    // What is measured is this time itself.
    std::thread::sleep(IDLE);
    let cpu = spent().saturating_sub(before).as_secs_f64() / began.elapsed().as_secs_f64() / vms.len() as f64;
    let mut pss = vms.iter().map(Vm::proportional_memory).collect::<Result<Vec<_>, _>>()?;
    pss.sort_unstable();
    Ok(Awake {
        databases: pss.len(),
        p50_pss_bytes: *percentile(&pss, 50).ok_or(FootprintError::NoDatabases)?,
        max_pss_bytes: *pss.last().ok_or(FootprintError::NoDatabases)?,
        cpu,
    })
}

impl Footprints {
    pub fn print(&self) {
        for Footprint { what, databases, p50_bytes, max_bytes, processes } in &self.footprints {
            let kib = |bytes: &u64| bytes.div_ceil(1024);
            let disk = match p50_bytes {
                0 => "no file".to_owned(),
                bytes => format!("{} KiB on disk, {:.0} on 100 GB", kib(bytes), 100.0 * GB / *bytes as f64),
            };
            println!(
                "asleep, {what}: {disk} (p50; most {} KiB); {processes} processes ({databases} databases)",
                kib(max_bytes),
            );
        }
        if let Some(Awake { databases, p50_pss_bytes, max_pss_bytes, cpu }) = &self.awake {
            let mib = |bytes: &u64| *bytes as f64 / f64::from(1 << 20);
            println!(
                "awake and idle: p50 {:.1} MiB, max {:.1} MiB of memory (PSS, the VMM's process), {:.0} in a GiB; {:.3} % of a core ({databases} databases)",
                mib(p50_pss_bytes),
                mib(max_pss_bytes),
                GIB / *p50_pss_bytes as f64,
                100.0 * cpu,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_blocks_not_lengths() {
        let folder = std::env::temp_dir().join(format!("dormouse-du-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let empty = disk_usage(&folder).unwrap();
        let sparse = std::fs::File::create(folder.join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        assert!(disk_usage(&folder).unwrap() < empty + (1 << 20));
        std::fs::write(folder.join("full"), vec![1; 1 << 20]).unwrap();
        std::fs::File::open(folder.join("full"))
            .unwrap()
            .sync_all()
            .unwrap();
        assert!(disk_usage(&folder).unwrap() >= 1 << 20);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
