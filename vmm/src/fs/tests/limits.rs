//! The lock, the identity, the gate, the storage limit, and what an empty layer owns.

use super::client::Client;
use super::{HASH, folders};
use crate::fs::{FsDevice, FsError, FsOptions};
use crate::layer;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

#[test]
fn a_second_device_on_a_layer_is_refused() {
    let f = folders();
    let first = FsDevice::open(&f.layer, &f.template, FsOptions::new(HASH)).unwrap();
    let second = FsDevice::open(&f.layer, &f.template, FsOptions::new(HASH));
    assert!(matches!(second, Err(FsError::LayerLocked(path)) if path == f.layer));
    let saved = first.save();
    let second = FsDevice::restore(&f.layer, &f.template, FsOptions::new(HASH), &saved);
    assert!(matches!(second, Err(FsError::LayerLocked(_))));
    let out = f.temp.path().join("out");
    assert!(matches!(layer::merge(&f.layer, &f.template, HASH, &out), Err(FsError::LayerLocked(_))));
    drop(first);
    assert!(FsDevice::open(&f.layer, &f.template, FsOptions::new(HASH)).is_ok());
}

#[test]
fn another_template_is_refused() {
    let f = folders();
    let device = FsDevice::open(&f.layer, &f.template, FsOptions::new(HASH)).unwrap();
    let saved = device.save();
    drop(device);
    let other = || FsOptions::new("ffff");
    for result in [
        FsDevice::open(&f.layer, &f.template, other()),
        FsDevice::restore(&f.layer, &f.template, other(), &saved),
    ] {
        assert!(matches!(result, Err(FsError::OtherTemplate { recorded, given }) if recorded == HASH && given == "ffff"));
    }
}

#[test]
fn reading_leaves_a_layer_empty_and_the_gate_shut() {
    let f = folders();
    let mut device = FsDevice::open(&f.layer, &f.template, FsOptions::new(HASH)).unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let count = calls.clone();
    device.set_gate(Box::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }));
    let mut client = Client::new(device);
    let node = client.walk("base/5/100").unwrap().node;
    client.read(node, 0, 8192).unwrap();
    client.names(1, 4096, true).unwrap();
    assert_eq!(client.unlink(1, b"not there"), Err(libc::ENOENT));
    assert_eq!(client.write(node, 0, b""), Ok(0));
    assert_eq!(calls.load(Ordering::Relaxed), 0);
    assert!(client.device.is_empty() && !client.device.has_changed());
    let names: Vec<_> = super::tree(&f.layer).into_iter().map(|(p, (_, c))| (p, c.len())).collect();
    assert_eq!(names, [("journal".into(), 40), ("lock".into(), 0)]);
    assert!(layer::is_empty(&f.layer).unwrap());
    client.write(node, 0, b"x").unwrap();
    client.write(node, 0, b"y").unwrap();
    client.mkdir(1, b"d").unwrap();
    client.syncfs().unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    assert!(!client.device.is_empty() && client.device.has_changed());
    drop(client);
    assert!(!layer::is_empty(&f.layer).unwrap());
}

#[test]
fn a_gate_that_fails_holds_the_change_back() {
    let f = folders();
    let mut device = FsDevice::open(&f.layer, &f.template, FsOptions::new(HASH)).unwrap();
    let mut first = true;
    device.set_gate(Box::new(move || {
        if std::mem::take(&mut first) { Err(std::io::ErrorKind::Other.into()) } else { Ok(()) }
    }));
    let mut client = Client::new(device);
    assert_eq!(client.mkdir(1, b"d"), Err(libc::EIO));
    assert_eq!(client.lookup(1, b"d"), Err(libc::ENOENT));
    assert!(client.mkdir(1, b"d").is_ok());
}

#[test]
fn a_snapshot_fits_no_layer_that_changed_since() {
    let f = folders();
    let mut client = Client::new(FsDevice::open(&f.layer, &f.template, FsOptions::new(HASH)).unwrap());
    let node = client.walk("base/5/100").unwrap().node;
    client.write(node, 0, &[1; 8192]).unwrap();
    client.syncfs().unwrap();
    let saved = client.device.save();
    drop(client);
    // One overwrite in place, which changes neither names nor maps.
    let mut client = Client::new(FsDevice::open(&f.layer, &f.template, FsOptions::new(HASH)).unwrap());
    let node = client.walk("base/5/100").unwrap().node;
    client.write(node, 0, &[2; 8192]).unwrap();
    client.syncfs().unwrap();
    drop(client);
    let stale = FsDevice::restore(&f.layer, &f.template, FsOptions::new(HASH), &saved);
    assert!(matches!(stale, Err(FsError::SnapshotStale { .. })));
}

#[test]
fn a_clone_starts_from_the_saved_state_of_an_empty_layer() {
    let f = folders();
    let mut golden = Client::new(FsDevice::open(&f.layer, &f.template, FsOptions::new(HASH)).unwrap());
    let node = golden.walk("base/5/100").unwrap().node;
    let content = golden.read(node, 0, 8192).unwrap();
    let saved = golden.device.save();
    let other = f.temp.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let clone = FsDevice::restore(&other, &f.template, FsOptions::new(HASH), &saved).unwrap();
    let mut clone = Client::new(clone);
    assert_eq!(clone.read(node, 0, 8192).unwrap(), content);
    clone.write(node, 0, &[3; 8192]).unwrap();
    clone.syncfs().unwrap();
    assert_eq!(golden.read(node, 0, 8192).unwrap(), content);
    assert_eq!(clone.read(node, 0, 8192).unwrap(), [3; 8192]);
}

#[test]
fn the_storage_limit_is_enospc_until_something_is_deleted() {
    let f = folders();
    let mut options = FsOptions::new(HASH);
    options.storage_limit = Some(1 << 20);
    let mut client = Client::new(FsDevice::open(&f.layer, &f.template, options).unwrap());
    let a = client.create(1, b"a", 0o600, 0).unwrap().node;
    let block = [1; 8192];
    let n = (0..1000).take_while(|i| client.write(a, i * 8192, &block).is_ok()).count() as u64;
    assert!((100..128).contains(&n), "{n}");
    assert_eq!(client.write(a, n * 8192, &block), Err(libc::ENOSPC));
    // What is there can be written again, flushed, and cut; template files can be read but not copied up.
    assert_eq!(client.write(a, 0, &[2; 8192]), Ok(8192));
    assert_eq!(client.fsync(a), Ok(()));
    let rel = client.walk("base/5/101").unwrap().node;
    assert_eq!(client.write(rel, 0, &[2; 90_000]), Err(libc::ENOSPC));
    assert_eq!(client.read(rel, 0, 8192).unwrap().len(), 8192);
    assert!(client.device.disk_bytes() <= 1 << 20);
    client.unlink(1, b"a").unwrap();
    assert_eq!(client.write(rel, 0, &[2; 90_000]), Err(libc::ENOSPC));
    client.forget(a);
    assert_eq!(client.write(rel, 0, &[2; 90_000]), Ok(90_000));
    client.syncfs().unwrap();
    assert_eq!(std::fs::read_dir(f.layer.join("files")).unwrap().count(), 1);
}

#[test]
fn what_was_allocated_can_be_written_when_there_is_no_more_room() {
    let f = folders();
    let mut options = FsOptions::new(HASH);
    options.storage_limit = Some(1 << 20);
    let mut client = Client::new(FsDevice::open(&f.layer, &f.template, options).unwrap());
    // A relation of the template's: most of its blocks are not here, so that its disk is less than its length.
    let rel = client.walk("base/5/101").unwrap().node;
    let size = client.getattr(rel).unwrap().size;
    let end = size.next_multiple_of(8192);
    client.write(rel, size, &vec![1; (end - size) as usize]).unwrap();
    client.fallocate(rel, end, 4 * 8192, 0).unwrap();
    client.write(rel, end + 4 * 8192, &[1; 8192]).unwrap();
    client.fallocate(rel, end + 5 * 8192, 4 * 8192, 0).unwrap();
    // The log: one hole, of which some is asked for. It is refused where the template's blocks would need room.
    let log = client.create(1, b"log", 0o600, 0).unwrap().node;
    client.setattr(log, Some(20 * 8192), None).unwrap();
    assert_eq!(client.room(log, 4 * 8192, 3 * 8192), Ok(7 * 8192));
    assert_eq!(client.room(log, 7 * 8192, 8192), Ok(8 * 8192));
    assert_eq!(client.getattr(log).unwrap().size, 20 * 8192);
    assert_eq!(client.room(rel, 0, 8192), Err(libc::EOPNOTSUPP));
    let full = client.create(1, b"full", 0o600, 0).unwrap().node;
    let fill = |client: &mut Client, from: u64| {
        from + (from..1000).take_while(|i| client.write(full, i * 8192, &[1; 8192]).is_ok()).count() as u64
    };
    let filled = fill(&mut client, 0);
    assert_eq!(client.fallocate(full, filled * 8192, 65_536, 0), Err(libc::ENOSPC));
    assert_eq!(client.fsync(rel), Ok(()));
    assert_eq!(client.write(rel, end, &[2; 9 * 8192]), Ok(9 * 8192), "as one write of many blocks, over all kinds");
    assert_eq!(client.write(rel, end + 9 * 8192, &[2; 8192]), Err(libc::ENOSPC));
    assert_eq!(client.write(log, 4 * 8192, &[2; 4 * 8192]), Ok(4 * 8192));
    assert_eq!(client.room(log, 5 * 8192, 8192), Ok(8 * 8192), "as far as it goes");
    assert_eq!(client.write(log, 8 * 8192, &[2; 8192]), Err(libc::ENOSPC));
    assert_eq!(client.room(log, 8 * 8192, 8192), Err(libc::ENOSPC));
    client.setattr(rel, Some(end + 8192), None).unwrap();
    client.setattr(rel, Some(end + 3 * 8192), None).unwrap();
    fill(&mut client, filled);
    assert_eq!(client.write(rel, end + 8192, &[2; 8192 * 2]), Err(libc::ENOSPC), "what was cut has no room any more");
}

#[test]
fn room_past_the_end_lasts_until_the_flush() {
    let f = folders();
    let mut options = FsOptions::new(HASH);
    options.storage_limit = Some(1 << 20);
    let mut client = Client::new(FsDevice::open(&f.layer, &f.template, options).unwrap());
    let block = [1; 8192];
    let fill = |client: &mut Client, node: u64| {
        let from = client.getattr(node).unwrap().size / 8192;
        (from..1000).take_while(|i| client.write(node, i * 8192, &block).is_ok()).count()
    };
    let temporary = client.create(1, b"pgsql_tmp7.0", 0o600, 0).unwrap().node;
    client.write(temporary, 0, &block).unwrap();
    assert_eq!(client.room(temporary, 8192, 20 * 8192), Ok(21 * 8192));
    assert_eq!(client.getattr(temporary).unwrap().size, 8192);
    let full = client.create(1, b"full", 0o600, 0).unwrap().node;
    fill(&mut client, full);
    // What was granted can be used, in any order, and no more.
    assert_eq!(client.write(temporary, 10 * 8192, &[2; 11 * 8192]), Ok(11 * 8192));
    assert_eq!(client.write(temporary, 8192, &[2; 4 * 8192]), Ok(4 * 8192));
    assert_eq!(client.write(temporary, 21 * 8192, &block), Err(libc::ENOSPC));
    assert_eq!(client.room(temporary, 21 * 8192, 8192), Err(libc::ENOSPC));
    client.setattr(temporary, Some(8192), None).unwrap();
    assert_eq!(client.room(temporary, 8192, 4 * 8192), Ok(5 * 8192));
    let used = client.device.disk_bytes();
    client.fsync(temporary).unwrap();
    assert_eq!(used - client.device.disk_bytes(), 4 * 8192, "what was not used is given back");
    assert!(fill(&mut client, full) >= 4);
    assert_eq!(client.write(temporary, 8192, &block), Err(libc::ENOSPC));
}

/// Writes blocks to a new file until there is no more room.
fn fill_up(client: &mut Client) {
    let full = client.create(1, b"full", 0o600, 0).unwrap().node;
    assert!((0..1000).any(|i| client.write(full, i * 8192, &[1; 8192]).is_err()));
}

fn with_limit(f: &super::Folders) -> Client {
    let mut options = FsOptions::new(HASH);
    options.storage_limit = Some(1 << 20);
    Client::new(FsDevice::open(&f.layer, &f.template, options).unwrap())
}

#[test]
fn a_suspend_that_is_called_off_leaves_the_room_that_was_granted() {
    let f = folders();
    let mut client = with_limit(&f);
    let file = client.create(1, b"pgsql_tmp7.0", 0o600, 0).unwrap().node;
    client.write(file, 0, &[1; 8192]).unwrap();
    assert_eq!(client.room(file, 8192, 20 * 8192), Ok(21 * 8192));
    client.device.flush_all().unwrap();
    fill_up(&mut client);
    assert_eq!(client.write(file, 8192, &[2; 20 * 8192]), Ok(20 * 8192));
    // One that is not: the room goes once it is committed, and is told of with the next life's first flush.
    client.setattr(file, Some(8192), None).unwrap();
    assert_eq!(client.room(file, 8192, 20 * 8192), Ok(21 * 8192));
    client.device.flush_all().unwrap();
    let (saved, used) = (client.device.save(), client.device.disk_bytes());
    let on_host = || -> u64 {
        let files = std::fs::read_dir(f.layer.join("files")).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().blocks() * 512).sum()
    };
    let before = on_host();
    client.device.give_back_room();
    assert_eq!(before - on_host(), 20 * 8192);
    drop(client);
    let mut client = Client::new(FsDevice::restore(&f.layer, &f.template, FsOptions::new(HASH), &saved).unwrap());
    assert_eq!(client.device.disk_bytes(), used);
    assert_eq!(client.read(file, 0, 8192), Ok(vec![1; 8192]));
    client.fsync(file).unwrap();
    assert_eq!(used - client.device.disk_bytes(), 20 * 8192);
}

#[test]
fn room_is_known_piece_by_piece_and_given_back_whole() {
    let f = folders();
    let mut client = with_limit(&f);
    let file = client.create(1, b"pgsql_tmp7.0", 0o600, 0).unwrap().node;
    client.write(file, 0, &[1; 8192]).unwrap();
    client.setattr(file, Some(4 * 8192), None).unwrap();
    // Past the end, over its edge, apart from it, and in a hole below it.
    assert_eq!(client.room(file, 4 * 8192, 8 * 8192), Ok(12 * 8192));
    assert_eq!(client.room(file, 11 * 8192, 4 * 8192), Ok(15 * 8192));
    assert_eq!(client.room(file, 18 * 8192, 2 * 8192), Ok(20 * 8192));
    assert_eq!(client.room(file, 2 * 8192, 8192), Ok(3 * 8192));
    // A longer file keeps its room.
    client.setattr(file, Some(5 * 8192), None).unwrap();
    fill_up(&mut client);
    assert_eq!(client.write(file, 8192, &[2; 8192]), Err(libc::ENOSPC), "a hole has none");
    assert_eq!(client.write(file, 16 * 8192, &[2; 8192]), Err(libc::ENOSPC), "nor has what is between two pieces");
    assert_eq!(client.write(file, 2 * 8192, &[2; 8192]), Ok(8192));
    assert_eq!(client.write(file, 4 * 8192, &[2; 2 * 8192]), Ok(2 * 8192));
    assert_eq!(client.write(file, 8 * 8192, &[2; 7 * 8192]), Ok(7 * 8192));
    let used = client.device.disk_bytes();
    client.fsync(file).unwrap();
    // The host's own list of so many pieces may have taken a block of its own meanwhile.
    assert!((8192..=2 * 8192).contains(&(used - client.device.disk_bytes())));
}

#[test]
fn room_past_the_end_is_no_room_for_a_hole() {
    let f = folders();
    let mut client = with_limit(&f);
    let file = client.create(1, b"pgsql_tmp7.0", 0o600, 0).unwrap().node;
    client.setattr(file, Some(8 * 8192), None).unwrap();
    assert_eq!(client.room(file, 8 * 8192, 16 * 8192), Ok(24 * 8192));
    fill_up(&mut client);
    assert_eq!(client.write(file, 0, &[1; 8 * 8192]), Err(libc::ENOSPC));
}

#[test]
fn room_that_a_crash_left_is_given_back() {
    let f = folders();
    let mut client = with_limit(&f);
    for name in [b"flushed", b"limited"] {
        let file = client.create(1, name, 0o600, 0).unwrap().node;
        client.write(file, 0, &[1; 8192]).unwrap();
        client.fsync(file).unwrap();
        assert_eq!(client.room(file, 8192, 8 * 8192), Ok(9 * 8192));
    }
    let used = client.device.disk_bytes();
    drop(client);
    let mut client = with_limit(&f);
    assert_eq!(client.device.disk_bytes(), used);
    let flushed = client.walk("flushed").unwrap().node;
    client.fsync(flushed).unwrap();
    assert_eq!(used - client.device.disk_bytes(), 8 * 8192);
    // What is granted after the start stays, and near the limit what a file has is looked at.
    let limited = client.walk("limited").unwrap().node;
    assert_eq!(client.room(limited, 8192, 8192), Ok(2 * 8192));
    fill_up(&mut client);
    assert_eq!(client.write(limited, 8192, &[1; 8192]), Ok(8192));
    assert_eq!(client.write(limited, 2 * 8192, &[1; 8192]), Err(libc::ENOSPC));
}

#[test]
fn full_tables_leave_the_server_room_to_free_them() {
    let f = folders();
    let mut options = FsOptions::new(HASH);
    options.storage_limit = Some(8 << 20);
    let mut client = Client::new(FsDevice::open(&f.layer, &f.template, options.clone()).unwrap());
    let block = [1; 8192];
    let fill = |client: &mut Client, node: u64, from: u64| {
        (from..2000).take_while(|i| client.write(node, i * 8192, &block).is_ok()).count() as u64
    };
    // In a folder of the template's, and in one made since.
    let base = client.walk("base").unwrap().node;
    let made = client.mkdir(base, b"777").unwrap().node;
    let theirs = client.walk("base/5").unwrap().node;
    let first = client.create(made, b"16384", 0o600, 0).unwrap().node;
    assert_eq!((0..300).filter(|i| client.write(first, i * 8192, &block).is_ok()).count(), 300);
    let second = client.create(theirs, b"16385.1", 0o600, 0).unwrap().node;
    let grown = fill(&mut client, second, 0);
    // Half of so small a limit is kept: 512 blocks are for tables.
    assert!((190..212).contains(&grown), "{grown}");
    assert_eq!(client.write(first, 300 * 8192, &block), Err(libc::ENOSPC));
    assert_eq!(client.fallocate(second, grown * 8192, 65_536, 0), Err(libc::ENOSPC));
    for name in [&b"t3_99"[..], b"pgsql_tmp77.0"] {
        let node = client.create(theirs, name, 0o600, 0).unwrap().node;
        assert_eq!(client.write(node, 512 << 10, &block), Err(libc::ENOSPC));
    }

    // The same is known after a cold start.
    client.syncfs().unwrap();
    drop(client);
    let mut client = Client::new(FsDevice::open(&f.layer, &f.template, options.clone()).unwrap());
    let first = client.walk("base/777/16384").unwrap().node;
    let second = client.walk("base/5/16385.1").unwrap().node;
    assert_eq!(client.write(first, 300 * 8192, &block), Err(libc::ENOSPC));

    // WAL goes on, a checkpoint reaches blocks that were only the template's, and a small new file can be made.
    let wal = client.walk("pg_wal").unwrap().node;
    let segment = client.create(wal, b"000000010000000000000002", 0o600, 0).unwrap().node;
    assert_eq!((0..128).filter(|i| client.write(segment, i * 8192, &block).is_ok()).count(), 128);
    let old = client.walk("base/5/100").unwrap().node;
    assert_eq!(client.write(old, 8192, &block), Ok(8192));
    let theirs = client.walk("base/5").unwrap().node;
    let small = client.create(theirs, b"16399", 0o600, 0).unwrap().node;
    assert_eq!(fill(&mut client, small, 0), 32);

    // TRUNCATE, and the table takes rows again.
    client.setattr(second, Some(0), None).unwrap();
    client.unlink(wal, b"000000010000000000000002").unwrap();
    client.forget(segment);
    assert!(fill(&mut client, second, 0) > 100);
    // A crash: redo may take more than there is, up to twice, until the guest is ready.
    client.syncfs().unwrap();
    drop(client);
    let mut device = FsDevice::open(&f.layer, &f.template, options).unwrap();
    let ready = Arc::new(AtomicU32::new(0));
    let seen = ready.clone();
    device.set_recovering(Box::new(move || seen.load(Ordering::Relaxed) == 0));
    let mut client = Client::new(device);
    let first = client.walk("base/777/16384").unwrap().node;
    let grown = fill(&mut client, first, 0);
    assert!(grown > 1000, "{grown}");
    ready.store(1, Ordering::Relaxed);
    client.setattr(first, Some((grown - 1) * 8192), None).unwrap();
    assert_eq!(client.write(first, (grown - 1) * 8192, &block), Err(libc::ENOSPC));
    ready.store(0, Ordering::Relaxed);
    assert_eq!(client.write(first, (grown - 1) * 8192, &block), Err(libc::ENOSPC), "ready is ready");
    client.setattr(first, Some(300 * 8192), None).unwrap();
    // Whatever it is, there is an end.
    let wal = client.walk("pg_wal").unwrap().node;
    let segment = client.create(wal, b"000000010000000000000003", 0o600, 0).unwrap().node;
    let room = fill(&mut client, segment, 0);
    assert!((400..520).contains(&room), "{room}");
    assert!(client.device.disk_bytes() <= 8 << 20);
}

#[test]
fn the_object_limit_is_enospc() {
    let f = folders();
    let mut options = FsOptions::new(HASH);
    options.object_limit = 50;
    let mut client = Client::new(FsDevice::open(&f.layer, &f.template, options).unwrap());
    let made = (0..100).take_while(|i| client.create(1, format!("f{i}").as_bytes(), 0o600, 0).is_ok()).count();
    assert!((40..50).contains(&made), "{made}");
    let a = client.lookup(1, b"f0").unwrap().node;
    assert_eq!(client.link(a, 1, b"one more"), Err(libc::ENOSPC));
    client.unlink(1, b"f1").unwrap();
    let f1 = made as u64; // Still referenced, so still counted.
    assert!(f1 > 0 && client.create(1, b"again", 0o600, 0).is_err());
}

#[test]
fn the_journal_is_made_anew_when_most_of_it_is_history() {
    let f = folders();
    let mut client = Client::new(FsDevice::open(&f.layer, &f.template, FsOptions::new(HASH)).unwrap());
    let dir = client.walk("base/5").unwrap().node;
    let rel = client.walk("base/5/100").unwrap().node;
    client.write(rel, 8192, &[9; 8192]).unwrap();
    client.rename(dir, b"101", dir, b"moved", 0).unwrap();
    client.unlink(dir, b"100_fsm").unwrap();
    for i in 0..3000 {
        let name = format!("pgsql_tmp{i}");
        let node = client.create(dir, name.as_bytes(), 0o600, 0).unwrap().node;
        client.unlink(dir, name.as_bytes()).unwrap();
        client.forget(node);
        if i % 20 == 0 {
            client.fsyncdir(dir).unwrap();
        }
    }
    client.syncfs().unwrap();
    assert!(f.layer.join("journal").metadata().unwrap().len() < 128 << 10);
    drop(client);
    let mut client = Client::new(FsDevice::open(&f.layer, &f.template, FsOptions::new(HASH)).unwrap());
    let dir = client.walk("base/5").unwrap().node;
    let names = client.names(dir, 4096, false).unwrap();
    assert_eq!(names, [&b"100"[..], b"PG_VERSION", b"empty", b"moved"]);
    let rel = client.walk("base/5/100").unwrap().node;
    assert_eq!(client.read(rel, 8192, 8192).unwrap(), [9; 8192]);
    let moved = client.walk("base/5/moved").unwrap();
    assert_eq!((moved.size, moved.links), (100_000, 1));
}

#[test]
fn a_template_is_named_by_what_is_in_it() {
    let f = folders();
    let hash = layer::template_hash(&f.template).unwrap();
    assert_eq!(hash.len(), 64);
    assert_eq!(layer::template_hash(&f.copy).unwrap(), hash);
    std::fs::write(f.copy.join("PG_VERSION"), "18\n").unwrap();
    assert_ne!(layer::template_hash(&f.copy).unwrap(), hash);
}

#[test]
fn a_copied_layer_goes_on_from_the_saved_state_and_shares_nothing() {
    let f = folders();
    let mut golden = Client::new(FsDevice::open(&f.layer, &f.template, FsOptions::new(HASH)).unwrap());
    let rel = golden.walk("base/5/100").unwrap().node;
    golden.write(rel, 8192, &[1; 8192]).unwrap();
    let wal = golden.create(1, b"wal", 0o600, 0).unwrap().node;
    golden.setattr(wal, Some(1 << 20), None).unwrap();
    golden.write(wal, 0, &[2; 8192]).unwrap();
    golden.device.flush_all().unwrap();
    let saved = golden.device.save();
    let used = golden.device.disk_bytes();
    drop(golden);
    let to = f.temp.path().join("clone");
    std::fs::create_dir(&to).unwrap();
    // An interrupted copy leaves an empty layer, to which it can be copied again.
    drop(FsDevice::open(&to, &f.template, FsOptions::new(HASH)).unwrap());
    std::fs::create_dir(to.join("files")).unwrap();
    std::fs::write(to.join("files/9"), "half").unwrap();
    assert!(layer::is_empty(&to).unwrap());
    layer::copy(&f.layer, &to).unwrap();
    assert!(!layer::is_empty(&to).unwrap());
    assert!(layer::copy(&f.layer, &to).is_err(), "it is not empty any more");
    let mut clone = Client::new(FsDevice::restore(&to, &f.template, FsOptions::new(HASH), &saved).unwrap());
    assert_eq!(clone.device.disk_bytes(), used);
    assert!(used < 100_000, "holes were copied");
    assert_eq!(clone.read(rel, 8192, 8192).unwrap(), [1; 8192]);
    clone.write(rel, 8192, &[3; 8192]).unwrap();
    clone.syncfs().unwrap();
    let mut golden = Client::new(FsDevice::restore(&f.layer, &f.template, FsOptions::new(HASH), &saved).unwrap());
    assert_eq!(golden.read(rel, 8192, 8192).unwrap(), [1; 8192]);
    assert_eq!(golden.read(wal, 0, 8192).unwrap(), [2; 8192]);
}

#[test]
fn an_orphan_forgotten_after_a_sleep_goes_only_behind_the_gate() {
    let f = folders();
    let mut client = Client::new(FsDevice::open(&f.layer, &f.template, FsOptions::new(HASH)).unwrap());
    let temp = client.create(1, b"temp", 0o600, 0).unwrap().node;
    client.write(temp, 0, b"x").unwrap();
    client.unlink(1, b"temp").unwrap();
    client.device.flush_all().unwrap();
    let saved = client.device.save();
    drop(client);
    let mut device = FsDevice::restore(&f.layer, &f.template, FsOptions::new(HASH), &saved).unwrap();
    device.set_gate(Box::new(|| Err(std::io::ErrorKind::Other.into())));
    let mut client = Client::new(device);
    client.forget(temp);
    assert!(client.device.flush_all().is_err());
    drop(client);
    // The snapshot was not spent, and is as good as before.
    let device = FsDevice::restore(&f.layer, &f.template, FsOptions::new(HASH), &saved).unwrap();
    assert_eq!(Client::new(device).read(temp, 0, 10).unwrap(), b"x");
}
