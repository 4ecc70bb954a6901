//! What stands behind the doorbell in a test.

use crate::server::Server;
use std::cell::RefCell;

/// Anything that serves the share's ring.
pub trait Device {
    fn serve(&mut self);
}

impl Device for Server {
    fn serve(&mut self) {
        Server::serve(self);
    }
}

thread_local! {
    static SERVER: RefCell<Option<Server>> = const { RefCell::new(None) };
    static OTHER: RefCell<Option<Box<dyn Device>>> = const { RefCell::new(None) };
}

/// The driver rang.
pub fn notified(index: usize) {
    if index != dormouse_abi::queue::FS {
        return;
    }
    OTHER.with(|other| match other.borrow_mut().as_mut() {
        Some(device) => device.serve(),
        None => SERVER.with(|server| {
            if let Some(server) = server.borrow_mut().as_mut() {
                server.serve();
            }
        }),
    });
}

pub fn attach(server: Server) {
    OTHER.with(|slot| *slot.borrow_mut() = None);
    SERVER.with(|slot| *slot.borrow_mut() = Some(server));
}

/// Puts another device than the server in memory behind the doorbell.
#[cfg(feature = "layer")]
pub fn attach_other(device: Option<Box<dyn Device>>) {
    OTHER.with(|slot| *slot.borrow_mut() = device);
}

/// Looks at, or changes, the server between two calls of the driver.
pub fn with<R>(f: impl FnOnce(&mut Server) -> R) -> R {
    SERVER.with(|server| f(server.borrow_mut().as_mut().unwrap()))
}

/// What the server in memory would have of the node after a power cut; `None` if it is another device.
pub fn durable(node: u64) -> Option<Vec<u8>> {
    if OTHER.with(|other| other.borrow().is_some()) {
        return None;
    }
    with(|server| server.durable.get(&node).cloned())
}
