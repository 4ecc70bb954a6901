//! Looks at, mounts and merges data layers by hand.
//!
//! ```text
//! layer hash TEMPLATE                        the template's name, by its content
//! layer merge LAYER TEMPLATE HASH OUT        a plain data directory
//! layer mount LAYER TEMPLATE HASH FOLDER     the merged view as a FUSE mount, until it is unmounted (as root)
//! ```
//!
//! `mount` gives the host's own kernel, and so a stock Postgres, what a guest sees: the device answers the same messages.
//! Only one user may look at it, whom everything then belongs to. It flushes when it is unmounted; killed, it leaves what a
//! killed VMM leaves.

use dormouse_vmm::fs::{FsDevice, FsOptions};
use dormouse_vmm::layer;
use std::error::Error;
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use vm_memory::VolatileSlice;

/// The longest message: 1 MiB of data and its headers.
const MESSAGE: usize = (1 << 20) + 4096;

fn mount(device: &mut FsDevice, folder: &str) -> Result<(), Box<dyn Error>> {
    let mut fuse = File::options().read(true).write(true).open("/dev/fuse")?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", fuse.as_raw_fd());
    let (target, options) = (CString::new(folder)?, CString::new(options)?);
    // SAFETY: all strings are NUL-terminated.
    let done = unsafe {
        libc::mount(c"dormouse".as_ptr(), target.as_ptr(), c"fuse".as_ptr(), libc::MS_NODEV, options.as_ptr().cast())
    };
    if done != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    println!("mounted");
    let (mut message, mut answer) = (vec![0; MESSAGE], vec![0; MESSAGE]);
    loop {
        let n = match fuse.read(&mut message) {
            Ok(n) => n,
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => break,
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINTR | libc::EAGAIN)) => continue,
            Err(e) => return Err(e.into()),
        };
        let n = device.handle(&[VolatileSlice::from(&mut message[..n])], &[VolatileSlice::from(&mut answer[..])]);
        if n > 0
            && let Err(e) = fuse.write(&answer[..n])
            && e.raw_os_error() != Some(libc::ENOENT)
        {
            return Err(e.into());
        }
    }
    Ok(device.flush_all()?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["hash", template] => println!("{}", layer::template_hash(Path::new(template))?),
        ["merge", layer, template, hash, out] => {
            println!("{:?}", layer::merge(Path::new(layer), Path::new(template), hash, Path::new(out))?);
        }
        ["mount", layer, template, hash, folder] => {
            let mut device = FsDevice::open(Path::new(layer), Path::new(template), FsOptions::new(hash))?;
            mount(&mut device, folder)?;
            println!("{} bytes of disk", device.disk_bytes());
        }
        _ => return Err("usage: layer hash|merge|mount … (see the head of examples/layer.rs)".into()),
    }
    Ok(())
}
