//! The two executables of an image, checked against the guest's memory map.

use dormouse_abi::{KERNEL, KernelHeader, LARGE_PAGE, PAGE, TEXT};
use object::LittleEndian;
use object::elf::{ET_EXEC, FileHeader64, PF_W, PT_LOAD, PT_PHDR, SHT_SYMTAB};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, Sym};

use super::{BootError, in_kernel, in_slot};

type Header = FileHeader64<LittleEndian>;
const LE: LittleEndian = LittleEndian;

/// Bytes of a file and where they go: a guest-physical address for the kernel, a distance from the program's start for
/// Postgres.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    pub address: u64,
    pub bytes: &'a [u8],
}

/// The kernel.
#[derive(Debug)]
pub struct KernelImage<'a> {
    pub segments: Vec<Segment<'a>>,
    pub header: KernelHeader,
}

/// Postgres; addresses are distances from [`TEXT`]. The fields are those of [`dormouse_abi::Program`].
#[derive(Debug)]
pub struct PostgresImage<'a> {
    pub shared: Vec<Segment<'a>>,
    pub writable: Vec<Segment<'a>>,
    pub shared_end: u64,
    pub hot: u64,
    pub data: u64,
    pub data_file_len: u64,
    pub data_mem_len: u64,
    pub entry: u64,
    pub phdr: u64,
    pub phnum: u64,
    pub prng_state: u64,
    /// Array of 32-bit link addresses, as bytes.
    pub words: &'a [u8],
}

/// The section with [`PostgresImage::words`] (images/segment).
const WORDS: &[u8] = b".dormouse.words";

fn elf<'a>(what: &'static str, bytes: &'a [u8], kind: u16) -> Result<&'a Header, BootError> {
    let header = Header::parse(bytes).map_err(|error| broken(what, error))?;
    if header.e_type(LE) != kind {
        return Err(misfit(what, "is not the kind of executable expected".to_owned()));
    }
    Ok(header)
}

fn broken(what: &'static str, error: object::Error) -> BootError {
    misfit(what, format!("is not a well-formed ELF: {error}"))
}

fn misfit(what: &'static str, problem: String) -> BootError {
    BootError::Misfit { what, problem }
}

impl<'a> KernelImage<'a> {
    /// Reads a kernel: all segments within its reserve, [`KernelHeader`] at its start.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BootError> {
        const WHAT: &str = "kernel";
        let elf = elf(WHAT, bytes, ET_EXEC)?;
        let mut segments = Vec::new();
        for program in elf.program_headers(LE, bytes).map_err(|error| broken(WHAT, error))? {
            if program.p_type(LE) != PT_LOAD {
                continue;
            }
            let (address, len) = (program.p_vaddr(LE), program.p_memsz(LE));
            if !in_kernel(address, len) {
                return Err(misfit(WHAT, format!("its segment at {address:#x}+{len:#x} lies outside its reserve")));
            }
            let bytes = program
                .data(LE, bytes)
                .map_err(|()| misfit(WHAT, "a segment reaches past the end of the file".to_owned()))?;
            if bytes.len() as u64 > len {
                return Err(misfit(WHAT, format!("its segment at {address:#x} has more bytes than memory")));
            }
            segments.push(Segment { address, bytes });
        }
        let first = segments
            .iter()
            .find(|segment| segment.address == KERNEL && segment.bytes.len() >= size_of::<KernelHeader>())
            .ok_or_else(|| misfit(WHAT, "has no header at its start".to_owned()))?;
        // SAFETY: at least as many bytes as the header has, which is integers only; read unaligned.
        let header: KernelHeader = unsafe { std::ptr::read_unaligned(first.bytes.as_ptr().cast()) };
        for (name, address, len) in [
            ("entry", header.entry, 1),
            ("system call entry", header.syscall, 1),
            ("vectors", header.vectors, 256 * dormouse_abi::VECTOR_STUB_LEN),
            ("end", header.end, 0),
        ] {
            if !in_kernel(address, len) {
                return Err(misfit(WHAT, format!("its {name} at {address:#x} lies outside its reserve")));
            }
        }
        Ok(Self { segments, header })
    }
}

impl<'a> PostgresImage<'a> {
    /// Reads Postgres: read-only segments from [`TEXT`], then at least one unmapped large page, then all writable
    /// segments within one large page, with room for a stack below them; and which words of these to relocate.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BootError> {
        const WHAT: &str = "postgres";
        let elf = elf(WHAT, bytes, ET_EXEC)?;
        let headers = elf.program_headers(LE, bytes).map_err(|error| broken(WHAT, error))?;
        let (mut shared, mut writable) = (Vec::new(), Vec::new());
        let (mut shared_end, mut data, mut data_file_end, mut data_end) = (0u64, u64::MAX, 0u64, 0u64);
        let mut phdr = None;
        for program in headers {
            if !matches!(program.p_type(LE), PT_PHDR | PT_LOAD) {
                continue;
            }
            let (linked, len) = (program.p_vaddr(LE), program.p_memsz(LE));
            let room = |address: u64| address.checked_add(len).filter(|end| *end < dormouse_abi::SLOT_STRIDE);
            let Some((address, end)) = linked.checked_sub(TEXT).and_then(|address| Some((address, room(address)?)))
            else {
                return Err(misfit(WHAT, format!("its segment at {linked:#x}+{len:#x} does not fit a slot")));
            };
            match program.p_type(LE) {
                PT_PHDR => phdr = Some(address),
                PT_LOAD => {
                    let bytes = program
                        .data(LE, bytes)
                        .map_err(|()| misfit(WHAT, "a segment reaches past the end of the file".to_owned()))?;
                    if bytes.len() as u64 > len {
                        return Err(misfit(WHAT, format!("its segment at {address:#x} has more bytes than memory")));
                    }
                    if program.p_flags(LE) & PF_W == 0 {
                        shared.push(Segment { address, bytes });
                        shared_end = shared_end.max(end.next_multiple_of(LARGE_PAGE));
                    } else {
                        writable.push(Segment { address, bytes });
                        data = data.min(address);
                        data_file_end = data_file_end.max(address + bytes.len() as u64);
                        data_end = data_end.max(end);
                    }
                }
                _ => {}
            }
        }
        let offset = elf.e_phoff(LE);
        let phdr = phdr
            .or_else(|| shared.iter().find(|segment| segment.address == 0).map(|_| offset))
            .ok_or_else(|| misfit(WHAT, "its program headers are not in memory".to_owned()))?;
        if writable.is_empty() || shared.is_empty() {
            return Err(misfit(WHAT, "needs read-only and writable segments".to_owned()));
        }
        let hot = data & !(LARGE_PAGE - 1);
        if hot < shared_end + LARGE_PAGE {
            return Err(misfit(
                WHAT,
                format!("its data at {data:#x} leaves no guard page after its text, which ends at {shared_end:#x}"),
            ));
        }
        if data_end > hot + LARGE_PAGE || !in_slot(hot) {
            return Err(misfit(WHAT, format!("its data, {data:#x}..{data_end:#x}, does not lie in one large page")));
        }
        if data - hot < 64 * PAGE {
            return Err(misfit(WHAT, format!("its data at {data:#x} leaves under 256 KiB for a stack below it")));
        }
        let words = words(elf, bytes, TEXT + data..TEXT + data_end)?;
        let prng_state = symbol(elf, bytes, b"pg_global_prng_state").map_err(|error| broken(WHAT, error))?;
        Ok(Self {
            shared,
            writable,
            shared_end,
            hot,
            data,
            data_file_len: data_file_end - data,
            data_mem_len: data_end - data,
            entry: elf.e_entry(LE).checked_sub(TEXT).ok_or_else(|| misfit(WHAT, "begins below its text".to_owned()))?,
            phdr,
            phnum: headers.len() as u64,
            prng_state: prng_state.saturating_sub(TEXT),
            words,
        })
    }
}

/// The words to relocate, all of which lie in the data segment.
fn words<'a>(elf: &Header, bytes: &'a [u8], data: std::ops::Range<u64>) -> Result<&'a [u8], BootError> {
    const WHAT: &str = "postgres";
    let sections = elf.sections(LE, bytes).map_err(|error| broken(WHAT, error))?;
    let (_, section) = sections
        .section_by_name(LE, WORDS)
        .ok_or_else(|| misfit(WHAT, "does not say which of its words to relocate".to_owned()))?;
    let words = section.data(LE, bytes).map_err(|error| broken(WHAT, error))?;
    let fits = |word: &[u8]| {
        let start = word.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        word.len() == 4 && data.contains(&start) && start + 8 <= data.end
    };
    match words.chunks(4).all(fits) {
        true => Ok(words),
        false => Err(misfit(WHAT, "would relocate words outside of its data".to_owned())),
    }
}

/// The value of a symbol; 0 if the file has none by that name.
fn symbol(elf: &Header, bytes: &[u8], name: &[u8]) -> object::Result<u64> {
    let sections = elf.sections(LE, bytes)?;
    let symbols = sections.symbols(LE, bytes, SHT_SYMTAB)?;
    for symbol in symbols.iter() {
        if symbol.name(LE, symbols.strings())? == name {
            return Ok(symbol.st_value(LE));
        }
    }
    Ok(0)
}
