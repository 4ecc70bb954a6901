//! The two executables of an image, checked against the guest's memory map.

use dormouse_abi::{KERNEL, KernelHeader, LARGE_PAGE, PAGE};
use object::LittleEndian;
use object::elf::{ET_DYN, ET_EXEC, FileHeader64, PF_W, PT_LOAD, PT_PHDR, SHT_SYMTAB};
use object::read::elf::{FileHeader, ProgramHeader, Sym};

use super::{BootError, in_kernel, in_slot};

type Header = FileHeader64<LittleEndian>;
const LE: LittleEndian = LittleEndian;

/// Bytes of a file and where they go: a guest-physical address for the kernel, an offset from a slot's base for
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

/// Postgres; addresses are offsets from a slot's base. The fields are those of [`dormouse_abi::Program`].
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
}

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
    /// Reads Postgres: read-only segments from 0, then at least one unmapped large page, then all writable
    /// segments within one large page, with room for a stack below them.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BootError> {
        const WHAT: &str = "postgres";
        let elf = elf(WHAT, bytes, ET_DYN)?;
        let headers = elf.program_headers(LE, bytes).map_err(|error| broken(WHAT, error))?;
        let (mut shared, mut writable) = (Vec::new(), Vec::new());
        let (mut shared_end, mut data, mut data_file_end, mut data_end) = (0u64, u64::MAX, 0u64, 0u64);
        let mut phdr = None;
        for program in headers {
            let (address, len) = (program.p_vaddr(LE), program.p_memsz(LE));
            let Some(end) = address.checked_add(len).filter(|end| *end < dormouse_abi::SLOT_STRIDE) else {
                return Err(misfit(WHAT, format!("its segment at {address:#x}+{len:#x} does not fit a slot")));
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
        Ok(Self {
            shared,
            writable,
            shared_end,
            hot,
            data,
            data_file_len: data_file_end - data,
            data_mem_len: data_end - data,
            entry: elf.e_entry(LE),
            phdr,
            phnum: headers.len() as u64,
            prng_state: symbol(elf, bytes, b"pg_global_prng_state").map_err(|error| broken(WHAT, error))?,
        })
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
