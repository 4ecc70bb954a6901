//! An awake database's VM as the host sees it: its process, what it says of itself, and the host memory it takes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;

use crate::cpu::{self, Cpu};
use crate::patience::limit;
use crate::rest;

const READ_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Error)]
pub enum VmError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{0} has no VM: it is not awake")]
    NotAwake(String),
    #[error("the command line of {0}'s VM names no image")]
    NoImage(String),
    #[error("what it answers makes no sense: {0}")]
    Answer(String),
}

/// The VM of one database.
#[derive(Debug, Clone)]
pub struct Vm {
    home: PathBuf,
    id: String,
}

impl Vm {
    pub fn new(home: &Path, id: &str) -> Self {
        Self {
            home: home.to_owned(),
            id: id.to_owned(),
        }
    }

    pub fn process(&self) -> Result<u32, VmError> {
        rest::vm_processes(&self.id)
            .first()
            .copied()
            .ok_or_else(|| VmError::NotAwake(self.id.clone()))
    }

    /// The folder of the image that it runs.
    pub fn image(&self) -> Result<PathBuf, VmError> {
        let path = PathBuf::from(format!("/proc/{}/cmdline", self.process()?));
        let line = fs::read(&path).map_err(|source| VmError::Io {
            path: path.clone(),
            source,
        })?;
        let image = image_of(&line).ok_or_else(|| VmError::NoImage(self.id.clone()))?;
        Ok(self.home.join("images").join(image))
    }

    /// The answer to `{"op":"status"}` (`docs/interfaces.md`).
    pub fn status(&self) -> Result<Status, VmError> {
        self.ask("{\"op\":\"status\"}").map(Status)
    }

    /// The answer to a request, which must be done.
    pub fn ask(&self, request: &str) -> Result<Value, VmError> {
        // Its number, and when it was started.
        let (folder, number) = (self.home.join("run/vmms"), format!("{}-", self.process()?));
        let names = fs::read_dir(&folder).into_iter().flatten().flatten();
        let mut names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let name = names.find(|name| name.starts_with(&number) && name.ends_with(".ctl"));
        let name = name.ok_or_else(|| VmError::NotAwake(self.id.clone()))?;
        let failed = |source| VmError::Io {
            path: folder.join(&name),
            source,
        };
        // A socket's address has room for 107 bytes of path: go through a descriptor of the folder.
        let open = File::open(&folder).map_err(failed)?;
        let short = format!("/proc/self/fd/{}/{name}", open.as_raw_fd());
        let mut stream = UnixStream::connect(short).map_err(failed)?;
        stream
            .set_read_timeout(Some(limit(READ_TIMEOUT)))
            .map_err(failed)?;
        writeln!(stream, "{request}").map_err(failed)?;
        for line in BufReader::new(stream).lines() {
            let line = line.map_err(failed)?;
            let value: Value =
                serde_json::from_str(&line).map_err(|_| VmError::Answer(line.clone()))?;
            // Events come in between.
            if value.get("ok") == Some(&Value::Bool(true)) {
                return Ok(value);
            }
            if value.get("ok").is_some() {
                return Err(VmError::Answer(line));
            }
        }
        Err(VmError::Answer(String::new()))
    }

    /// CPU time of the thread that runs the vCPU, and of all the others.
    pub fn cpu(&self) -> Result<(Cpu, Cpu), VmError> {
        let process = self.process()?;
        let vcpu = cpu::of_main_thread(process);
        Ok((vcpu, cpu::of_process(process) - vcpu))
    }

    /// Host memory of the VM's process: what it alone has, and its share of what it has with others. Bytes.
    pub fn proportional_memory(&self) -> Result<u64, VmError> {
        self.memory("Pss:")
    }

    /// What of it is no file's: neither the golden memory nor the program, of which its share grows as other VMs end.
    /// Bytes.
    pub fn anonymous_memory(&self) -> Result<u64, VmError> {
        self.memory("Anonymous:")
    }

    fn memory(&self, field: &str) -> Result<u64, VmError> {
        let path = PathBuf::from(format!("/proc/{}/smaps_rollup", self.process()?));
        let text = fs::read_to_string(&path).map_err(|source| VmError::Io {
            path: path.clone(),
            source,
        })?;
        kib(&text, field).ok_or_else(|| VmError::Answer(text.clone()))
    }
}

/// What follows `--image` on a command line (NUL-separated).
fn image_of(command_line: &[u8]) -> Option<String> {
    let mut arguments = command_line.split(|byte| *byte == 0);
    arguments.find(|argument| *argument == b"--image")?;
    String::from_utf8(arguments.next()?.to_vec()).ok()
}

/// A field such as `Pss:   12 kB`, in bytes.
fn kib(text: &str, field: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(field))?;
    Some(rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// What a VM says of itself.
#[derive(Debug, Clone)]
pub struct Status(Value);

impl Status {
    /// A counter by its name; `None` from a VMM that does not keep it.
    pub fn counter(&self, name: &str) -> Option<u64> {
        self.0.get(name)?.as_u64()
    }

    /// Exits of the VM since it was started, by reason.
    pub fn exits(&self) -> Option<BTreeMap<String, u64>> {
        let reasons = self.0.get("exits")?.as_object()?.iter();
        reasons
            .map(|(reason, count)| Some((reason.clone(), count.as_u64()?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_memory_in_bytes() {
        let rollup = "00-ff ---p 00:00 0 [rollup]\nRss:  2048 kB\nPss:              1024 kB\n";
        assert_eq!(kib(rollup, "Pss:"), Some(1 << 20));
        assert_eq!(kib(rollup, "Swap:"), None);
    }

    #[test]
    fn a_vm_says_which_image_it_runs() {
        let line = b"dormouse\0vmm\0--database\0db_1\0--image\0abc\0--memory-mib\x00512\0";
        assert_eq!(image_of(line).as_deref(), Some("abc"));
        assert_eq!(image_of(b"dormouse\0vmm\0"), None);
    }

    #[test]
    fn a_counter_that_is_not_there_is_not_zero() {
        let status = Status(serde_json::json!({"ok": true, "memory_bytes": 7}));
        assert_eq!(status.counter("memory_bytes"), Some(7));
        assert_eq!(status.counter("kernel_bytes"), None);
        assert_eq!(status.exits(), None);
    }
}
