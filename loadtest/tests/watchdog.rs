//! A guest whose kernel hangs is found and told of, and the database comes back with what was committed. One that only
//! computes is left alone.

#![allow(clippy::unwrap_used)]

mod harness;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;

use dormouse_loadtest::rest;
use harness::{Server, succeed, text};

/// vCPU time after which a guest hangs.
const LIMIT_MS: u64 = 1500;
const SETTINGS: [(&str, u64); 1] = [("DORMOUSE_HOST_WATCHDOG_MS", LIMIT_MS)];

/// Where the guest's memory lies in its VMM, found by what the kernel's image starts with.
fn guest_memory(memory: &File, pid: u32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    // Beside it may lie the golden memory, which is not written.
    let starts = maps.lines().filter(|line| line.contains(" rw")).map(|line| u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap());
    let is_guest = |base: &u64| {
        let mut magic = [0; 8];
        memory.read_exact_at(&mut magic, base + (4 << 20)).is_ok() && &magic == b"DORMOUSE"
    };
    starts.map(|start| start.next_multiple_of(2 << 20)).find(is_guest).unwrap()
}

/// The address of one of the kernel's functions.
fn kernel_symbol(server: &Server, name: &str) -> u64 {
    let kernel = server.home.join("images/current-17/kernel.elf");
    let symbols = succeed(Command::new("nm").arg(kernel).output().unwrap());
    let line = symbols.lines().find(|line| line.ends_with(&format!(" {name}"))).unwrap();
    u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap()
}

/// Makes the kernel loop for ever the next time that it is to preempt a process.
fn break_kernel(server: &Server, id: &str) {
    let pid = rest::vm_processes(id)[0];
    let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem")).unwrap();
    let address = guest_memory(&memory, pid) + kernel_symbol(server, "preempt_entry");
    // jmp to itself
    memory.write_all_at(&[0xeb, 0xfe], address).unwrap();
}

/// Computes without a system call for as long as it is let.
const COMPUTE: &str = "do $$ begin loop end loop; end $$";

#[test]
fn a_kernel_that_hangs_is_found_told_of_and_started_again_with_all_that_was_committed() {
    let Some((server, created, mut held)) = harness::session_with(&SETTINGS) else {
        return;
    };
    let id = &created.database.id;
    let mut busy = created.connect().unwrap();
    held.query("create table kept as select generate_series(1, 1000) as n").unwrap();
    busy.send(COMPUTE).unwrap();
    break_kernel(&server, id);
    for (what, ended) in [("computing", busy.finish()), ("held", held.query("select 1"))] {
        let error = ended.unwrap_err();
        assert_eq!(error.code(), Some("57P01"), "the {what} session: {error}");
    }
    server.rest.wait_at_rest(id).unwrap();
    assert_eq!(rest::vm_processes(id), [] as [u32; 0]);
    let shown = text(&server.rest.call("GET", &format!("/v1/databases/{id}"), "").unwrap().body);
    assert!(shown.contains(r#""state":"stopped""#) && shown.contains("no progress"), "{shown}");

    let console = fs::read_to_string(server.home.join("databases").join(id).join("console.log")).unwrap();
    let report = console.split("watchdog: no progress").nth(1).unwrap();
    for told in ["rip=", "preempt_entry", "(postmaster), housekeeper", "backend, child of 10, running", "exec_stmt_block", "waits for its client", "WaitEventSetWait"] {
        assert!(report.contains(told), "{told} is not in {report}");
    }

    let mut again = created.connect().unwrap();
    assert_eq!(again.value("select count(*) from kept").unwrap(), "1000");
    let events = text(&server.rest.call("GET", &format!("/v1/databases/{id}/events"), "").unwrap().body);
    let (hung, cold) = (events.find(r#""kind":"hung""#).unwrap(), events.find(r#""kind":"started_cold""#).unwrap());
    assert!(cold < hung, "not the newest first: {events}");
}

#[test]
fn a_computing_query_is_no_hang_and_tells_where_it_is() {
    let Some((server, created, mut client)) = harness::session_with(&SETTINGS) else {
        return;
    };
    let canceller = client.canceller();
    client.send(COMPUTE).unwrap();
    let pid = rest::vm_processes(&created.database.id)[0];
    let limit = LIMIT_MS * 3;
    harness::until("the query has computed for three times the limit", || processor_ms(pid) > limit);
    let tasks = text(&server.rest.call("GET", &format!("/v1/databases/{}/tasks", created.database.id), "").unwrap().body);
    assert!(tasks.contains("exec_stmt_block") && tasks.contains("(postmaster)"), "{tasks}");
    canceller.cancel().unwrap();
    assert_eq!(client.finish().unwrap_err().code(), Some("57014"));
    assert_eq!(client.value("select 6 * 7").unwrap(), "42");
    assert_eq!(rest::vm_processes(&created.database.id), [pid]);
}

/// Processor time that a process has used.
fn processor_ms(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum();
    // SAFETY: asks for a number.
    ticks * 1000 / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64
}
