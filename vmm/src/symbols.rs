//! Names for the addresses in a guest's fault report.
//!
//! The kernel prints `kernel 0x4012ab` and `postgres 0x801f20`, as these are linked; the image's own files still have
//! their symbol tables. They are read only when such a line comes, which is when a guest or one of its processes is about
//! to end.

use std::path::PathBuf;

use object::{Object, ObjectSymbol};

/// Where the symbols are.
#[derive(Clone, Debug)]
pub struct Programs {
    pub kernel: PathBuf,
    pub postgres: PathBuf,
}

type Which = fn(&Programs) -> &PathBuf;

/// What stands before an address of each program.
const MARKS: [(&str, Which); 2] = [("kernel 0x", |p| &p.kernel), ("postgres 0x", |p| &p.postgres)];

/// The functions of one program: (address, name), in order of address.
struct Table(Vec<(u64, String)>);

impl Table {
    fn read(path: &PathBuf) -> Option<Self> {
        let bytes = std::fs::read(path).ok()?;
        let file = object::File::parse(&*bytes).ok()?;
        let mut functions: Vec<(u64, String)> = file
            .symbols()
            .filter(|symbol| symbol.kind() == object::SymbolKind::Text && symbol.is_definition())
            .filter_map(|symbol| Some((symbol.address(), symbol.name().ok()?.to_owned())))
            .collect();
        functions.sort_unstable();
        Some(Self(functions))
    }

    /// `name+0xoffset` of the function that holds or precedes the address.
    fn name(&self, address: u64) -> Option<String> {
        let at = self.0.partition_point(|(start, _)| *start <= address).checked_sub(1)?;
        let (start, name) = self.0.get(at)?;
        Some(format!("{:#}+{:#x}", rustc_demangle::demangle(name), address - start))
    }
}

/// Adds names to lines that speak of addresses.
pub struct Symbols {
    programs: Programs,
    tables: [Option<Option<Table>>; MARKS.len()],
}

impl Symbols {
    pub fn new(programs: Programs) -> Self {
        Self { programs, tables: [const { None }; MARKS.len()] }
    }

    /// The line with `  name+0x…` before its end, if it holds an address that has a name.
    pub fn annotate(&mut self, line: &[u8]) -> Vec<u8> {
        let name = std::str::from_utf8(line).ok().and_then(|text| self.name_in(text));
        let Some(name) = name else { return line.to_vec() };
        let (text, end) = line.split_at(line.len() - usize::from(line.ends_with(b"\n")));
        [text, b"  ", name.as_bytes(), end].concat()
    }

    fn name_in(&mut self, line: &str) -> Option<String> {
        let (index, digits) = MARKS.iter().enumerate().find_map(|(index, (mark, _))| {
            let start = line.find(mark)? + mark.len();
            Some((index, line.get(start..)?))
        })?;
        let end = digits.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digits.len());
        let address = u64::from_str_radix(digits.get(..end)?, 16).ok()?;
        let table = self.tables[index].get_or_insert_with(|| Table::read(MARKS[index].1(&self.programs)));
        table.as_ref()?.name(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_a_real_program_get_their_functions_names() {
        let own = std::env::current_exe().unwrap();
        let bytes = std::fs::read(&own).unwrap();
        let file = object::File::parse(&*bytes).unwrap();
        let main = file.symbols().find(|symbol| symbol.name() == Ok("main")).unwrap().address();
        let mut symbols = Symbols::new(Programs { kernel: own, postgres: "/nowhere".into() });
        let line = format!("  by kernel {:#x}\n", main + 3);
        assert_eq!(symbols.annotate(line.as_bytes()), format!("  by kernel {:#x}  main+0x3\n", main + 3).as_bytes());
        assert_eq!(symbols.annotate(b"  at postgres 0x800123\n"), b"  at postgres 0x800123\n");
        assert_eq!(symbols.annotate(b"kernel 0xzz\n"), b"kernel 0xzz\n");
        assert_eq!(symbols.annotate(b"\xff\n"), b"\xff\n");
    }
}
