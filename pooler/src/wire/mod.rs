//! Bytes and types: what stands on the wire to the client, to the guest and to the VMM. No I/O, no state of a session.

pub mod answer;
pub mod hello;
pub mod startup;
pub mod walker;
