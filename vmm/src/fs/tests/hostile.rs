//! Messages that no client would send.

use super::client::Client;
use super::{Folders, HASH, Random, folders, tree};
use crate::fields;
use crate::fs::wire::opcode;
use crate::fs::{FsDevice, FsOptions};
use vm_memory::VolatileSlice;

fn client(folders: &Folders) -> Client {
    let mut options = FsOptions::new(HASH);
    options.storage_limit = Some(64 << 20);
    Client::new(FsDevice::open(&folders.layer, &folders.template, options).unwrap())
}

#[test]
fn names_that_would_lead_out_are_refused() {
    let folders = folders();
    std::fs::write(folders.temp.path().join("secret"), "x").unwrap();
    std::os::unix::fs::symlink("..", folders.template.join("up")).unwrap();
    let mut client = client(&folders);
    let long = vec![b'x'; 256];
    for name in [&b".."[..], b".", b"", b"../secret", b"base/5", b"/etc/passwd", &long] {
        let errors = [
            client.lookup(1, name).map(drop),
            client.create(1, name, 0o600, 0).map(drop),
            client.mkdir(1, name).map(drop),
            client.symlink(1, name, b"x").map(drop),
            client.unlink(1, name),
            client.rmdir(1, name),
            client.rename(1, b"PG_VERSION", 1, name, 0),
            client.rename(1, name, 1, b"y", 0),
        ];
        for error in errors {
            assert!(matches!(error, Err(libc::EINVAL | libc::ENAMETOOLONG)), "{error:?}");
        }
    }
    // A link of the guest's own is its bytes and nothing else; nothing is below it.
    let link = client.symlink(1, b"out", b"/etc").unwrap().node;
    assert_eq!(client.readlink(link).unwrap(), b"/etc");
    assert_eq!(client.lookup(link, b"passwd"), Err(libc::ENOTDIR));
    assert_eq!(client.create(link, b"passwd", 0o600, 0), Err(libc::ENOTDIR));
    assert_eq!(client.read(link, 0, 10), Err(libc::EISDIR));
    let up = client.lookup(1, b"up").unwrap().node;
    assert_eq!(client.lookup(up, b"secret"), Err(libc::ENOTDIR));
    // Special files can't be made.
    for kind in [libc::S_IFCHR, libc::S_IFBLK, libc::S_IFIFO, libc::S_IFSOCK] {
        let mut body = fields!(kind | 0o600, 0u32, 0u32, 0u32);
        body.extend_from_slice(b"node\0");
        assert_eq!(client.call(opcode::MKNOD, 1, &body, 128), Err(libc::EPERM));
    }
    // The guest's names are nowhere in the layer's folder.
    client.create(1, b"visible", 0o600, 0).unwrap();
    client.syncfs().unwrap();
    for path in tree(&folders.layer).keys() {
        let name = path.to_str().unwrap();
        assert!(["lock", "journal", "files"].contains(&name) || name.starts_with("files/"), "{name}");
    }
}

#[test]
fn special_files_of_a_template_are_not_there() {
    let folders = folders();
    let fifo = std::ffi::CString::new(folders.template.join("fifo").to_str().unwrap()).unwrap();
    // SAFETY: a NUL-terminated path.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    let mut client = client(&folders);
    assert_eq!(client.lookup(1, b"fifo"), Err(libc::ENOENT));
    assert!(!client.names(1, 4096, true).unwrap().contains(&b"fifo".to_vec()));
}

#[test]
fn nodes_never_given_out_or_forgotten_are_not_there() {
    let folders = folders();
    let mut client = client(&folders);
    let node = client.lookup(1, b"PG_VERSION").unwrap().node;
    for bad in [0, node + 1, u64::MAX, 1 << 40] {
        assert_eq!(client.getattr(bad), Err(libc::ENOENT));
        assert_eq!(client.read(bad, 0, 1), Err(libc::ENOENT));
        assert_eq!(client.write(bad, 0, b"x"), Err(libc::ENOENT));
        assert_eq!(client.rename(1, b"PG_VERSION", bad, b"x", 0), Err(libc::ENOENT));
        assert_eq!(client.link(bad, 1, b"x"), Err(libc::ENOENT));
        client.forget(bad);
    }
    client.call(opcode::FORGET, node, &fields!(u64::MAX), 0).unwrap();
    assert_eq!(client.getattr(node), Err(libc::ENOENT));
    client.call(opcode::FORGET, 1, &fields!(u64::MAX), 0).unwrap();
    assert!(client.getattr(1).is_ok());
}

#[test]
fn offsets_and_sizes_at_the_ends_of_numbers_are_errors() {
    let folders = folders();
    let mut client = client(&folders);
    for path in ["base/5/100", "pg_wal/0001"] {
        let node = client.walk(path).unwrap().node;
        for at in [u64::MAX, u64::MAX - 1, 1 << 63, (1 << 40) + 1, 1 << 40] {
            assert_eq!(client.write(node, at, b"x"), Err(libc::EFBIG));
            assert_eq!(client.read(node, at, 10), Ok(vec![]));
            assert!(client.fallocate(node, at, 1, 0).is_err());
            assert!(client.fallocate(node, 1, at, 0).is_err());
        }
        assert_eq!(client.setattr(node, Some(u64::MAX), None), Err(libc::EFBIG));
        assert_eq!(client.fallocate(node, 0, 1 << 30, 0), Err(libc::ENOSPC));
        assert_eq!(client.fallocate(node, 0, 10, 3), Err(libc::EOPNOTSUPP));
        assert_eq!(client.fallocate(node, 0, 0, 0), Err(libc::EINVAL));
    }
    // A huge hole costs nothing, and can't be filled past the limit.
    let node = client.create(1, b"hole", 0o600, 0).unwrap().node;
    client.setattr(node, Some(1 << 40), None).unwrap();
    let block = vec![1; 1 << 20];
    let wrote = (0..100).take_while(|i| client.write(node, i << 30, &block).is_ok()).count();
    assert!((50..64).contains(&wrote), "{wrote}");
    assert!(client.device.disk_bytes() <= 64 << 20);
}

#[test]
fn random_messages_are_answered_and_hurt_nothing() {
    let folders = folders();
    let outside = tree(&folders.template);
    let mut random = Random::new(0);
    let mut client = client(&folders);
    let mut nodes = vec![1, 0, u64::MAX];
    for path in ["base", "base/5", "base/5/100", "base/5/101", "pg_wal/0001", "link", "global/pg_control"] {
        nodes.push(client.walk(path).unwrap().node);
    }
    for round in 0..60_000 {
        let code = if random.chance(95) { random.below(54) } else { random.next() } as u32;
        // A limit on lookups given back, or nothing would be left to play with.
        let code = if code == opcode::FORGET || code == opcode::BATCH_FORGET { opcode::LOOKUP } else { code };
        let mut body = Vec::new();
        while random.chance(85) && body.len() < 3000 {
            match random.below(6) {
                0 => body.extend_from_slice(&random.pick(&nodes).to_le_bytes()),
                1 => body.extend_from_slice(&random.below(40_000).to_le_bytes()),
                2 => body.extend_from_slice(&(random.below(64) as u32).to_le_bytes()),
                3 => {
                    let names: [&[u8]; 8] =
                        [b"5\0", b"100\0", b"..\0", b"a\0", b"base\0", b"x/y\0", b"link\0", b"pg_control\0"];
                    let name: &[u8] = names[random.below(8) as usize];
                    body.extend_from_slice(name);
                }
                4 => body.extend_from_slice(&random.next().to_le_bytes()),
                _ => {
                    let n = random.below(200) as usize;
                    body.extend_from_slice(&random.bytes(n));
                }
            }
        }
        let node = *random.pick(&nodes);
        let len = if random.chance(95) { (40 + body.len()) as u32 } else { random.next() as u32 };
        let mut message = fields!(len, code, 9u64, node, 0u32, 0u32, 0u32, 0u32);
        message.extend_from_slice(&body);
        if random.chance(5) {
            message.truncate(random.below(60) as usize);
        }
        let room = random.below(20_000) as usize;
        let mut out = vec![0; if random.chance(5) { room % 20 } else { room }];
        let written = client
            .device
            .handle(&[VolatileSlice::from(&mut message[..])], &[VolatileSlice::from(&mut out[..])]);
        assert!(written <= out.len());
        assert!(written == 0 || (written >= 16 && u32::from_le_bytes(out[..4].try_into().unwrap()) as usize == written));
        // Nodes that were given out are used later.
        if written == 16 + 128 && nodes.len() < 200 {
            nodes.push(u64::from_le_bytes(out[16..24].try_into().unwrap()));
        }
        if round % 10_000 == 9_999 {
            client.device.flush_all().unwrap();
            let saved = client.device.save();
            drop(client);
            let mut options = FsOptions::new(HASH);
            options.storage_limit = Some(64 << 20);
            client = Client::new(FsDevice::restore(&folders.layer, &folders.template, options, &saved).unwrap());
        }
    }
    drop(client);
    assert!(outside == tree(&folders.template), "the template changed");
    let out = folders.temp.path().join("out");
    let merged = crate::layer::merge(&folders.layer, &folders.template, HASH, &out);
    assert!(merged.is_ok(), "{merged:?}");
    let mut there: Vec<_> =
        std::fs::read_dir(folders.temp.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    there.sort();
    assert_eq!(there, ["copy", "layer", "out", "template"]);
}

#[test]
fn damaged_saved_states_and_journals_are_refused() {
    let folders = folders();
    let mut client = client(&folders);
    let node = client.walk("base/5/100").unwrap().node;
    client.write(node, 0, &[7; 8192]).unwrap();
    client.create(1, b"new", 0o600, 0).unwrap();
    client.syncfs().unwrap();
    let saved = client.device.save();
    drop(client);
    let mut random = Random::new(1);
    let open = |saved: &[u8]| FsDevice::restore(&folders.layer, &folders.template, FsOptions::new(HASH), saved);
    for _ in 0..500 {
        let mut bad = saved.clone();
        match random.below(3) {
            0 => bad.truncate(random.below(saved.len() as u64) as usize),
            1 => {
                let at = random.below(saved.len() as u64) as usize;
                bad[at] ^= 1 << random.below(8);
            }
            _ => {
                // Damage below a right checksum.
                bad.truncate(saved.len() - 4);
                let at = random.below(bad.len() as u64) as usize;
                bad[at] = random.next() as u8;
                let sum = crc32c::crc32c(&bad);
                bad.extend_from_slice(&sum.to_le_bytes());
                // It may be harmless; it must not panic, now or in use.
                if let Ok(device) = open(&bad) {
                    let mut client = Client::new(device);
                    let _ = (client.names(1, 4096, true), client.read(node, 0, 8192), client.syncfs());
                }
                continue;
            }
        }
        assert!(open(&bad).is_err());
    }
    let journal = folders.layer.join("journal");
    let good = std::fs::read(&journal).unwrap();
    for _ in 0..300 {
        let mut bad = good.clone();
        let at = random.below(good.len() as u64) as usize;
        bad[at] ^= 1 << random.below(8);
        std::fs::write(&journal, &bad).unwrap();
        // Either refused, or a shorter history; never a panic, never bytes that were not there.
        if let Ok(device) = FsDevice::open(&folders.layer, &folders.template, FsOptions::new(HASH)) {
            let mut client = Client::new(device);
            let node = client.walk("base/5/100").unwrap().node;
            let got = client.read(node, 0, 8192).unwrap();
            let template = std::fs::read(folders.template.join("base/5/100")).unwrap();
            assert!(got == [7; 8192] || got == template[..8192]);
        }
    }
}
