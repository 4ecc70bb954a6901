//! The host manager with a fake VMM: wakes, sleeps, deaths, deletes, the server's end.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use dormouse_api::host::control::SessionCounts;
use dormouse_api::host::{RestartError, State, SuspendError, WakeError};
use dormouse_api::metadata::{EventRow, Page};
use dormouse_vmm::snapshot::format::{Extent, Header, VERSION};
use support::{World, alive, until};

type Test = std::io::Result<()>;

#[tokio::test(flavor = "multi_thread")]
async fn a_new_database_sleeps_and_wakes_once_for_many() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[]).await;
    let db = w.create("a").await;
    assert_eq!(db.state().await, Some(State::Suspended));
    let wakes = (0..50).map(|_| {
        let (host, id) = (w.host.clone(), db.id.clone());
        tokio::spawn(async move { host.wake(&id).await.unwrap() })
    });
    let mut answers = Vec::new();
    for wake in wakes.collect::<Vec<_>>() {
        answers.push(wake.await.unwrap());
    }
    answers.dedup();
    assert_eq!(answers.len(), 1);
    assert_eq!(db.lives().len(), 1);
    assert_eq!(answers[0].socket, support::vmm_files(dir.path(), db.lives()[0]).1);
    assert_eq!(db.state().await, Some(State::Running));
    until("the cool-down is told", async || db.has("cool_down")).await;
    assert_eq!(db.read("cool_down"), "1000");
    w.host.shut_down().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_database_sleeps_with_its_sessions_counted_and_keeps_its_epoch() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[]).await;
    let db = w.create("a").await;
    let first = db.wake().await;
    *w.pooler.counts.lock().unwrap() = vec![SessionCounts { session: 7, sent: 100, received: 200 }];
    w.pooler.take();
    db.order("idle", "");
    db.becomes(State::Suspended).await;
    assert_eq!(w.pooler.take(), ["quiesce", "suspended"]);
    assert_eq!(db.read("counts"), r#"[{"received":200,"sent":100,"session":7}]"#);
    assert!(!alive(db.lives()[0]));
    assert_eq!(db.wake().await.epoch, first.epoch);
    w.host.shut_down().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_waiting_for_its_answer_keeps_it_awake() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[("plans.free.cool_down_ms", "20")]).await;
    let db = w.create("a").await;
    db.wake().await;
    *w.pooler.busy.lock().unwrap() = true;
    db.order("idle", "");
    until("the idle event is taken", async || !db.has("idle")).await;
    // The guest is asked again to say when it is idle.
    until("the cool-down is told", async || db.has("cool_down")).await;
    db.revoke("cool_down");
    until("the guest is asked again", async || db.has("cool_down")).await;
    assert_eq!(db.state().await, Some(State::Running));
    *w.pooler.busy.lock().unwrap() = false;
    db.order("idle", "");
    db.becomes(State::Suspended).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_calls_a_suspend_off() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[]).await;
    let db = w.create("a").await;
    let first = db.wake().await;
    w.pooler.take();
    db.order("hang", "");
    db.order("idle", "");
    until("the VMM suspends", async || db.has("hanging")).await;
    assert_eq!(db.state().await, Some(State::Suspending));
    assert_eq!(db.wake().await, first);
    assert_eq!(w.pooler.take(), ["quiesce", "release"]);
    assert_eq!(db.lives().len(), 1);
    // Likewise a client that speaks on a held connection.
    db.revoke("hanging");
    db.order("idle", "");
    until("the VMM suspends", async || db.has("hanging")).await;
    w.host.client_spoke(&db.id);
    db.becomes(State::Running).await;
    assert_eq!(w.pooler.take(), ["quiesce", "release"]);
    db.revoke("hang");
    w.host.shut_down().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_asked_suspend_waits_then_gives_up_and_hurts_nobody() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[("host.suspend_wait_ms", "300")]).await;
    let db = w.create("a").await;
    // Asleep already: done.
    w.host.suspend(&db.id).await.unwrap();
    db.wake().await;
    *w.pooler.busy.lock().unwrap() = true;
    let busy = w.host.suspend(&db.id).await.unwrap_err();
    assert!(matches!(busy, SuspendError::Busy(_)), "{busy}");
    assert_eq!(db.state().await, Some(State::Running));
    // A VMM that is busy counts the same.
    *w.pooler.busy.lock().unwrap() = false;
    db.order("busy", "");
    assert!(matches!(w.host.suspend(&db.id).await.unwrap_err(), SuspendError::Busy(_)));
    let last = w.pooler.take().pop();
    assert_eq!(last.as_deref(), Some("release"));
    // And once the statement ends in time, it is done.
    let (host, id) = (w.host.clone(), db.id.clone());
    let asked = tokio::spawn(async move { host.suspend(&id).await });
    db.revoke("busy");
    asked.await.unwrap().unwrap();
    assert_eq!(db.state().await, Some(State::Suspended));
    assert!(!alive(*db.lives().last().unwrap()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_dies_ends_its_sessions_and_starts_cold() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[]).await;
    let db = w.create("a").await;
    let first = db.wake().await;
    w.pooler.take();
    db.kill_vm();
    db.becomes(State::Stopped).await;
    assert_eq!(w.pooler.take(), ["end Died"]);
    assert!(db.message().await.unwrap().contains("killed"));
    assert_ne!(db.wake().await.epoch, first.epoch);
    assert_eq!(db.message().await, None);
    w.host.shut_down().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_wake_says_why_and_the_next_one_tries_again() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[("host.wake_timeout_ms", "1500")]).await;
    let db = w.create("a").await;
    db.order("fail", "69");
    let error = w.host.wake(&db.id).await.unwrap_err().to_string();
    assert!(error.contains("/dev/kvm") && error.contains("the test wants it to fail"), "{error}");
    assert_eq!(db.state().await, Some(State::Error));
    assert_eq!(db.message().await.map(|m| m.contains("/dev/kvm")), Some(true));
    db.revoke("fail");
    db.order("slow", "");
    let error = w.host.wake(&db.id).await.unwrap_err().to_string();
    assert!(error.contains("not ready within 1.5 s") && error.contains("host.wake_timeout_ms"), "{error}");
    assert!(!alive(*db.lives().last().unwrap()));
    db.revoke("slow");
    db.wake().await;
    assert_eq!(db.state().await, Some(State::Running));
    // An image that is gone.
    w.host.suspend(&db.id).await.unwrap();
    let image = dir.path().join("images/0123456789abcdef");
    std::fs::rename(&image, dir.path().join("aside"))?;
    let error = w.host.wake(&db.id).await.unwrap_err().to_string();
    assert!(error.contains("0123456789abcdef is gone"), "{error}");
    std::fs::rename(dir.path().join("aside"), &image)?;
    db.wake().await;
    w.host.shut_down().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_of_a_wake_is_bounded() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[("host.wake_queue", "3"), ("host.wake_timeout_ms", "1000")]).await;
    let db = w.create("a").await;
    db.order("slow", "");
    let wakes: Vec<_> = (0..5)
        .map(|_| {
            let (host, id) = (w.host.clone(), db.id.clone());
            tokio::spawn(async move { host.wake(&id).await.unwrap_err() })
        })
        .collect();
    let (mut full, mut failed) = (0, 0);
    for wake in wakes {
        match wake.await.unwrap() {
            WakeError::QueueFull => full += 1,
            WakeError::Failed(_) => failed += 1,
            other => panic!("{other}"),
        }
    }
    assert_eq!((full, failed), (2, 3));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_removes_everything_awake_or_asleep_and_can_be_asked_twice() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[]).await;
    for awake in [false, true] {
        let db = w.create("a").await;
        if awake {
            db.wake().await;
        }
        w.pooler.take();
        let lives = db.lives();
        let both = tokio::join!(w.host.delete(&db.id), w.host.delete(&db.id));
        both.0.unwrap();
        // The second finds it gone, or is told when it is.
        assert!(both.1.is_ok() || both.1.unwrap_err().to_string().contains("no such database"));
        assert!(w.pooler.take().contains(&"end Deleted".to_string()));
        assert!(lives.iter().all(|pid| !alive(*pid)));
        assert!(!db.folder().exists());
        assert_eq!(db.state().await, None);
        // Its actor may still be on its way out.
        assert!(matches!(w.host.wake(&db.id).await, Err(WakeError::NotFound | WakeError::Deleting)));
    }
    // The name is free again.
    w.create("a").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_end_puts_all_to_sleep_and_takes_no_more() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[("host.suspend_wait_ms", "500")]).await;
    let (idle, busy, asleep) = (w.create("idle").await, w.create("busy").await, w.create("asleep").await);
    idle.wake().await;
    busy.wake().await;
    busy.order("busy", "");
    w.host.shut_down().await;
    assert_eq!(idle.state().await, Some(State::Suspended));
    // A statement that does not end is shut down with Postgres, cleanly.
    assert_eq!(busy.state().await, Some(State::Stopped));
    assert_eq!(asleep.state().await, Some(State::Suspended));
    assert!(asleep.lives().is_empty());
    assert!(matches!(w.host.wake(&idle.id).await, Err(WakeError::ShuttingDown)));
    assert_eq!(w.host.at_work(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_does_not_wait() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[]).await;
    let db = w.create("a").await;
    db.wake().await;
    db.order("deaf", "");
    let host = w.host.clone();
    let down = tokio::spawn(async move { host.shut_down().await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!down.is_finished());
    w.host.cut();
    down.await.unwrap();
    assert!(!alive(db.lives()[0]));
    assert_eq!(db.state().await, Some(State::Stopped));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_told_in_order() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[]).await;
    let mut changes = w.host.changes();
    let db = w.create("a").await;
    db.wake().await;
    w.host.suspend(&db.id).await.unwrap();
    w.host.delete(&db.id).await.unwrap();
    let wanted = [
        Some(State::Suspended),
        Some(State::Resuming),
        Some(State::Running),
        Some(State::Suspending),
        Some(State::Suspended),
        Some(State::Deleting),
        None,
    ];
    for state in wanted {
        let change = changes.recv().await.unwrap();
        assert_eq!((change.state, change.name.as_str()), (state, "a"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cool_down_reaches_a_running_guest_and_outlives_a_sleep() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[]).await;
    let db = w.create("a").await;
    db.wake().await;
    let row = w.metadata.database(&db.id).await.unwrap().unwrap();
    w.host.set_cool_down(&row, Some(123)).await.unwrap();
    until("told", async || db.has("cool_down") && db.read("cool_down") == "123").await;
    w.host.suspend(&db.id).await.unwrap();
    db.order("cool_down", "");
    db.wake().await;
    until("told again", async || db.read("cool_down") == "123").await;
    w.host.shut_down().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_that_ends_before_it_is_ready_is_no_longer_said_to_listen() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[]).await;
    let db = w.create("a").await;
    db.order("slow", "");
    let (host, id) = (w.host.clone(), db.id.clone());
    let waking = tokio::spawn(async move { host.wake(&id).await });
    until("it to listen", async || *w.pooler.listening.lock().unwrap() && db.lives().len() == 1).await;
    db.kill_vm();
    assert!(waking.await.unwrap().is_err());
    assert!(!*w.pooler.listening.lock().unwrap());
    w.host.shut_down().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspend_that_fails_says_why_and_is_not_tried_at_every_idle_moment() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[("plans.free.cool_down_ms", "60000")]).await;
    let db = w.create("a").await;
    db.wake().await;
    let full = "cannot write the snapshot: No space left on device (os error 28)";
    db.order("refuse", full);
    let error = w.host.suspend(&db.id).await.unwrap_err();
    assert!(matches!(error, SuspendError::DiskFull(_)), "{error}");
    assert!(error.to_string().contains(full) && error.to_string().contains("Free some space"), "{error}");
    assert_eq!(db.state().await, Some(State::Running));
    assert_eq!(db.message().await, Some(error.to_string()));
    assert_eq!(w.pooler.take().pop().as_deref(), Some("release"));
    assert_eq!(db.read("refused").lines().count(), 3);
    // An idle moment within the pause writes no snapshot; who asks gets another attempt, and one is enough.
    db.order("idle", "");
    until("the idle event is sent", async || !db.has("idle")).await;
    db.order("refuse", "the machine is odd");
    let error = w.host.suspend(&db.id).await.unwrap_err();
    assert!(matches!(&error, SuspendError::Failed(why) if why == "the machine is odd"), "{error}");
    assert_eq!(db.read("refused").lines().count(), 4);
    // Mended: it sleeps, and the reason is gone.
    db.revoke("refuse");
    w.host.suspend(&db.id).await.unwrap();
    assert_eq!((db.state().await, db.message().await), (Some(State::Suspended), None));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_end_does_not_wait_for_a_suspend_that_cannot_be() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[]).await;
    let db = w.create("a").await;
    db.wake().await;
    db.order("refuse", "cannot write the snapshot: No space left on device (os error 28)");
    let started = std::time::Instant::now();
    w.host.shut_down().await;
    // `host.suspend_wait_ms` is 30 s.
    assert!(started.elapsed() < Duration::from_secs(15));
    assert_eq!(db.state().await, Some(State::Stopped));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_quotes_the_panic_on_the_guests_console() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[]).await;
    let db = w.create("a").await;
    db.order("console.log", "PANIC:  of a life before\n");
    db.wake().await;
    db.order("console.log", "PANIC:  of a life before\nLOG:  up\nPANIC:  could not fsync\nLOG:  terminated\n");
    db.kill_vm();
    db.becomes(State::Stopped).await;
    let message = db.message().await.unwrap();
    assert!(message.ends_with("its console's last: PANIC:  could not fsync"), "{message}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plans_new_memory_waits_for_a_cold_start() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[]).await;
    let db = w.create("a").await;
    db.wake().await;
    assert_eq!(db.read("memory_mib"), "512");
    w.host.suspend(&db.id).await.unwrap();
    let id = db.id.clone();
    let header = Header {
        version: VERSION,
        database: id.to_string(),
        image: "0123456789abcdef".into(),
        template: String::new(),
        epoch: "e".into(),
        identity: String::new(),
        base: String::new(),
        memory: 512 << 20,
        state: Extent::default(),
        index: Extent::default(),
    };
    std::fs::write(db.folder().join("snapshot"), header.encode().unwrap())?;
    let w = World::again(dir.path(), &[("plans.free.memory_mib", "1024")]).await;
    let db = w.database(&id);
    db.wake().await;
    assert_eq!(db.read("memory_mib"), "512");
    db.kill_vm();
    db.becomes(State::Stopped).await;
    db.wake().await;
    assert_eq!(db.read("memory_mib"), "1024");
    w.host.shut_down().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wakes_time_does_not_run_while_it_waits_for_its_turn() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[("host.wakes_at_once", "1"), ("host.wake_timeout_ms", "1000")]).await;
    let (slow, next) = (w.create("slow").await, w.create("next").await);
    slow.order("slow", "");
    let (host, id) = (w.host.clone(), slow.id.clone());
    let first = tokio::spawn(async move { host.wake(&id).await });
    until("the slow one has its turn", async || !slow.lives().is_empty()).await;
    // Two others, so that one waits longer than a wake may take.
    let other = w.create("other").await;
    other.order("slow", "");
    let (host, id) = (w.host.clone(), other.id.clone());
    let second = tokio::spawn(async move { host.wake(&id).await });
    until("the second waits", async || other.state().await == Some(State::Resuming)).await;
    next.wake().await;
    for failed in [first, second] {
        let error = failed.await.unwrap().unwrap_err().to_string();
        assert!(error.contains("not ready within 1 s"), "{error}");
    }
    w.host.shut_down().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_a_turn_is_bounded_and_says_what_it_waited_for() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[("host.wakes_at_once", "1"), ("host.wake_timeout_ms", "300")]).await;
    let mut waits = Vec::new();
    let mut all = Vec::new();
    for i in 0..7 {
        let db = w.create(&format!("slow{i}")).await;
        db.order("slow", "");
        let (host, id) = (w.host.clone(), db.id.clone());
        waits.push(tokio::spawn(async move { host.wake(&id).await.unwrap_err().to_string() }));
        all.push(db);
    }
    let mut errors = Vec::new();
    for wait in waits {
        errors.push(wait.await.unwrap());
    }
    let turn = errors.iter().filter(|e| e.contains("waiting 1.2 s for its turn") && e.contains("host.wakes_at_once")).count();
    let time = errors.iter().filter(|e| e.contains("not ready within 0.3 s")).count();
    assert!(turn >= 2 && time >= 1 && turn + time == 7, "{errors:?}");
    // Who had no turn was not started. (One that was may be killed before it says so.)
    assert!(all.iter().filter(|db| db.lives().is_empty()).count() >= turn);
    Ok(())
}

fn kinds(events: &[EventRow]) -> Vec<&str> {
    events.iter().rev().map(|event| event.kind.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleeping_database_is_moved_without_being_woken_and_starts_on_the_new_image() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[]).await;
    let db = w.create("a").await;
    db.wake().await;
    w.host.suspend(&db.id).await.unwrap();
    support::newer_image(dir.path(), "fedcba9876543210");
    // A snapshot goes on with its own image.
    db.wake().await;
    assert_eq!(db.read("image"), support::IMAGE);
    w.host.suspend(&db.id).await.unwrap();

    let row = async || w.metadata.database(&db.id).await.unwrap().unwrap();
    *w.pooler.clients.lock().unwrap() = 2;
    let error = w.host.adopt(&row().await, false).await.unwrap_err();
    assert!(matches!(error, RestartError::InUse(2)), "{error}");
    assert!(db.has("snapshot"));
    w.pooler.take();
    assert!(w.host.adopt(&row().await, true).await.unwrap());
    assert_eq!(w.pooler.take(), ["end Restarted"]);
    assert_eq!(row().await.image, "fedcba9876543210");
    assert_eq!((db.has("snapshot"), db.lives().len(), db.state().await), (false, 2, Some(State::Stopped)));
    assert!(!w.host.adopt(&row().await, true).await.unwrap());
    db.wake().await;
    assert_eq!(db.read("image"), "fedcba9876543210");
    w.host.shut_down().await;
    let events = w.host.events(&db.id, Page { after: 0, limit: 10 }).await.unwrap();
    assert_eq!(kinds(&events), ["created", "image_adopted", "started_cold"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleeping_database_whose_image_is_of_another_version_starts_cold_on_the_newest() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[]).await;
    let db = w.create("a").await;
    db.wake().await;
    w.host.suspend(&db.id).await.unwrap();
    support::write_manifest(dir.path(), support::IMAGE, dormouse_abi::ABI_VERSION + 1);
    support::newer_image(dir.path(), "fedcba9876543210");
    db.wake().await;
    assert_eq!(db.read("image"), "fedcba9876543210");
    assert_eq!(w.metadata.database(&db.id).await.unwrap().unwrap().image, "fedcba9876543210");
    w.host.shut_down().await;
    let events = w.host.events(&db.id, Page { after: 0, limit: 10 }).await.unwrap();
    assert_eq!(kinds(&events), ["created", "image_adopted", "started_cold"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_start_is_on_the_newest_image() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[]).await;
    let (db, never_woken) = (w.create("a").await, w.create("b").await);
    db.wake().await;
    support::newer_image(dir.path(), "fedcba9876543210");
    w.host.restart(&db.id, true).await.unwrap();
    assert_eq!(db.state().await, Some(State::Stopped));
    for db in [&db, &never_woken] {
        db.wake().await;
        assert_eq!(db.read("image"), "fedcba9876543210");
    }
    w.host.shut_down().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_a_guest_is_among_its_events() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[]).await;
    let db = w.create("a").await;
    db.wake().await;
    db.kill_vm();
    db.becomes(State::Stopped).await;
    db.order("fail", "75");
    let error = w.host.wake(&db.id).await.unwrap_err().to_string();
    assert!(error.contains("no progress") && error.contains("host.watchdog_ms"), "{error}");
    db.order("fail", "74");
    w.host.wake(&db.id).await.unwrap_err();
    db.revoke("fail");
    db.wake().await;
    w.host.restart(&db.id, false).await.unwrap();
    let events = w.host.events(&db.id, Page { after: 0, limit: 10 }).await.unwrap();
    assert_eq!(kinds(&events), ["created", "died", "hung", "wake_failed", "started_cold", "restarted"]);
    assert!(events[3].message.as_deref().unwrap().contains("no progress"), "{events:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_that_meets_a_wake_gives_it_the_next_start() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[]).await;
    let db = w.create("a").await;
    for _ in 0..10 {
        let (host, id) = (w.host.clone(), db.id.clone());
        let wake = tokio::spawn(async move { host.wake(&id).await });
        w.host.restart(&db.id, true).await.unwrap();
        wake.await.unwrap().unwrap();
    }
    w.host.shut_down().await;
    assert!(db.lives().iter().all(|pid| !alive(*pid)));
    Ok(())
}
