//! What one request to the file device costs, in µs: `cargo run --release -p dormouse-vmm --example fs_bench [FOLDER]`.
//!
//! The folder (default: the system's for temporary files) should be on the disk that the layers will be on.

use dormouse_vmm::fs::{FsDevice, FsOptions};
use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;
use vm_memory::VolatileSlice;

const BLOCK: usize = 8192;
/// Blocks of the template's file, and of what is written.
const BLOCKS: u64 = 4096;

struct Client {
    device: FsDevice,
    answer: Vec<u8>,
}

impl Client {
    fn call(&mut self, opcode: u32, node: u64, fields: &[u64], tail: &[u8]) -> i32 {
        let body: Vec<u8> = fields.iter().flat_map(|f| f.to_le_bytes()).collect();
        let mut head = Vec::new();
        head.extend_from_slice(&((40 + body.len() + tail.len()) as u32).to_le_bytes());
        head.extend_from_slice(&opcode.to_le_bytes());
        for field in [1, node, 0, 0] {
            head.extend_from_slice(&u64::to_le_bytes(field));
        }
        head.extend_from_slice(&body);
        let mut tail = tail.to_vec();
        let readable = [VolatileSlice::from(&mut head[..]), VolatileSlice::from(&mut tail[..])];
        self.device.handle(&readable, &[VolatileSlice::from(&mut self.answer[..])]);
        i32::from_le_bytes([self.answer[4], self.answer[5], self.answer[6], self.answer[7]])
    }

    fn node(&self) -> u64 {
        self.answer[16..24].iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))
    }
}

fn measure(name: &str, count: u64, mut step: impl FnMut(u64) -> i32) {
    let mut times: Vec<f64> = (0..count)
        .map(|i| {
            let start = Instant::now();
            let error = step(i);
            assert_eq!(error, 0, "{name}");
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    println!("{name:48} p50 {:8.2}  p99 {:8.2}", at(0.5), at(0.99));
}

fn main() -> Result<(), Box<dyn Error>> {
    let base = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let base = base.join(format!("fs-bench-{}", std::process::id()));
    let (layer, template) = (base.join("layer"), base.join("template"));
    std::fs::create_dir_all(&layer)?;
    std::fs::create_dir_all(template.join("base/5"))?;
    std::fs::write(template.join("base/5/16384"), vec![7; BLOCK * BLOCKS as usize])?;
    let device = FsDevice::open(&layer, &template, FsOptions::new("bench"))?;
    let mut c = Client { device, answer: vec![0; BLOCK + 4096] };

    for name in [&b"base\0"[..], b"5\0", b"16384\0"] {
        let parent = if name == b"base\0" { 1 } else { c.node() };
        assert_eq!(c.call(1, parent, &[], name), 0);
    }
    let rel = c.node();
    let create = [0o600 << 32, 0];
    assert_eq!(c.call(35, 1, &create, b"wal\0"), 0);
    let wal = c.node();
    let data = vec![1; BLOCK];
    let read = |offset: u64| [0, offset, BLOCK as u64, 0, 0];
    println!("µs per request, 8 KiB of data where there are any");
    measure("GETATTR", 20_000, |_| c.call(3, rel, &[0, 0], &[]));
    measure("LOOKUP of a template file", 20_000, |_| c.call(1, 1, &[], b"base\0"));
    measure("READ from the template", BLOCKS, |i| c.call(15, rel, &read(i * BLOCK as u64), &[]));
    measure("WRITE, first of a template block", BLOCKS / 2, |i| c.call(16, rel, &read(2 * i * BLOCK as u64), &data));
    measure("WRITE, again", BLOCKS / 2, |i| c.call(16, rel, &read(2 * i * BLOCK as u64), &data));
    measure("READ, every other block from the layer", BLOCKS, |i| c.call(15, rel, &read(i * BLOCK as u64), &[]));
    let start = Instant::now();
    c.device.flush_all()?;
    println!("flush_all of {} MiB: {:.1} ms", (BLOCKS as usize / 2 * BLOCK) >> 20, start.elapsed().as_secs_f64() * 1e3);
    let start = Instant::now();
    c.device.flush_all()?;
    println!("flush_all of nothing: {:.1} µs", start.elapsed().as_secs_f64() * 1e6);
    measure("WRITE at the end of a file", 1000, |i| c.call(16, wal, &read(i * BLOCK as u64), &data));
    measure("FSYNC, clean", 20_000, |_| c.call(20, rel, &[0, 0], &[]));
    measure("WRITE at the end and FSYNC", 300, |i| {
        c.call(16, wal, &read((1000 + i) * BLOCK as u64), &data) | c.call(20, wal, &[0, 0], &[])
    });
    measure("WRITE in place and FSYNC", 300, |i| {
        c.call(16, wal, &read(i * BLOCK as u64), &data) | c.call(20, wal, &[0, 0], &[])
    });
    measure("WRITE first of a template block and FSYNC", 300, |i| {
        c.call(16, rel, &read((2 * i + 1) * BLOCK as u64), &data) | c.call(20, rel, &[0, 0], &[])
    });
    let mut made = Vec::new();
    measure("CREATE", 1000, |i| {
        let error = c.call(35, 1, &create, format!("f{i}\0").as_bytes());
        made.push(c.node());
        error
    });
    measure("UNLINK", 1000, |i| c.call(10, 1, &[], format!("f{i}\0").as_bytes()));
    // A snapshot with 300 nodes known to the guest, as after some work.
    made.drain(300..).for_each(|node| {
        c.call(2, node, &[1], &[]);
    });
    c.device.flush_all()?;
    let mut saved = c.device.save();
    drop(c);
    println!("saved state: {} bytes", saved.len());
    measure("restore", 50, |_| {
        match FsDevice::restore(&layer, &template, FsOptions::new("bench"), &saved) {
            Ok(device) => saved = device.save(),
            Err(error) => panic!("{error}"),
        }
        0
    });
    std::fs::remove_dir_all(base)?;
    Ok(())
}
