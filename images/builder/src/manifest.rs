//! `image.json`: what an image is made of and how it is run. Depends on serde and the
//! contract with the kernel alone, so that the VMM can read it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The format this code writes, and the only one it reads.
pub const FORMAT: u32 = 1;

/// Digits of an image's name.
pub const NAME_LEN: usize = 16;

/// File names in an image's folder.
pub mod file {
    pub const MANIFEST: &str = "image.json";
    pub const KERNEL: &str = "kernel.elf";
    pub const POSTGRES: &str = "postgres.elf";
    pub const BOOT: &str = "boot.cpio";
    /// Holds one folder per memory size in MiB, each with [`MEMORY`], [`STATE`], [`HOT`] and [`TOUCHED`].
    pub const GOLDEN: &str = "golden";
    pub const MEMORY: &str = "memory";
    pub const STATE: &str = "state";
    /// The pages that nearly every database changes: their numbers, ascending, four bytes each, little-endian.
    pub const HOT: &str = "hot";
    /// The pages of the golden memory that nearly every wake touches: their guest-virtual addresses, those first that a held
    /// session's wake touches, then those that a new one's touches besides; eight bytes each, little-endian.
    pub const TOUCHED: &str = "touched";
}

/// Why a manifest could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("cannot read the image's manifest {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("the image's manifest {path} is damaged: {source}")]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("the image's manifest {path} has format {found}, this program reads {FORMAT}: build the image again")]
    OtherFormat { path: PathBuf, found: u64 },
}

/// One file of the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// SHA-256 of its content, hexadecimal.
    pub sha256: String,
    /// Its length in bytes.
    pub bytes: u64,
}

/// The program's layout, as the linker made it: offsets in bytes from a process slot's base (`dormouse_abi::Program`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// End of what is shared by all processes, not rounded.
    pub shared_end: u64,
    /// The process' own large page.
    pub hot: u64,
    /// Start of its writable segment; the stack grows down from here.
    pub data: u64,
    /// End of data and bss; the first heap begins at the next page.
    pub data_end: u64,
    /// `pg_global_prng_state`, 16 bytes, reseeded in every process of a clone.
    pub prng_state: u64,
}

/// The first process of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstProcess {
    pub arguments: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
}

impl FirstProcess {
    /// The postmaster. Its own clients, such as a subscription's worker, find its socket by PGHOST. What stock
    /// PostgreSQL could not do with the same data directory is said here and not in its `postgresql.conf`: the socket's
    /// folder, which the kernel puts behind vsock, and modules: Dormouse's own, which refuses passwords in SQL, and
    /// pg_stat_statements, which a database need not have and which works only so.
    pub fn postgres() -> FirstProcess {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect();
        FirstProcess {
            arguments: words(&[
                "/pg/bin/postgres",
                "-D",
                dormouse_abi::DATA_MOUNT,
                "-c",
                "unix_socket_directories=/run",
                "-c",
                "shared_preload_libraries=dormouse,pg_stat_statements",
            ]),
            environment: words(&["PATH=/pg/bin", "HOME=/pgdata", "PGDATA=/pgdata", "LC_ALL=C", "TZ=UTC", "PGHOST=/run"]),
        }
    }
}

/// Where an image comes from; not part of its identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Seconds since 1970.
    pub built_at: u64,
    /// Version of the builder.
    pub builder: String,
}

/// `image.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The image's name: the first 16 hexadecimal digits of the SHA-256 over what follows but `origin`.
    pub image: String,
    /// The contract between kernel and VMM that the kernel was built for (`dormouse_abi::ABI_VERSION`).
    pub abi: u32,
    pub kernel: Part,
    pub postgres: Part,
    pub boot: Part,
    /// The template's name: the hash of its content (`dormouse_images::tree_hash`).
    pub template: String,
    /// As `postgres --version` says it.
    pub postgres_version: String,
    pub wal_segment_bytes: u64,
    pub layout: Layout,
    pub first_process: FirstProcess,
    pub origin: Origin,
}

impl Manifest {
    /// Reads the manifest of the image in a folder.
    ///
    /// # Errors
    /// If the file cannot be read, is not a manifest, or has another format.
    pub fn load(image: &Path) -> Result<Manifest, ManifestError> {
        let path = image.join(file::MANIFEST);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(source) => return Err(ManifestError::Read { path, source }),
        };
        // The format first: another one need not look like this type.
        let value: serde_json::Value = match serde_json::from_slice(&bytes) {
            Ok(value) => value,
            Err(source) => return Err(ManifestError::Damaged { path, source }),
        };
        let found = value.get("format").and_then(serde_json::Value::as_u64).unwrap_or(0);
        if found != u64::from(FORMAT) {
            return Err(ManifestError::OtherFormat { path, found });
        }
        let manifest: Result<Manifest, _> = serde_json::from_value(value);
        match manifest {
            Ok(manifest) if manifest.postgres_major() != 0 => Ok(manifest),
            Ok(manifest) => {
                let problem = format!("{:?} is no version of PostgreSQL", manifest.postgres_version);
                Err(ManifestError::Damaged { path, source: serde::de::Error::custom(problem) })
            }
            Err(source) => Err(ManifestError::Damaged { path, source }),
        }
    }

    /// The major version of its PostgreSQL, such as 17; never 0 in a manifest that was loaded.
    pub fn postgres_major(&self) -> u32 {
        // "postgres (PostgreSQL) 17.11", "postgres (PostgreSQL) 18beta1"
        let digits = |word: &str| word.find(|digit: char| !digit.is_ascii_digit()).unwrap_or(word.len());
        let major = |word: &str| word[..digits(word)].parse().ok();
        self.postgres_version.split(' ').find_map(major).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::tests::example;

    #[test]
    fn the_major_version_is_read_from_a_release_and_from_a_beta() {
        let mut manifest = example("t");
        for (version, major) in [("17.11", 17), ("18beta1", 18), ("19", 19), ("x", 0)] {
            manifest.postgres_version = format!("postgres (PostgreSQL) {version}");
            assert_eq!(manifest.postgres_major(), major);
        }
    }

    #[test]
    fn a_manifest_of_another_format_or_cut_short_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file::MANIFEST);
        assert!(matches!(Manifest::load(folder.path()), Err(ManifestError::Read { .. })));
        fs::write(&path, r#"{"format":2,"else":true}"#).unwrap();
        assert!(matches!(Manifest::load(folder.path()), Err(ManifestError::OtherFormat { found: 2, .. })));
        fs::write(&path, r#"{"format":1,"image":"#).unwrap();
        assert!(matches!(Manifest::load(folder.path()), Err(ManifestError::Damaged { .. })));
        fs::write(&path, r#"{"format":1}"#).unwrap();
        assert!(matches!(Manifest::load(folder.path()), Err(ManifestError::Damaged { .. })));
        let mut manifest = example("t");
        manifest.postgres_version = "postgres".to_owned();
        fs::write(&path, serde_json::to_string(&manifest).unwrap()).unwrap();
        assert!(matches!(Manifest::load(folder.path()), Err(ManifestError::Damaged { .. })));
    }
}
