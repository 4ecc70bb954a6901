//! What a server finds that was killed, and what it makes of it.

#![allow(clippy::unwrap_used)]

mod support;

use dormouse_api::host::State;
use dormouse_api::identity::{DatabaseId, TenantId};
use dormouse_api::metadata::NewDatabase;
use sqlx::Connection;
use support::{World, alive, killed, until};

type Test = std::io::Result<()>;

#[test]
fn a_running_vm_is_adopted_with_the_sessions_that_nobody_holds_any_more() -> Test {
    let dir = tempfile::tempdir()?;
    let (id, epoch) = killed(async || {
        let w = World::new(dir.path(), &[]).await;
        let db = w.create("a").await;
        let epoch = db.wake().await.epoch;
        db.order("sessions", r#"[{"session":3,"sent":1,"received":2}]"#);
        (db.id.clone(), epoch)
    });
    killed(async || {
        let w = World::again(dir.path(), &[]).await;
        let db = w.database(&id);
        assert_eq!(db.wake().await.epoch, epoch);
        assert_eq!(db.lives().len(), 1);
        assert_eq!(w.pooler.take(), ["awake 1"]);
        // A file's time is some milliseconds coarse; the snapshot must be seen to be newer than this server.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        // It is as much ours as one that we started.
        db.order("idle", "");
        db.becomes(State::Suspended).await;
        assert!(!alive(db.lives()[0]));
        // This server knows who was in the snapshot.
        db.wake().await;
        assert_eq!(w.pooler.take().last().unwrap(), "awake 0");
        w.host.shut_down().await;
    });
    // The next one does not.
    killed(async || {
        let w = World::again(dir.path(), &[]).await;
        let db = w.database(&id);
        assert_eq!(db.state().await, Some(State::Suspended));
        db.wake().await;
        assert_eq!(w.pooler.take(), ["awake 1"]);
        w.host.delete(&id).await.unwrap();
    });
    Ok(())
}

#[test]
fn an_adopted_vm_that_dies_is_noticed() -> Test {
    let dir = tempfile::tempdir()?;
    let id = killed(async || {
        let w = World::new(dir.path(), &[]).await;
        let db = w.create("a").await;
        db.wake().await;
        db.id.clone()
    });
    killed(async || {
        let w = World::again(dir.path(), &[]).await;
        let db = w.database(&id);
        db.becomes(State::Running).await;
        db.kill_vm();
        db.becomes(State::Stopped).await;
        assert!(w.pooler.take().contains(&"end Died".to_string()));
    });
    Ok(())
}

#[test]
fn a_vm_whose_database_is_gone_or_that_does_not_listen_is_killed() -> Test {
    let dir = tempfile::tempdir()?;
    let (gone, mute) = killed(async || {
        let w = World::new(dir.path(), &[]).await;
        let (gone, mute) = (w.create("gone").await, w.create("mute").await);
        gone.wake().await;
        mute.wake().await;
        std::fs::remove_file(support::vmm_files(dir.path(), mute.lives()[0]).1.with_extension("ctl")).unwrap();
        w.metadata.remove_database(&gone.id).await.unwrap();
        (gone.lives()[0], (mute.lives()[0], mute.id.clone()))
    });
    killed(async || {
        let w = World::unreconciled(dir.path(), &[]).await;
        let done = w.host.reconcile().await.unwrap();
        assert_eq!((done.killed, done.adopted, done.rested), (2, 0, 1));
        assert!(!alive(gone) && !alive(mute.0));
        let db = w.database(&mute.1);
        assert_eq!(db.state().await, Some(State::Stopped));
        db.wake().await;
        w.host.shut_down().await;
    });
    Ok(())
}

/// What counts is what the server noted, not what a process says of itself.
#[test]
fn a_vm_is_found_whatever_its_command_line_says_and_nothing_else_is_taken_for_one() -> Test {
    let dir = tempfile::tempdir()?;
    let (adopted, killed_one, mut other) = killed(async || {
        let w = World::new(dir.path(), &[]).await;
        let (a, b) = (w.create("a").await, w.create("b").await);
        for db in [&a, &b] {
            db.order("disguise", "");
            db.wake().await;
            let line = std::fs::read_to_string(format!("/proc/{}/cmdline", db.lives()[0])).unwrap();
            assert!(!line.contains(db.id.as_str()) && !line.contains("vmm"), "{line}");
        }
        w.metadata.remove_database(&b.id).await.unwrap();
        let home = dir.path().to_str().unwrap();
        let words = ["-c", "read never", "vmm", "--home", home, "--database", a.id.as_str()];
        let other = std::process::Command::new("sh").args(words).stdin(std::process::Stdio::piped()).spawn().unwrap();
        ((a.id.clone(), a.lives()[0]), b.lives()[0], other)
    });
    killed(async || {
        let w = World::unreconciled(dir.path(), &[]).await;
        let done = w.host.reconcile().await.unwrap();
        assert_eq!((done.adopted, done.killed), (1, 1));
        assert!(alive(adopted.1) && !alive(killed_one) && alive(other.id()));
        let db = w.database(&adopted.0);
        db.becomes(State::Running).await;
        w.host.shut_down().await;
        assert!(!alive(adopted.1));
        // One that was being made to stand by takes its note along as it ends.
        let noted = || std::fs::read_dir(dir.path().join("run/vmms")).unwrap().count();
        until("nothing to be noted of those that are gone", async || noted() == 0).await;
    });
    other.kill()?;
    other.wait()?;
    Ok(())
}

#[test]
fn what_was_being_made_is_undone_and_what_was_being_deleted_is_finished() -> Test {
    let dir = tempfile::tempdir()?;
    let (made, deleted) = killed(async || {
        let w = World::new(dir.path(), &[]).await;
        let id = DatabaseId::random().unwrap();
        let tenant = TenantId::default_tenant();
        let new = NewDatabase {
            id: id.clone(),
            tenant,
            name: "made".into(),
            state: State::Creating,
            plan: "free".into(),
            plan_databases: 10,
            pg_version: 17,
            image: "0123456789abcdef".into(),
            cool_down_ms: None,
            role: "app".into(),
            verifier: "x".into(),
        };
        w.metadata.create_database(new).await.unwrap();
        std::fs::create_dir_all(dir.path().join("databases").join(id.as_str()).join("layer")).unwrap();
        let deleted = w.create("deleted").await;
        deleted.wake().await;
        w.metadata.set_state(&deleted.id, State::Deleting, None).await.unwrap();
        (id, (deleted.id.clone(), deleted.lives()[0]))
    });
    killed(async || {
        let w = World::unreconciled(dir.path(), &[]).await;
        let done = w.host.reconcile().await.unwrap();
        assert_eq!((done.undone, done.deleted, done.killed), (1, 1, 1));
        assert!(!alive(deleted.1));
        for id in [made, deleted.0] {
            assert_eq!(w.database(&id).state().await, None);
            assert!(!w.database(&id).folder().exists());
        }
        w.create("made").await;
        w.create("deleted").await;
    });
    Ok(())
}

#[test]
fn rows_at_work_without_a_vm_rest_as_their_files_say() -> Test {
    let dir = tempfile::tempdir()?;
    let ids = killed(async || {
        let w = World::new(dir.path(), &[]).await;
        let mut ids = Vec::new();
        for (name, snapshot) in [("with", true), ("without", false)] {
            let db = w.create(name).await;
            db.wake().await;
            let pid = db.lives()[0];
            db.kill_vm();
            until("dead", async || !alive(pid)).await;
            db.becomes(State::Stopped).await;
            db.noted().await;
            if snapshot {
                db.order("snapshot", "epoch");
            }
            ids.push(db.id.clone());
        }
        let never = w.create("never").await;
        ids.push(never.id.clone());
        // As if the server had been killed before the ends were seen.
        for (id, state) in ids.iter().zip([State::Suspending, State::Running, State::Resuming]) {
            w.metadata.set_state(id, state, None).await.unwrap();
        }
        ids
    });
    killed(async || {
        let w = World::again(dir.path(), &[]).await;
        let mut states = Vec::new();
        for id in &ids {
            states.push(w.database(id).state().await.unwrap());
        }
        assert_eq!(states, [State::Suspended, State::Stopped, State::Suspended]);
    });
    Ok(())
}

#[test]
fn a_database_that_was_answered_for_is_there_after_a_crash_without_any_file() -> Test {
    let dir = tempfile::tempdir()?;
    let (ids, gone) = killed(async || {
        let w = World::new(dir.path(), &[]).await;
        let mut ids = Vec::new();
        for name in ["a", "b", "c"] {
            ids.push(w.create(name).await.id.clone());
        }
        let gone = w.create("gone").await.id.clone();
        w.host.delete(&gone).await.unwrap();
        (ids, gone)
    });
    assert_eq!(std::fs::read_dir(dir.path().join("databases"))?.count(), 0);
    killed(async || {
        let w = World::unreconciled(dir.path(), &[]).await;
        assert_eq!(w.host.reconcile().await.unwrap(), Default::default());
        assert_eq!(w.database(&gone).state().await, None);
        let [a, b, c] = [0, 1, 2].map(|n| w.database(&ids[n]));
        assert_eq!(a.state().await, Some(State::Suspended));
        // Each is used as any other.
        a.wake().await;
        assert!(a.has("layer"));
        assert!(w.metadata.database(&a.id).await.unwrap().unwrap().has_files);
        w.host.suspend(&b.id).await.unwrap();
        w.host.restart(&b.id, true).await.unwrap();
        w.host.delete(&c.id).await.unwrap();
        assert_eq!(c.state().await, None);
        w.host.shut_down().await;
    });
    Ok(())
}

#[test]
fn a_first_wake_that_a_crash_cut_short_is_made_again() -> Test {
    let dir = tempfile::tempdir()?;
    killed(async || {
        let w = World::new(dir.path(), &[]).await;
        let db = w.create("a").await;
        // Of the folders, one; of the row's note, nothing.
        std::fs::create_dir(db.folder()).unwrap();
        db.wake().await;
        assert!(w.metadata.database(&db.id).await.unwrap().unwrap().has_files);
        w.host.shut_down().await;
    });
    Ok(())
}

/// Such as where the disk with the data was not mounted: it must not come up empty.
#[test]
fn a_database_whose_files_are_gone_is_not_taken_for_a_new_one() -> Test {
    let dir = tempfile::tempdir()?;
    let aside = dir.path().join("aside");
    let id = killed(async || {
        let w = World::new(dir.path(), &[]).await;
        let db = w.create("a").await;
        db.wake().await;
        w.host.suspend(&db.id).await.unwrap();
        until("asleep", async || w.host.at_work() == 0).await;
        std::fs::rename(db.folder(), &aside).unwrap();
        let error = w.host.wake(&db.id).await.unwrap_err().to_string();
        assert!(error.contains("its files are gone"), "{error}");
        // Nor is it moved to a newer image: its layer, once it is back, lies over the template of this one.
        let error = w.host.restart(&db.id, true).await.unwrap_err().to_string();
        assert!(error.contains("its files are gone"), "{error}");
        assert!(!db.folder().exists());
        // As if it had been at work when the server was killed.
        db.noted().await;
        w.metadata.set_state(&db.id, State::Running, None).await.unwrap();
        db.id.clone()
    });
    killed(async || {
        let w = World::again(dir.path(), &[]).await;
        let db = w.database(&id);
        let row = w.metadata.database(&db.id).await.unwrap().unwrap();
        assert_eq!(row.state, State::Error);
        assert!(row.message.unwrap().contains("its files are gone"));
        std::fs::rename(&aside, db.folder()).unwrap();
        db.wake().await;
        w.host.suspend(&db.id).await.unwrap();
        until("asleep", async || w.host.at_work() == 0).await;
        std::fs::remove_dir_all(db.folder()).unwrap();
        w.host.delete(&db.id).await.unwrap();
        assert_eq!(db.state().await, None);
    });
    Ok(())
}

/// Else its data would be there and its row not know, and with its disk not mounted it would come up empty.
#[test]
fn a_first_wake_that_cannot_be_noted_is_refused_and_made_again_later() -> Test {
    let dir = tempfile::tempdir()?;
    killed(async || {
        let w = World::new(dir.path(), &[]).await;
        let db = w.create("a").await;
        let mut sql = sqlx::SqliteConnection::connect(dir.path().join("dormouse.db").to_str().unwrap()).await.unwrap();
        let full = "CREATE TRIGGER full BEFORE UPDATE OF has_files ON databases BEGIN SELECT RAISE(ABORT, 'full'); END";
        sqlx::query(full).execute(&mut sql).await.unwrap();
        let error = w.host.wake(&db.id).await.unwrap_err().to_string();
        assert!(error.contains("cannot be noted"), "{error}");
        until("at rest", async || w.host.at_work() == 0).await;
        sqlx::query("DROP TRIGGER full").execute(&mut sql).await.unwrap();
        db.wake().await;
        assert!(w.metadata.database(&db.id).await.unwrap().unwrap().has_files);
        w.host.shut_down().await;
    });
    Ok(())
}

/// Its row was read by the wake and is gone when that comes to note something in it.
#[test]
fn a_first_wake_of_a_database_that_is_deleted_meanwhile_leaves_nothing() -> Test {
    let dir = tempfile::tempdir()?;
    killed(async || {
        let w = World::new(dir.path(), &[]).await;
        let db = w.create("a").await;
        let mut sql = sqlx::SqliteConnection::connect(dir.path().join("dormouse.db").to_str().unwrap()).await.unwrap();
        let gone = "CREATE TRIGGER gone BEFORE UPDATE OF has_files ON databases BEGIN SELECT RAISE(IGNORE); END";
        sqlx::query(gone).execute(&mut sql).await.unwrap();
        let error = w.host.wake(&db.id).await.unwrap_err().to_string();
        assert!(error.contains("was deleted"), "{error}");
        assert!(!db.folder().exists());
        sqlx::query("DROP TRIGGER gone").execute(&mut sql).await.unwrap();
        // And with both at once, in whichever order they come.
        for n in 0..20 {
            let db = w.create(&format!("b{n}")).await;
            let (_, deleted) = tokio::join!(w.host.wake(&db.id), w.host.delete(&db.id));
            deleted.unwrap();
            until("at rest", async || w.host.at_work() == 0).await;
            assert_eq!(db.state().await, None);
            assert!(!db.folder().exists());
        }
        w.host.shut_down().await;
    });
    Ok(())
}

/// It would keep its database from waking until it fell asleep by itself.
#[test]
fn a_vm_that_could_not_be_noted_is_found_by_its_socket_and_ended() -> Test {
    let dir = tempfile::tempdir()?;
    let (ids, pids) = killed(async || {
        let w = World::new(dir.path(), &[]).await;
        let (mut ids, mut pids) = (Vec::new(), Vec::new());
        for name in ["at work", "at rest", "deleted", "being deleted"] {
            let db = w.create(name).await;
            db.wake().await;
            db.noted().await;
            pids.push(db.lives()[0]);
            // As if the disk had been full when it was claimed: half a note, and none.
            let note = support::vmm_files(dir.path(), db.lives()[0]).0;
            if name == "at work" { std::fs::write(note, "").unwrap() } else { std::fs::remove_file(note).unwrap() }
            ids.push(db.id.clone());
        }
        // Nor could the rows be written.
        for id in &ids[1..3] {
            w.metadata.set_state(id, State::Suspended, None).await.unwrap();
        }
        w.metadata.set_state(&ids[3], State::Deleting, None).await.unwrap();
        (ids, pids)
    });
    killed(async || {
        let w = World::unreconciled(dir.path(), &[]).await;
        let done = w.host.reconcile().await.unwrap();
        assert_eq!((done.adopted, done.killed, done.deleted, done.rested), (0, 0, 1, 1));
        assert!(pids.iter().all(|pid| !alive(*pid)));
        for id in &ids[..2] {
            let db = w.database(id);
            db.wake().await;
            assert_eq!(db.lives().len(), 2);
        }
        w.host.delete(&ids[2]).await.unwrap();
        w.host.shut_down().await;
    });
    Ok(())
}

/// A layer that was emptied later would have been taken for a new database's.
#[test]
fn that_a_database_has_data_is_noted_however_its_first_vm_ended() -> Test {
    let dir = tempfile::tempdir()?;
    let (seen, unseen) = killed(async || {
        let w = World::new(dir.path(), &[]).await;
        let (seen, unseen) = (w.create("seen").await, w.create("unseen").await);
        for db in [&seen, &unseen] {
            db.wake().await;
            db.noted().await;
        }
        seen.kill_vm();
        until("it to be noted", async || w.metadata.database(&seen.id).await.unwrap().unwrap().written).await;
        assert!(!w.metadata.database(&unseen.id).await.unwrap().unwrap().written);
        (seen.id.clone(), (unseen.id.clone(), unseen.lives()[0]))
    });
    // SAFETY: kill takes plain numbers; the process is the fake VMM of this test.
    unsafe { libc::kill(unseen.1 as i32, libc::SIGKILL) };
    killed(async || {
        until("it to be gone", async || !alive(unseen.1)).await;
        let w = World::again(dir.path(), &[]).await;
        until("it to be noted", async || w.metadata.database(&unseen.0).await.unwrap().unwrap().written).await;
        w.database(&seen).wake().await;
        w.host.shut_down().await;
    });
    Ok(())
}
