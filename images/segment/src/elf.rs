//! As much of ELF as the pass reads: segments, sections, relocations and one symbol of an x86-64 executable that was
//! linked with `--emit-relocs`.

const LOAD: u32 = 1;
const WRITE: u32 = 2;
const SYMBOLS: u32 = 2;
const RELOCATIONS: u32 = 4;
const NO_BITS: u32 = 8;
const ALLOCATED: u64 = 2;
const EXECUTABLE: u64 = 4;

#[derive(Clone, Copy, Debug)]
pub struct Section {
    kind: u32,
    flags: u64,
    pub address: u64,
    offset: u64,
    len: u64,
    link: u32,
    info: u32,
}

impl Section {
    pub fn is_code(&self) -> bool {
        self.flags & EXECUTABLE != 0
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Relocation {
    pub address: u64,
    pub kind: u32,
}

pub struct Program {
    pub bytes: Vec<u8>,
    sections: Vec<Section>,
    /// From and to, read-only segments first merged into one range, likewise the writable ones.
    pub shared: (u64, u64),
    pub own: (u64, u64),
}

fn number(bytes: &[u8], at: u64, len: usize) -> Result<u64, String> {
    let start = usize::try_from(at).map_err(|_| "an offset is too large")?;
    let part = start
        .checked_add(len)
        .and_then(|end| bytes.get(start..end))
        .ok_or("the file is too short")?;
    Ok(part
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

impl Program {
    pub fn parse(bytes: Vec<u8>) -> Result<Self, String> {
        let word = |at| number(&bytes, at, 8);
        let half = |at| number(&bytes, at, 4).map(|value| value as u32);
        let quarter = |at| number(&bytes, at, 2);
        if !bytes.starts_with(b"\x7fELF\x02\x01") || quarter(0x10)? != 2 || quarter(0x12)? != 62 {
            return Err("not an x86-64 executable at a fixed address".to_owned());
        }
        let mut ranges = [(u64::MAX, 0); 2];
        let (headers, len, count) = (word(0x20)?, quarter(0x36)?, quarter(0x38)?);
        for at in (0..count).map(|index| headers + index * len) {
            if half(at)? == LOAD {
                let range = &mut ranges[usize::from(half(at + 4)? & WRITE != 0)];
                let from = word(at + 0x10)?;
                *range = (range.0.min(from), range.1.max(from + word(at + 0x28)?));
            }
        }
        let (headers, len, count) = (word(0x28)?, quarter(0x3a)?, quarter(0x3c)?);
        let sections = (0..count)
            .map(|index| headers + index * len)
            .map(|at| {
                Ok(Section {
                    kind: half(at + 4)?,
                    flags: word(at + 8)?,
                    address: word(at + 0x10)?,
                    offset: word(at + 0x18)?,
                    len: word(at + 0x20)?,
                    link: half(at + 0x28)?,
                    info: half(at + 0x2c)?,
                })
            })
            .collect::<Result<_, String>>()?;
        let [shared, own] = ranges;
        if shared.1 == 0 || own.1 == 0 || own.0 < shared.1 {
            return Err("not a read-only segment and then a writable one".to_owned());
        }
        Ok(Self {
            bytes,
            sections,
            shared,
            own,
        })
    }

    /// Where an address of the program lies in the file.
    fn offset(&self, address: u64) -> Result<u64, String> {
        self.sections
            .iter()
            .find(|section| {
                section.flags & ALLOCATED != 0
                    && section.kind != NO_BITS
                    && (section.address..section.address + section.len).contains(&address)
            })
            .map(|section| section.offset + (address - section.address))
            .ok_or_else(|| format!("nothing in the file is at {address:#x}"))
    }

    /// An integer in the program, of up to 8 bytes, sign-extended.
    pub fn read(&self, address: u64, len: usize) -> Result<u64, String> {
        let value = number(&self.bytes, self.offset(address)?, len)?;
        let unused = 64 - len as u32 * 8;
        Ok(((value << unused) as i64 >> unused) as u64)
    }

    pub fn code(&self, from: u64, to: u64) -> Result<&[u8], String> {
        let start = self.offset(from)? as usize;
        self.bytes
            .get(start..start + (to - from) as usize)
            .ok_or_else(|| "the file is too short".to_owned())
    }

    pub fn write(&mut self, address: u64, new: &[u8]) -> Result<(), String> {
        let start = self.offset(address)? as usize;
        let place = self
            .bytes
            .get_mut(start..start + new.len())
            .ok_or("the file is too short")?;
        place.copy_from_slice(new);
        Ok(())
    }

    /// All relocations of what is loaded, each with its section.
    pub fn relocations(&self) -> Result<Vec<(Section, Relocation)>, String> {
        let mut list = Vec::new();
        for table in self
            .sections
            .iter()
            .filter(|section| section.kind == RELOCATIONS)
        {
            let Some(target) = self.sections.get(table.info as usize) else {
                continue;
            };
            if target.flags & ALLOCATED == 0 {
                continue;
            }
            for at in (table.offset..table.offset + table.len).step_by(24) {
                let relocation = Relocation {
                    address: number(&self.bytes, at, 8)?,
                    kind: number(&self.bytes, at + 8, 4)? as u32,
                };
                list.push((*target, relocation));
            }
        }
        Ok(list)
    }

    /// The address of a symbol.
    pub fn symbol(&self, name: &str) -> Result<u64, String> {
        for table in self
            .sections
            .iter()
            .filter(|section| section.kind == SYMBOLS)
        {
            let names = self
                .sections
                .get(table.link as usize)
                .ok_or("a symbol table has no names")?;
            for at in (table.offset..table.offset + table.len).step_by(24) {
                let start = (names.offset + number(&self.bytes, at, 4)?) as usize;
                let found = self
                    .bytes
                    .get(start..start + name.len() + 1)
                    .is_some_and(|bytes| {
                        bytes.ends_with(&[0]) && bytes.starts_with(name.as_bytes())
                    });
                if found {
                    return number(&self.bytes, at + 8, 8);
                }
            }
        }
        Err(format!("the program has no {name}"))
    }
}
