//! Sessions held through sleep, and everything that may happen to them meanwhile.

mod support;

use std::time::Duration;

use dormouse_pooler::{Busy, SessionCounts, WakeError};
use support::guest::{message, ready};
use support::raw::{Raw, query};
use support::{PASSWORD, World, ask, code, try_ask};

#[tokio::test]
async fn a_session_finds_everything_as_it_left_it() {
    let w = World::new().await;
    let client = w.connect().await;
    ask(&client, "set dormouse").await;
    for round in 1..=5 {
        w.suspend().await;
        w.until("held", || w.sessions.metrics().held.get() == 1).await;
        assert_eq!(ask(&client, "get").await, "dormouse");
        assert_eq!(w.wakes(), 1 + round);
    }
    assert_eq!(w.sessions.metrics().bound.get(), 5);
    assert_eq!(w.sessions.metrics().lost.get(), 0);
}
