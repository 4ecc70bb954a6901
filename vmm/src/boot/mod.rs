//! A cold boot: lays the kernel, Postgres, the boot archive and the tables in memory, as `images/abi` says.
//!
//! ```text
//! 0        2 MiB     4 MiB    8 MiB                                                          end of RAM
//! | tables | system  | kernel | Postgres, shared | its data, pristine; archive | hot pages … | page pool |
//! ```
//!
//! - [`program`] reads the two executables;
//! - [`tables`] writes page, descriptor and interrupt tables.
//!
//! Promises: the guest starts in ring 3 with everything mapped that it will ever use, in 2 MiB pages; page 0 and
//! a page below each process' stack fault. Refuses executables whose segments do not fit this map.

pub mod program;
pub mod tables;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use dormouse_abi::{
    ABI_VERSION, BootInfo, KERNEL, KERNEL_LEN, KERNEL_MAGIC, LARGE_PAGE, PAGE, PAGE_TABLES, Program, SLOT_STRIDE, SYSTEM,
    TEXT, system,
};
use vm_memory::{Bytes, GuestAddress};

use crate::machine::{Machine, MachineError, Ram, cpu};
use crate::mapped::Mapped;
use crate::snapshot::pages::Base;
use program::{KernelImage, PostgresImage};

/// Why a guest could not be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A part of the image could not be read.
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    /// An executable does not fit the guest's memory map.
    #[error("{what}: {problem}")]
    Misfit { what: &'static str, problem: String },
    /// The guest has too little memory.
    #[error("a guest of {ram} MiB is too small for this image with even {slots} process slots: it needs {needed} MiB")]
    TooSmall { ram: u64, slots: u32, needed: u64 },
    /// The vCPU did not take its first state.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// What to boot.
#[derive(Clone, Debug)]
pub struct BootImage {
    /// The kernel: a static ELF at fixed addresses.
    pub kernel: PathBuf,
    /// Postgres: a static ELF, linked for where it is loaded, that finds its data by `%fs`.
    pub postgres: PathBuf,
    /// The boot archive, "newc" cpio.
    pub archive: PathBuf,
    /// The most process slots; a small guest has as many as fit. More processes at once the guest refuses.
    pub slots: u32,
    /// Arguments of the first process.
    pub arguments: Vec<String>,
    /// Its environment, `NAME=value`.
    pub environment: Vec<String>,
    /// Distance of `pg_global_prng_state` from the program's start, where a stripped executable can't say it.
    pub prng_state: Option<u64>,
}

/// The memory the page pool must have left for a boot to make sense, in bytes.
const LEAST_POOL: u64 = 16 << 20;
/// Postgres' own processes and a few sessions.
const LEAST_SLOTS: u32 = 16;

fn read(path: &Path) -> Result<Mapped, BootError> {
    let mapped = File::open(path).and_then(|file| Mapped::new(&file));
    mapped.map_err(|source| BootError::Read { path: path.to_owned(), source })
}

fn large_pages(len: u64) -> u64 {
    len.next_multiple_of(LARGE_PAGE)
}

/// Copies bytes to a guest-physical address.
pub(crate) fn put(ram: &Ram, what: &'static str, address: u64, bytes: &[u8]) -> Result<(), BootError> {
    ram.view().write_slice(bytes, GuestAddress(address)).map_err(|error| BootError::Misfit {
        what,
        problem: format!("does not fit in memory at {address:#x}: {error}"),
    })
}

/// Of so many pages of Postgres' text one is compared with the golden memory's before that is mapped.
const COMPARED: usize = 16;

/// Maps Postgres' text from the golden memory; false if it cannot be, or is another's, which costs a copy and no more.
fn map_text(ram: &Ram, golden: &Base, postgres: &PostgresImage) -> bool {
    let page = PAGE as usize;
    let same = postgres.shared.iter().all(|segment| {
        let mut pages = segment.bytes.chunks(page).enumerate().step_by(COMPARED);
        pages.all(|(n, bytes)| golden.has(TEXT + segment.address + (n * page) as u64, bytes))
    });
    if !same {
        tracing::warn!("the golden memory has another program than the image: make it anew (dormouse image build)");
        return false;
    }
    let mapped = ram.map_file(&golden.file, TEXT, postgres.shared_end);
    mapped.inspect_err(|error| tracing::warn!(%error, "the golden memory cannot be mapped")).is_ok()
}

/// Fills memory, which is all zeroes, and the vCPU for the image's first instruction. What all guests of the image read of Postgres, and
/// none can write, is mapped from its `golden` memory, if there is one: it has been laid there by this very function.
pub fn boot(machine: &Machine, image: &BootImage, golden: Option<&Base>) -> Result<(), BootError> {
    let ram = &machine.ram;
    let kernel_bytes = read(&image.kernel)?;
    let kernel = KernelImage::parse(&kernel_bytes)?;
    for segment in &kernel.segments {
        put(ram, "kernel", segment.address, segment.bytes)?;
    }
    let header = kernel.header;
    if header.magic != KERNEL_MAGIC || header.abi_version != ABI_VERSION {
        return Err(BootError::Misfit {
            what: "kernel",
            problem: format!("speaks ABI version {}, this monitor speaks {ABI_VERSION}", header.abi_version),
        });
    }

    let postgres_bytes = read(&image.postgres)?;
    let postgres = PostgresImage::parse(&postgres_bytes)?;
    let archive = read(&image.archive)?;

    let data_copy = TEXT + postgres.shared_end;
    let words = (data_copy + postgres.data_file_len).next_multiple_of(dormouse_abi::PAGE);
    let archive_at = (words + postgres.words.len() as u64).next_multiple_of(dormouse_abi::PAGE);
    let slots = large_pages(archive_at + archive.len() as u64);
    let room = ram.len().saturating_sub(slots + LEAST_POOL) / LARGE_PAGE;
    let slot_count = image.slots.min(u32::try_from(room).unwrap_or(u32::MAX));
    if slot_count < LEAST_SLOTS.min(image.slots) {
        return Err(BootError::TooSmall {
            ram: ram.len() >> 20,
            slots: LEAST_SLOTS,
            needed: (slots + u64::from(LEAST_SLOTS) * LARGE_PAGE + LEAST_POOL) >> 20,
        });
    }
    let pool = slots + u64::from(slot_count) * LARGE_PAGE;
    if !golden.is_some_and(|golden| map_text(ram, golden, &postgres)) {
        for segment in &postgres.shared {
            put(ram, "postgres", TEXT + segment.address, segment.bytes)?;
        }
    }
    for segment in &postgres.writable {
        put(ram, "postgres", data_copy + (segment.address - postgres.data), segment.bytes)?;
    }
    put(ram, "postgres", words, postgres.words)?;
    put(ram, "boot archive", archive_at, &archive)?;

    let program = Program {
        shared_end: postgres.shared_end,
        hot: postgres.hot,
        data: postgres.data,
        data_file_len: postgres.data_file_len,
        data_mem_len: postgres.data_mem_len,
        data_copy,
        entry: postgres.entry,
        phdr: postgres.phdr,
        phnum: postgres.phnum,
        words,
        words_len: postgres.words.len() as u64 / 4,
        prng_state: image.prng_state.unwrap_or(postgres.prng_state),
    };
    let mut info = BootInfo {
        magic: KERNEL_MAGIC,
        abi_version: ABI_VERSION,
        slot_count,
        ram: ram.len(),
        slots,
        archive: archive_at,
        archive_len: archive.len() as u64,
        pool,
        program,
        argc: image.arguments.len() as u32,
        envc: image.environment.len() as u32,
        strings_len: 0,
        reserved: 0,
        strings: [0; 4096],
    };
    fill_strings(&mut info, image)?;
    // SAFETY: BootInfo is repr(C) of integers and byte arrays without padding that matters; reading it as bytes
    // is sound because it was built field by field from a zeroed array and its padding is never interpreted.
    let bytes = unsafe { std::slice::from_raw_parts((&raw const info).cast::<u8>(), size_of::<BootInfo>()) };
    put(ram, "boot information", SYSTEM + system::BOOT_INFO, bytes)?;

    let layout = tables::Layout { slots, slot_count, shared_end: program.shared_end, hot: program.hot };
    tables::page_tables(ram, &layout)?;
    tables::descriptors(ram, header.vectors)?;
    cpu::reset(&machine.vcpu, PAGE_TABLES + tables::PML4, header.entry, SYSTEM + system::BOOT_INFO)?;
    tracing::debug!(
        text_bytes = program.shared_end,
        archive_bytes = archive.len(),
        slots = slot_count,
        pool_bytes = ram.len() - pool,
        "laid out memory"
    );
    Ok(())
}

fn fill_strings(info: &mut BootInfo, image: &BootImage) -> Result<(), BootError> {
    let misfit = |problem: &str| BootError::Misfit { what: "arguments and environment", problem: problem.to_owned() };
    let mut at = 0;
    for string in image.arguments.iter().chain(&image.environment) {
        if string.as_bytes().contains(&0) {
            return Err(misfit("a string holds a NUL"));
        }
        let end = at + string.len() + 1;
        if end > info.strings.len() {
            return Err(misfit("more than 4096 bytes"));
        }
        info.strings[at..end - 1].copy_from_slice(string.as_bytes());
        at = end;
    }
    info.strings_len = at as u32;
    Ok(())
}

/// Checks that a range lies in the kernel's reserve.
pub(crate) fn in_kernel(address: u64, len: u64) -> bool {
    address >= KERNEL && address.checked_add(len).is_some_and(|end| end <= KERNEL + KERNEL_LEN)
}

/// Checks that a program's hot page lies in its slot.
pub(crate) fn in_slot(hot: u64) -> bool {
    hot + LARGE_PAGE <= SLOT_STRIDE
}
