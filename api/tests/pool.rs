//! VMMs that stand by: who takes one, what replaces it, and that none is left behind.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::time::Duration;

use dormouse_api::host::State;
use support::{IMAGE, World, alive, killed, newer_image, until};

type Test = std::io::Result<()>;

/// Those that stand by for a home: their process ids, and the images they are for.
fn standing_by(home: &Path) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&str> = line.split('\0').collect();
        let value = |flag: &str| words.windows(2).find(|w| w[0] == flag).map(|w| w[1]);
        if value("--home") == home.to_str() && value("--database").is_some_and(|id| id.starts_with("db_standing")) && alive(pid) {
            found.push((pid, value("--image").unwrap().to_string()));
        }
    }
    found
}

/// Its process' command line says so from the start, but it can be taken only when it is ready.
async fn one_stands_by(w: &World) -> u32 {
    until("one stands by", async || w.host.standing_by() == 1).await;
    let all = standing_by(&w.home);
    assert_eq!(all.len(), 1);
    all[0].0
}

#[tokio::test]
async fn a_wake_takes_the_one_that_stands_by_and_another_takes_its_place() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[]).await;
    let first = one_stands_by(&w).await;
    let db = w.create("a").await;
    db.wake().await;
    assert_eq!(db.lives(), [first]);
    let second = one_stands_by(&w).await;
    assert_ne!(first, second);
    // It is the database's now: what it says is in the database's log, and a suspend ends it.
    db.order("idle", "");
    db.becomes(State::Suspended).await;
    assert!(!alive(first));
    db.wake().await;
    assert_eq!(db.lives(), [first, second]);
    w.host.shut_down().await;
    Ok(())
}

#[tokio::test]
async fn a_wake_for_which_none_stands_by_makes_one() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[("host.standby_vms", "0")]).await;
    let db = w.create("a").await;
    db.wake().await;
    assert_eq!(db.lives().len(), 1);
    assert!(standing_by(dir.path()).is_empty());
    w.host.shut_down().await;
    Ok(())
}

#[tokio::test]
async fn what_keeps_a_vmm_from_being_ready_is_told_as_of_any_wake() -> Test {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("never-ready"), "69")?;
    let w = World::new(dir.path(), &[]).await;
    let db = w.create("a").await;
    let error = w.host.wake(&db.id).await.unwrap_err().to_string();
    assert!(error.contains("/dev/kvm cannot be used: the test wants no VMM"), "{error}");
    std::fs::remove_file(dir.path().join("never-ready"))?;
    db.wake().await;
    w.host.shut_down().await;
    Ok(())
}

#[tokio::test]
async fn one_that_dies_is_replaced_and_a_wake_does_not_meet_the_dead() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[("host.standby_vms", "1")]).await;
    let first = one_stands_by(&w).await;
    // SAFETY: kill takes plain numbers; the process is this test's fake VMM.
    unsafe { libc::kill(first as i32, libc::SIGKILL) };
    until("it is dead", async || !alive(first)).await;
    let db = w.create("a").await;
    db.wake().await;
    assert_ne!(db.lives(), [first]);
    let second = one_stands_by(&w).await;
    assert_ne!(db.lives(), [second]);
    // SAFETY: as above.
    unsafe { libc::kill(second as i32, libc::SIGKILL) };
    until("another stands by", async || {
        w.host.standing_by() == 1 && standing_by(dir.path()).iter().all(|(pid, _)| *pid != second)
    })
    .await;
    w.host.shut_down().await;
    Ok(())
}

#[tokio::test]
async fn one_that_is_let_go_before_it_listens_leaves_nothing() -> Test {
    let dir = tempfile::tempdir()?;
    let late = dir.path().join("late");
    std::fs::write(&late, "")?;
    let w = World::new(dir.path(), &[]).await;
    let files = || std::fs::read_dir(dir.path().join("run/vmms")).unwrap().count();
    until("one is in the making", async || files() == 1 && standing_by(dir.path()).len() == 1).await;
    let made = standing_by(dir.path())[0].0;
    w.host.shut_down().await;
    drop(w);
    until("its note is gone", async || files() == 0).await;
    assert!(alive(made));
    std::fs::remove_file(&late)?;
    until("it has ended", async || !alive(made)).await;
    assert_eq!(files(), 0);
    Ok(())
}

#[tokio::test]
async fn a_new_image_empties_the_pool() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[]).await;
    one_stands_by(&w).await;
    assert_eq!(standing_by(dir.path())[0].1, IMAGE);
    newer_image(dir.path(), "fedcba9876543210");
    w.create("a").await.wake().await;
    until("one of the new image", async || {
        let all = standing_by(dir.path());
        !all.is_empty() && all.iter().all(|(_, image)| image == "fedcba9876543210")
    })
    .await;
    w.host.shut_down().await;
    Ok(())
}

#[tokio::test]
async fn none_is_made_while_a_wake_is_under_way() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[]).await;
    let first = one_stands_by(&w).await;
    let db = w.create("a").await;
    db.order("slow", "");
    let (host, id) = (w.host.clone(), db.id.clone());
    let wake = tokio::spawn(async move { host.wake(&id).await });
    until("it is taken", async || db.lives() == [first]).await;
    // Several times as long as the pool waits after a wake.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(standing_by(dir.path()).is_empty());
    db.kill_vm();
    wake.await.unwrap().unwrap_err();
    one_stands_by(&w).await;
    w.host.shut_down().await;
    Ok(())
}

#[tokio::test]
async fn none_is_left_when_the_server_ends() -> Test {
    let dir = tempfile::tempdir()?;
    let w = World::new(dir.path(), &[]).await;
    one_stands_by(&w).await;
    w.host.shut_down().await;
    until("all have ended", async || standing_by(dir.path()).is_empty()).await;
    Ok(())
}

#[test]
fn none_is_left_by_a_server_that_is_killed() -> Test {
    let dir = tempfile::tempdir()?;
    killed(async || {
        let w = World::new(dir.path(), &[]).await;
        one_stands_by(&w).await;
        // As a process' end does: nothing of it is told to anyone, and its descriptors are closed.
        drop(w);
    });
    killed(async || until("all have ended", async || standing_by(dir.path()).is_empty()).await);
    Ok(())
}
