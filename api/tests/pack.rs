//! Packing that fails, hangs or is cut short by the server's end.

#![allow(clippy::unwrap_used)]

mod support;

use dormouse_api::host::{PackError, State};
use dormouse_api::metadata::{Page, now_ms};
use support::{Database, World, alive, killed, until};

async fn asleep<'a>(w: &'a World, pack: Option<&str>) -> Database<'a> {
    let db = w.create("a").await;
    db.wake().await;
    // Before it sleeps: it may be packed as soon as it does.
    pack.inspect(|how| db.order("pack", how));
    w.host.suspend(&db.id).await.unwrap();
    db
}

fn packings(db: &Database<'_>) -> Vec<u32> {
    let text = std::fs::read_to_string(db.folder().join("packings")).unwrap_or_default();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// It was tried again every hour for ever, with two lines in the log each time.
#[tokio::test(flavor = "multi_thread")]
async fn packing_that_fails_is_told_of_once_and_tried_again_ever_later() {
    let dir = tempfile::tempdir().unwrap();
    let w = World::new(dir.path(), &[("host.pack_after_s", "3")]).await;
    let began = now_ms();
    let db = asleep(&w, Some("1")).await;
    until("the second attempt", async || w.host.metrics().pack_failures.get() >= 2).await;
    // The pause after it is twice as long as a sleep is to be: noted as a sleep that begins later than the attempt did.
    until("it to be put off", async || w.metadata.longest_asleep().await.unwrap().is_some_and(|(_, since)| since > began + 6000)).await;
    let events = w.host.events(&db.id, Page { after: 0, limit: 100 }).await.unwrap();
    let told: Vec<_> = events.iter().filter(|event| event.kind == "pack_failed").collect();
    assert_eq!(told.len(), 1, "{events:?}");
    assert!(!db.has("packed.tmp"));
    db.revoke("pack");
    until("the next attempt", async || db.has("packed")).await;
    assert!(packings(&db).len() >= 3);
    until("it to be noted", async || w.metadata.longest_asleep().await.unwrap().is_none()).await;
    assert_eq!(w.host.metrics().packed.get(), 1);
    assert_eq!(w.host.metrics().pack_failures.get(), packings(&db).len() as u64 - 1);
    w.host.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn packing_that_takes_too_long_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let w = World::new(dir.path(), &[("host.pack_timeout_s", "3")]).await;
    let db = asleep(&w, Some("hang")).await;
    let error = w.host.pack(&db.id).await.unwrap_err();
    assert!(matches!(&error, PackError::Failed(why) if why.contains("host.pack_timeout_s")), "{error}");
    assert!(!alive(packings(&db)[0]) && !db.has("packed.tmp"));
    assert_eq!(db.state().await, Some(State::Suspended));
    db.wake().await;
    w.host.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_logs_of_one_that_is_packed_the_last_lines_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let w = World::new(dir.path(), &[]).await;
    let db = asleep(&w, None).await;
    for (log, last) in [("console.log", "LOG:  last of the console"), ("vmm.log", "last of the VMM")] {
        let old: String = (0..50_000).map(|n| format!("line {n}\n")).collect();
        db.order(&format!("{log}.1"), &old);
        db.order(log, &format!("{old}{last}\n"));
    }
    w.host.pack(&db.id).await.unwrap();
    for (log, last) in [("console.log", "LOG:  last of the console"), ("vmm.log", "last of the VMM")] {
        let kept = db.read(log);
        assert!(kept.len() <= 16 << 10 && kept.len() > 15 << 10, "{}", kept.len());
        assert!(kept.starts_with("line ") && kept.contains(last), "{log}");
        assert!(!db.has(&format!("{log}.1")));
    }
    w.host.shut_down().await;
}

#[test]
fn what_a_packing_left_that_ended_with_its_server_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (hung, cut) = killed(async || {
        let w = World::new(dir.path(), &[]).await;
        let hung = asleep(&w, None).await;
        hung.order("pack", "hang");
        let (host, id) = (w.host.clone(), hung.id.clone());
        tokio::spawn(async move { host.pack(&id).await });
        until("it to be under way", async || !packings(&hung).is_empty()).await;
        // As after a power cut.
        let cut = w.create("b").await;
        cut.wake().await;
        w.host.suspend(&cut.id).await.unwrap();
        cut.order("packed.tmp", "");
        (hung.id.clone(), cut.id.clone())
    });
    killed(async || {
        let w = World::again(dir.path(), &[]).await;
        let (hung, cut) = (w.database(&hung), w.database(&cut));
        assert!(!alive(packings(&hung)[0]) && !hung.has("packed.tmp"));
        assert_eq!(hung.state().await, Some(State::Suspended));
        cut.wake().await;
        w.host.suspend(&cut.id).await.unwrap();
        cut.becomes(State::Suspended).await;
        assert!(!cut.has("packed.tmp"));
        w.host.shut_down().await;
    });
}
