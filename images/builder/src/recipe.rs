//! Runs what makes the parts: the recipe of PostgreSQL (`images/postgres/recipe.sh`) and cargo for the kernel.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::manifest::Layout;

/// Why a part could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    #[error("{0} is not the `images` folder of Dormouse's source: name it with --source")]
    NoSource(PathBuf),
    #[error("another build is running in {0}")]
    Busy(PathBuf),
    #[error("cannot start {what}: {source}")]
    Start { what: &'static str, source: io::Error },
    #[error("{what} failed ({status}); its words are above")]
    Failed { what: &'static str, status: std::process::ExitStatus },
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} makes no sense: {problem}")]
    Result { path: PathBuf, problem: String },
}

/// What the recipes made, by path. Valid while the build's lock is held.
pub(crate) struct Parts {
    pub kernel: PathBuf,
    pub postgres: PathBuf,
    pub boot: PathBuf,
    pub template: PathBuf,
    pub layout: Layout,
    pub postgres_version: String,
    pub wal_segment_bytes: u64,
    _lock: File,
}

const KERNEL: &str = "kernel/target/x86_64-unknown-linux-gnu/release/dormouse-kernel";

fn run(what: &'static str, command: &mut Command) -> Result<(), RecipeError> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(RecipeError::Failed { what, status }),
        Err(source) => Err(RecipeError::Start { what, source }),
    }
}

fn lock(cache: &Path) -> Result<File, RecipeError> {
    let path = cache.join("lock");
    let open = || -> io::Result<File> {
        fs::create_dir_all(cache)?;
        File::options().create(true).truncate(false).write(true).open(&path)
    };
    let file = open().map_err(|source| RecipeError::Read { path: path.clone(), source })?;
    // SAFETY: flock takes a descriptor, which `file` keeps open, and no pointers.
    match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } {
        0 => Ok(file),
        _ => Err(RecipeError::Busy(cache.to_owned())),
    }
}

/// Makes all parts, or finds them made. Their makers' progress goes to standard error.
pub(crate) fn make(source: &Path, major: u32, tests: bool) -> Result<Parts, RecipeError> {
    let recipe = source.join("postgres/recipe.sh");
    if !recipe.is_file() {
        return Err(RecipeError::NoSource(source.to_owned()));
    }
    let cache = source.join(".build");
    let lock = lock(&cache)?;
    let mut recipe = Command::new(&recipe);
    recipe.arg(&cache).arg(major.to_string()).args(tests.then_some("--tests"));
    run("the recipe of PostgreSQL", &mut recipe)?;
    run(
        "cargo, for the kernel",
        Command::new("cargo")
            .args(["build", "--release", "--target-dir", "target"])
            // The kernel's flags stand in its own .cargo/config.toml, which cargo finds by the current folder and
            // which these would override.
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("CARGO_BUILD_TARGET")
            .current_dir(source.join("kernel")),
    )?;
    let out = cache.join(format!("out-{major}{}", if tests { "-tests" } else { "" }));
    let facts = Facts::read(&out.join("layout"))?;
    Ok(Parts {
        kernel: source.join(KERNEL),
        postgres: out.join("postgres.elf"),
        boot: out.join("boot.cpio"),
        template: out.join("template"),
        layout: Layout {
            shared_end: facts.number("shared_end")?,
            hot: facts.number("hot")?,
            data: facts.number("data")?,
            data_end: facts.number("data_end")?,
            prng_state: facts.number("prng_state")?,
        },
        postgres_version: facts.text("postgres_version")?.to_owned(),
        wal_segment_bytes: facts.number("wal_segment_bytes")?,
        _lock: lock,
    })
}

/// The recipe's `layout`: lines of NAME=VALUE, numbers in hexadecimal with 0x.
struct Facts {
    path: PathBuf,
    text: String,
}

impl Facts {
    fn read(path: &Path) -> Result<Facts, RecipeError> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(Facts { path: path.to_owned(), text }),
            Err(source) => Err(RecipeError::Read { path: path.to_owned(), source }),
        }
    }

    fn text(&self, name: &str) -> Result<&str, RecipeError> {
        self.text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .ok_or_else(|| self.bad(format!("it has no {name}")))
    }

    fn number(&self, name: &str) -> Result<u64, RecipeError> {
        let text = self.text(name)?;
        text.strip_prefix("0x")
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .ok_or_else(|| self.bad(format!("{name} is {text:?}")))
    }

    fn bad(&self, problem: String) -> RecipeError {
        RecipeError::Result { path: self.path.clone(), problem }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_by_their_whole_name_and_bad_ones_refused() {
        let facts = Facts { path: "layout".into(), text: "data_end=0xf0\ndata=0x10\nhot=12\nv=17.1 (x)\n".into() };
        assert_eq!(facts.number("data").unwrap(), 0x10);
        assert_eq!(facts.number("data_end").unwrap(), 0xf0);
        assert_eq!(facts.text("v").unwrap(), "17.1 (x)");
        assert!(facts.number("hot").is_err());
        assert!(facts.number("prng_state").is_err());
    }

    #[test]
    fn a_folder_without_the_recipe_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(make(folder.path(), 17, false), Err(RecipeError::NoSource(_))));
    }

    #[test]
    fn two_builds_at_once_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path()).unwrap();
        assert!(matches!(lock(folder.path()), Err(RecipeError::Busy(_))));
        drop(first);
        assert!(lock(folder.path()).is_ok());
    }
}
