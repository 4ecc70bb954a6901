//! Ports for servers that are told theirs, and start again on it.
//!
//! What the kernel gives for port 0 will not do: between the question and the server's start, and while a server is
//! down, any connection that this machine makes may be given the same one as its own end.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below it are ports that well-known services have.
const FIRST: u16 = 10_000;
/// Where the kernel's own begin, unless it says otherwise (`Documentation/networking/ip-sysctl.rst`).
const EPHEMERAL: u16 = 32_768;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A port of 127.0.0.1 on which nobody listens and that no connection is given, unless the kernel is set to give them all;
/// another at each call in this process.
///
/// # Panics
/// If there is none.
pub fn free() -> u16 {
    let span = first_ephemeral().checked_sub(FIRST).filter(|&ports| ports > 0).unwrap_or(EPHEMERAL - FIRST);
    // Processes that run side by side begin apart from each other.
    let base = std::process::id().wrapping_mul(97) % u32::from(span);
    (0..span)
        .map(|_| {
            let number = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
            let offset = (base + number) % u32::from(span);
            FIRST + offset as u16
        })
        .find(|&port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
        .expect("a free port below those of connections (net.ipv4.ip_local_port_range)")
}

fn first_ephemeral() -> u16 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first = range.split_whitespace().next();
    first.and_then(|n| n.parse().ok()).unwrap_or(EPHEMERAL)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ports_differ_and_none_is_a_connections() {
        let ports: HashSet<u16> = (0..100).map(|_| free()).collect();
        assert_eq!(ports.len(), 100);
        assert!(first_ephemeral() <= FIRST || ports.iter().all(|&port| port < first_ephemeral()));
    }

    #[test]
    fn a_port_in_use_is_passed_over() {
        // Some of those that come next; the other tests take a few meanwhile.
        let next = free() + 1;
        let held: Vec<_> = (next..next.saturating_add(400)).step_by(2).filter_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()).collect();
        let taken: HashSet<u16> = held.iter().map(|held| held.local_addr().unwrap().port()).collect();
        assert!(taken.len() > 100);
        assert!((0..100).all(|_| !taken.contains(&free())));
    }
}
