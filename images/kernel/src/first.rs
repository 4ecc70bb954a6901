//! The first process, the postmaster: how it starts, and what is done when it cannot.
//!
//! A setting of `ALTER SYSTEM` that Postgres cannot start with would keep the database down until somebody with access
//! to its files mends it. So a postmaster that ends with an error before it is ready, with settings in
//! `postgresql.auto.conf`, is started once more without them, all of them, since its message seldom names the one at
//! fault: the file is renamed to `postgresql.auto.conf.trial`, and what was in it goes to the console. If that helps, it
//! becomes `postgresql.auto.conf.rejected`. If not, the settings were not the reason: they are put back, and the VM ends as
//! it would have.

use crate::console::ConsoleFile;
use crate::errno::Result;
use crate::global::Global;
use crate::shared::shared;
use crate::table::{FileTable, OpenFile};
use crate::{fs, klog, sched, signal, task};
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;
use dormouse_abi as abi;

const SETTINGS: &[u8] = b"/pgdata/postgresql.auto.conf";
const TRIAL: &[u8] = b"/pgdata/postgresql.auto.conf.trial";
const REJECTED: &[u8] = b"/pgdata/postgresql.auto.conf.rejected";
/// Bytes of the settings that are read; they are some 50 a line.
const SETTINGS_MAX: usize = 64 << 10;
/// Lines of them that go to the console.
const LINES_MAX: usize = 100;

/// The settings have been put aside in this boot.
static ASIDE: Global<Cell<bool>> = Global::new(Cell::new(false));

/// Starts the first process.
pub fn start() -> Result<i32> {
    if !ASIDE.get().get() && fs::open(b"/", TRIAL, 0, 0).is_ok() {
        klog!("the last boot ended while it tried to do without the settings of ALTER SYSTEM");
        put_back()?;
    }
    // SAFETY: the VMM laid it there before the first instruction, and nobody writes to it.
    let boot = unsafe { &*((abi::SYSTEM + abi::system::BOOT_INFO) as *const abi::BootInfo) };
    let (args, env) = arguments(boot);
    let mut files = FileTable::default();
    let console = OpenFile::new(Rc::new(ConsoleFile), 2);
    for _ in 0..3 {
        files.insert(console.clone(), false, 0)?;
    }
    task::spawn(None, &args, &env, 0, files)
}

/// Splits the boot strings.
fn arguments(boot: &abi::BootInfo) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let len = (boot.strings_len as usize).min(boot.strings.len());
    let mut parts = boot.strings[..len].split(|&byte| byte == 0).map(<[u8]>::to_vec);
    let args = parts.by_ref().take(boot.argc as usize).collect();
    let env = parts.take(boot.envc as usize).collect();
    (args, env)
}

/// The first process is ending with this wait status: whether it is to be started again.
pub fn may_start_again(status: i32) -> bool {
    if status == 0 || shared().ready() != 0 || shared().shutdown() != 0 {
        return false;
    }
    let again = if ASIDE.get().get() { put_back().map(|()| false) } else { put_aside() };
    let again = again.unwrap_or_else(|errno| {
        klog!("postgresql.auto.conf cannot be moved: {:?}", errno);
        false
    });
    if again {
        // What it had started is part of the failed attempt, and holds its shared memory.
        let me = sched::current().pid;
        for other in task::all().iter().filter(|task| task.pid != me) {
            signal::send(other, signal::SIGKILL);
        }
    }
    again
}

/// Moves the settings out of the way; false if there are none.
fn put_aside() -> Result<bool> {
    let lines = match settings() {
        Ok(lines) if !lines.is_empty() => lines,
        _ => return Ok(false),
    };
    fs::rename(b"/", SETTINGS, b"/", TRIAL)?;
    fs::sync()?;
    ASIDE.get().set(true);
    klog!("Postgres did not start with the settings of ALTER SYSTEM; it is tried without them:");
    for line in lines.iter().take(LINES_MAX) {
        klog!("undone: {}", line);
    }
    Ok(true)
}

fn put_back() -> Result<()> {
    klog!("the settings of ALTER SYSTEM are put back");
    fs::rename(b"/", TRIAL, b"/", SETTINGS)?;
    fs::sync()
}

/// Postgres is ready: if it started without the settings, they stay undone.
pub fn is_ready() {
    if !ASIDE.get().get() {
        return;
    }
    match fs::rename(b"/", TRIAL, b"/", REJECTED).and_then(|()| fs::sync()) {
        Ok(()) => {
            klog!("the settings of ALTER SYSTEM are undone, and kept in postgresql.auto.conf.rejected");
            shared().set_settings_undone(1);
        }
        // The next boot puts them back and tries again.
        Err(errno) => klog!("postgresql.auto.conf.trial cannot be renamed: {:?}", errno),
    }
}

/// The lines that set something.
fn settings() -> Result<Vec<String>> {
    let file = fs::open(b"/", SETTINGS, 0, 0)?;
    let mut bytes = vec![0; SETTINGS_MAX];
    let mut len = 0;
    while len < bytes.len() {
        match file.read_at(&mut bytes[len..], len as u64)? {
            0 => break,
            more => len += more,
        }
    }
    let text = String::from_utf8_lossy(&bytes[..len]);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(String::from).collect())
}
