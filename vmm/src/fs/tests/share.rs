//! A shared folder: both sides see each other's changes, nothing outside is reached, nodes end with the life.

use super::client::Client;
use super::{Folders, HASH, folders};
use crate::fs::share::ROOT;
use crate::fs::{FsDevice, FsOptions};

fn client(f: &Folders) -> Client {
    let mut device = FsDevice::open(&f.layer, &f.template, FsOptions::new(HASH)).unwrap();
    device.share(&f.temp.path().join("shared")).unwrap();
    Client::new(device)
}

#[test]
fn both_sides_see_what_the_other_writes() {
    let f = folders();
    let shared = f.temp.path().join("shared");
    std::fs::create_dir_all(shared.join("results")).unwrap();
    let mut client = client(&f);
    let folder = client.lookup(ROOT, b"results").unwrap().node;
    let file = client.create(folder, b"a", 0o600, libc::O_RDWR).unwrap().node;
    assert_eq!(client.write(file, 0, b"from the guest").unwrap(), 14);
    assert_eq!(std::fs::read(shared.join("results/a")).unwrap(), b"from the guest");
    std::fs::write(shared.join("results/a"), b"from the host, and longer").unwrap();
    assert_eq!(client.getattr(file).unwrap().size, 25);
    assert_eq!(client.read(file, 5, 100).unwrap(), b"the host, and longer");
    client.setattr(file, Some(4), None).unwrap();
    assert_eq!(std::fs::read(shared.join("results/a")).unwrap(), b"from");
    client.unlink(folder, b"a").unwrap();
    assert!(!shared.join("results/a").exists());
    assert_eq!(client.lookup(folder, b"a").unwrap_err(), libc::ENOENT);
    // The data directory is as ever.
    assert!(client.walk("base/5/100").is_ok());
}

#[test]
fn nothing_outside_the_folder_is_reached() {
    let f = folders();
    let shared = f.temp.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(f.temp.path().join("secret"), b"x").unwrap();
    std::os::unix::fs::symlink("../secret", shared.join("file")).unwrap();
    std::os::unix::fs::symlink("..", shared.join("up")).unwrap();
    let mut client = client(&f);
    for name in [&b".."[..], b".", b"", b"../secret", b"up/secret", b"/etc/passwd"] {
        assert_eq!(client.lookup(ROOT, name).unwrap_err(), libc::EINVAL, "{name:?}");
        assert_eq!(client.unlink(ROOT, name).unwrap_err(), libc::EINVAL, "{name:?}");
    }
    assert_eq!(client.lookup(ROOT, b"file").unwrap_err(), libc::EPERM);
    assert_eq!(client.lookup(ROOT, b"up").unwrap_err(), libc::EPERM);
    assert!(client.create(ROOT, b"file", 0o600, libc::O_RDWR).is_err());
    assert!(f.temp.path().join("secret").exists());
}

#[test]
fn a_node_of_another_life_is_stale() {
    let f = folders();
    std::fs::create_dir(f.temp.path().join("shared")).unwrap();
    let mut first = client(&f);
    let file = first.create(ROOT, b"a", 0o600, libc::O_RDWR).unwrap().node;
    drop(first);
    let mut second = client(&f);
    second.create(ROOT, b"b", 0o600, libc::O_RDWR).unwrap();
    assert_eq!(second.getattr(file).unwrap_err(), libc::ESTALE);
}
