//! `footprint`: what a sleeping database takes: bytes on disk, as `du` counts them, and processes.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;
use thiserror::Error;

use crate::client::ClientError;
use crate::rest::{self, Rest, RestError};
use crate::stats::percentile;
use crate::wake;

#[derive(Debug, Error)]
pub enum FootprintError {
    #[error("{0}")]
    Rest(#[from] RestError),
    #[error("{0}")]
    Client(#[from] ClientError),
    #[error("{path}: {source}")]
    Io {
        path: String,
        source: std::io::Error,
    },
    #[error("at least one database is needed")]
    NoDatabases,
}

#[derive(Debug, Serialize)]
pub struct Footprint {
    pub what: String,
    pub databases: usize,
    pub p50_bytes: u64,
    pub max_bytes: u64,
    /// Processes of these databases while they slept.
    pub processes: usize,
}

#[derive(Debug, Serialize)]
pub struct Footprints {
    pub footprints: Vec<Footprint>,
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

/// Makes databases one after another and measures each asleep: as created, and after one connection.
pub fn run(rest: &Rest, home: &Path, databases: usize) -> Result<Footprints, FootprintError> {
    let (mut fresh, mut woken) = (Vec::new(), Vec::new());
    for _ in 0..databases {
        let created = rest.create(&wake::name("footprint"))?;
        let measured = one(rest, home, &created);
        let deleted = rest.delete(&created.database.id);
        let (as_created, after_use) = measured?;
        fresh.push(as_created);
        woken.push(after_use);
        deleted?;
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
    let footprints: Option<Vec<_>> = [
        summarise("fresh", fresh),
        summarise("after one connection and a query", woken),
    ]
    .into_iter()
    .collect();
    footprints
        .map(|footprints| Footprints { footprints })
        .ok_or(FootprintError::NoDatabases)
}

type Asleep = (u64, usize);

fn one(
    rest: &Rest,
    home: &Path,
    created: &rest::Created,
) -> Result<(Asleep, Asleep), FootprintError> {
    let id = created.database.id.as_str();
    let folder = home.join("databases").join(id);
    let asleep = || -> Result<Asleep, FootprintError> {
        let bytes = match disk_usage(&folder) {
            // Never written, so it owns nothing yet.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            other => other.map_err(|source| FootprintError::Io {
                path: folder.display().to_string(),
                source,
            })?,
        };
        Ok((bytes, rest::vm_processes(id).len()))
    };
    rest.wait_at_rest(id)?;
    let fresh = asleep()?;
    let mut client = created.connect()?;
    client.first_row("select 1")?;
    client.close()?;
    rest.suspend(id)?;
    Ok((fresh, asleep()?))
}

impl Footprints {
    pub fn print(&self) {
        for Footprint {
            what,
            databases,
            p50_bytes,
            max_bytes,
            processes,
        } in &self.footprints
        {
            let kib = |bytes: &u64| bytes.div_ceil(1024);
            println!(
                "{what}: p50 {} KiB, max {} KiB on disk; {processes} processes ({databases} databases)",
                kib(p50_bytes),
                kib(max_bytes)
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
