//! What stands behind the doorbell in a test.

use crate::server::Server;
use std::cell::RefCell;

thread_local!(static SERVER: RefCell<Option<Server>> = const { RefCell::new(None) });

/// The driver rang.
pub fn notified(index: usize) {
    if index == dormouse_abi::queue::FS {
        SERVER.with(|server| {
            if let Some(server) = server.borrow_mut().as_mut() {
                server.serve();
            }
        });
    }
}

pub fn attach(server: Server) {
    SERVER.with(|slot| *slot.borrow_mut() = Some(server));
}

/// Looks at, or changes, the server between two calls of the driver.
pub fn with<R>(f: impl FnOnce(&mut Server) -> R) -> R {
    SERVER.with(|server| f(server.borrow_mut().as_mut().unwrap()))
}
