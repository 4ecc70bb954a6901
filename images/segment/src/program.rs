//! What is done to a linked program.

use crate::elf::{Program, Relocation};

/// The variable that holds the segment's base.
const BASE: &str = "__dormouse_segment";

/// Kinds of relocations, as the x86-64 ABI numbers them.
mod kind {
    pub const NONE: u32 = 0;
    pub const ABS_64: u32 = 1;
    pub const PC_32: u32 = 2;
    pub const PLT_32: u32 = 4;
    pub const GOT: [u32; 3] = [9, 41, 42];
    pub const ABS_32: u32 = 10;
    pub const ABS_32S: u32 = 11;
    pub const PC_64: u32 = 24;
}

/// Prefix bytes: of `%fs`, and one that means nothing in 64-bit code (`%cs`).
const FS: u8 = 0x64;
const IDLE: u8 = 0x2e;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    /// Code, constants, and a weak symbol that nobody defines.
    Shared,
    Own,
}

/// A pointer may point a little before or past what it belongs to.
const SLACK: u64 = 64 << 10;

/// What was done.
#[derive(Debug, Default)]
pub struct Report {
    pub words: Vec<u32>,
    pub accesses: u32,
    pub addresses: u32,
}

/// The first bytes of an instruction.
struct Instruction<'a> {
    start: u64,
    bytes: &'a [u8],
    /// Where after `start` its `%fs` stands.
    fs: Option<usize>,
    /// Length of its prefixes, without REX.
    prefixes: usize,
}

impl<'a> Instruction<'a> {
    fn parse(start: u64, bytes: &'a [u8]) -> Result<Self, String> {
        let is_prefix = |byte: &u8| {
            matches!(
                *byte,
                0x26 | 0x2e | 0x36 | 0x3e | FS | 0x65 | 0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3
            )
        };
        let prefixes = bytes.iter().take_while(|byte| is_prefix(byte)).count();
        if bytes[..prefixes]
            .iter()
            .any(|byte| matches!(byte, 0x65 | 0x67))
        {
            return Err("an instruction with %gs or a short address".to_owned());
        }
        let fs = bytes[..prefixes].iter().position(|byte| *byte == FS);
        Ok(Self {
            start,
            bytes,
            fs,
            prefixes,
        })
    }

    /// The opcode's first byte, without REX, and what follows.
    fn opcode(&self) -> &[u8] {
        let rest = &self.bytes[self.prefixes..];
        match rest.first() {
            Some(0x40..=0x4f) => &rest[1..],
            _ => rest,
        }
    }

    fn is_branch(&self) -> bool {
        matches!(self.opcode(), [0xe8 | 0xe9, ..] | [0x0f, 0x80..=0x8f, ..])
    }

    fn is_lea(&self) -> bool {
        self.opcode().first() == Some(&0x8d)
    }
}

/// Numbers of the registers that an instruction `op disp32(base), register` or `op (%rip), register` names.
fn register(rex: u8, modrm: u8) -> u8 {
    (rex & 4) << 1 | (modrm >> 3 & 7)
}

struct Pass<'a> {
    program: &'a mut Program,
    /// Where instructions begin.
    starts: Vec<u64>,
    base: u64,
    report: Report,
}

impl Pass<'_> {
    fn side(&self, address: u64) -> Result<Side, String> {
        let near = |(from, to): (u64, u64)| (from - SLACK..=to + SLACK).contains(&address);
        if address < 4096 || near(self.program.shared) {
            Ok(Side::Shared)
        } else if near(self.program.own) {
            Ok(Side::Own)
        } else {
            Err(format!("{address:#x} is neither shared nor a process' own"))
        }
    }

    /// The first and the last address of the instruction that holds a relocation's four bytes.
    fn bounds(&self, at: u64) -> Result<(u64, u64), String> {
        let next = self.starts.partition_point(|start| *start <= at);
        match (
            next.checked_sub(1).map(|index| self.starts[index]),
            self.starts.get(next),
        ) {
            (Some(start), Some(end)) if *end >= at + 4 && *end - start <= 15 => Ok((start, *end)),
            _ => Err("no instruction there".to_owned()),
        }
    }

    fn data(&mut self, relocation: Relocation) -> Result<(), String> {
        let at = relocation.address;
        let here = self.side(at)?;
        let (target, moves) = match relocation.kind {
            kind::ABS_64 => (self.program.read(at, 8)?, true),
            kind::ABS_32 | kind::ABS_32S => (self.program.read(at, 4)?, false),
            kind::PC_32 => (at.wrapping_add(self.program.read(at, 4)?), false),
            kind::PC_64 => (at.wrapping_add(self.program.read(at, 8)?), false),
            other => return Err(format!("a relocation of kind {other} in data")),
        };
        let there = self.side(target)?;
        let relative = matches!(relocation.kind, kind::PC_32 | kind::PC_64);
        match (here, there) {
            (Side::Own, Side::Own) if moves => {
                self.report.words.push(at as u32);
                Ok(())
            }
            (_, Side::Shared) if !relative => Ok(()),
            _ if relative && here == there => Ok(()),
            _ => Err(format!(
                "a constant that depends on where the process' {target:#x} is"
            )),
        }
    }

    fn code(&mut self, relocation: Relocation) -> Result<(), String> {
        let at = relocation.address;
        if relocation.kind == kind::ABS_64 {
            return self.absolute(self.program.read(at, 8)?);
        }
        let (start, end) = self.bounds(at)?;
        let bytes = self.program.code(start, end)?.to_vec();
        let instruction = Instruction::parse(start, &bytes)?;
        let value = self.program.read(at, 4)?;
        match relocation.kind {
            kind::PC_32 | kind::PLT_32 => self.relative(&instruction, at, end.wrapping_add(value)),
            got if kind::GOT.contains(&got) => {
                let entry = end.wrapping_add(value);
                if instruction.fs.is_some() || self.side(entry)? != Side::Shared {
                    return Err("the table of addresses is not shared".to_owned());
                }
                self.absolute(self.program.read(entry, 8)?)
            }
            kind::ABS_32S if instruction.is_lea() => self.address(&instruction, at, value),
            kind::ABS_32 | kind::ABS_32S => self.absolute(value),
            other => Err(format!("a relocation of kind {other} in code")),
        }
    }

    /// An address in code that no segment is added to.
    fn absolute(&self, target: u64) -> Result<(), String> {
        match self.side(target)? {
            Side::Shared => Ok(()),
            Side::Own => Err(format!("the process' {target:#x} without its segment")),
        }
    }

    fn relative(&mut self, instruction: &Instruction, at: u64, target: u64) -> Result<(), String> {
        let side = self.side(target)?;
        if instruction.is_branch() {
            return self.absolute(target);
        }
        let disp = (at - instruction.start) as usize;
        if instruction.bytes[disp - 1] & 0xc7 != 0x05 {
            return Err("not an operand relative to %rip".to_owned());
        }
        match (side, instruction.fs) {
            (Side::Own, Some(_)) if !instruction.is_lea() => Ok(()),
            (Side::Own, _) => Err(format!("the process' {target:#x} without its segment")),
            (Side::Shared, None) => Ok(()),
            (Side::Shared, Some(prefix)) => {
                self.report.accesses += 1;
                self.program
                    .write(instruction.start + prefix as u64, &[IDLE])
            }
        }
    }

    /// The second half of `mov %fs:BASE(%rip), register; lea target(register), register`.
    fn address(&mut self, lea: &Instruction, at: u64, target: u64) -> Result<(), String> {
        let side = self.side(target)?;
        let load_at = lea.start - 8;
        let load = self.program.code(load_at, lea.start)?;
        let base = lea.start.wrapping_add(self.program.read(lea.start - 4, 4)?);
        let number = match (load, lea.bytes) {
            (
                [FS, rex @ (0x48 | 0x4c), 0x8b, modrm, ..],
                [lea_rex @ (0x48 | 0x4d), 0x8d, lea_modrm, rest @ ..],
            ) if modrm & 0xc7 == 0x05
                && self.starts.binary_search(&load_at).is_ok()
                && base == self.base
                && lea_modrm & 0xc0 == 0x80
                && lea_modrm >> 3 & 7 == lea_modrm & 7
                && (*lea_rex == 0x4d) == (*rex == 0x4c)
                && register(*rex, *modrm) == register(*lea_rex, *lea_modrm)
                && (lea_modrm & 7 != 4 || rest.first() == Some(&0x24))
                && at - lea.start == if lea_modrm & 7 == 4 { 4 } else { 3 } =>
            {
                register(*rex, *modrm)
            }
            _ => return self.absolute(target),
        };
        if side == Side::Own {
            return Ok(());
        }
        // `mov $target, register`, whose upper half becomes 0, and one idle instruction.
        let len = 8 + lea.bytes.len();
        let mut new = Vec::with_capacity(len);
        if number >= 8 {
            new.push(0x41);
        }
        new.push(0xb8 | number & 7);
        new.extend_from_slice(
            &u32::try_from(target)
                .map_err(|_| "an address beyond 4 GiB")?
                .to_le_bytes(),
        );
        match len - new.len() {
            9 => new.extend_from_slice(&[0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0]),
            10 => new.extend_from_slice(&[0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0]),
            left => return Err(format!("{left} bytes left of an address")),
        }
        self.report.addresses += 1;
        self.program.write(load_at, &new)
    }

    /// What the disassembly shows by itself, relocations aside: no data without the segment, and no segment but so.
    fn line(&self, line: &str) -> Result<(), String> {
        let has_fs = line.contains("%fs:");
        match line.split_once("(%rip)") {
            None if has_fs => Err("a use of %fs that is not relative to %rip".to_owned()),
            None => Ok(()),
            Some((_, comment)) => {
                let target = comment
                    .split_once("# ")
                    .and_then(|(_, rest)| rest.split([' ', '<']).next());
                let target = target
                    .and_then(|digits| u64::from_str_radix(digits, 16).ok())
                    .ok_or("no target is shown")?;
                let own = (self.program.own.0..self.program.own.1).contains(&target);
                if own && !has_fs {
                    Err(format!("the process' {target:#x} without its segment"))
                } else {
                    Ok(())
                }
            }
        }
    }
}

/// The address that a line of a disassembly begins with, if it is one of an instruction.
fn start(line: &str) -> Option<u64> {
    let (digits, _) = line.trim_start().split_once(":\t")?;
    u64::from_str_radix(digits, 16).ok()
}

/// Does to the program what `finish` says.
pub fn finish(program: &mut Program, disassembly: &str) -> Result<Report, String> {
    let mut lines: Vec<(u64, &str)> = disassembly
        .lines()
        .filter_map(|line| Some((start(line)?, line)))
        .collect();
    lines.sort_unstable_by_key(|(start, _)| *start);
    let mut starts: Vec<u64> = lines.iter().map(|(start, _)| *start).collect();
    // The end of the last instruction of all does not matter, but it has one.
    starts.extend(starts.last().map(|last| last + 15));
    let base = program.symbol(BASE)?;
    let mut pass = Pass {
        program,
        starts,
        base,
        report: Report::default(),
    };
    let mut errors = Vec::new();
    for (at, line) in lines {
        if let Err(error) = pass.line(line) {
            errors.push(format!("{at:#x}: {error}"));
        }
    }
    for (section, relocation) in pass.program.relocations()? {
        let done = match relocation.kind {
            kind::NONE => Ok(()),
            _ if section.is_code() => pass.code(relocation),
            _ => pass.data(relocation),
        };
        if let Err(error) = done {
            errors.push(format!("{:#x}: {error}", relocation.address));
        }
    }
    if !errors.is_empty() {
        let (count, some) = (errors.len(), errors[..errors.len().min(40)].join("\n"));
        return Err(format!(
            "{count} places that would not work in every process:\n{some}"
        ));
    }
    pass.report.words.push(base as u32);
    pass.report.words.sort_unstable();
    pass.report.words.dedup();
    Ok(pass.report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::process::Command;

    fn run(folder: &Path, words: &[&str]) -> String {
        let output = Command::new(words[0])
            .args(&words[1..])
            .current_dir(folder)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a program with this code is after assembly, link and pass, disassembled; and the pass's report. Beside the code
    /// there is `d` among data, `c` among constants, `f` among code, and a weak `nobody`.
    fn made(name: &str, code: &str, rewritten: bool) -> Result<(String, Report), String> {
        let folder =
            std::env::temp_dir().join(format!("dormouse-segment-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let other = ".globl d,c,f,__dormouse_segment\n.data\nd: .quad 7, d+8, c\n.section .rodata\nc: .quad 9, f\n.text\nf: ret\n\
            .bss\n__dormouse_segment: .quad 0\n";
        let code = format!(".weak nobody\n.globl _start\n_start:\n{code}\nret\n");
        let code = if rewritten {
            crate::rewrite::rewrite(&code).unwrap()
        } else {
            code
        };
        for (name, text) in [("code", code.as_str()), ("other", other)] {
            std::fs::write(folder.join(format!("{name}.s")), text).unwrap();
            run(
                &folder,
                &["as", "-o", &format!("{name}.o"), &format!("{name}.s")],
            );
        }
        run(
            &folder,
            &[
                "ld",
                "-no-pie",
                "--emit-relocs",
                "--no-relax",
                "-Ttext-segment=0x800000",
                "-Tdata=0x2000000",
                "-o",
                "program",
                "code.o",
                "other.o",
            ],
        );
        let before = run(&folder, &["objdump", "-d", "--no-show-raw-insn", "program"]);
        let mut program = Program::parse(std::fs::read(folder.join("program")).unwrap()).unwrap();
        let report = finish(&mut program, &before);
        std::fs::write(folder.join("program"), &program.bytes).unwrap();
        let after = run(&folder, &["objdump", "-d", "--no-show-raw-insn", "program"]);
        std::fs::remove_dir_all(&folder).unwrap();
        let start = after.find("<_start>:").unwrap();
        report.map(|report| (after[start..].to_owned(), report))
    }

    #[test]
    fn an_access_is_what_the_link_shows_it_to_be() {
        let code = "mov d(%rip), %rax\nmov c(%rip), %rbx\nmovss c(%rip), %xmm3\nincl 8+d(%rip)\ncall *c+8(%rip)";
        let (text, report) = made("access", code, true).unwrap();
        let has = |part: &str| assert!(text.contains(part), "{part}: {text}");
        has("mov    %fs:0x");
        has("incl   %fs:0x");
        has("cs movss 0x");
        has("cs call *0x");
        assert!(!text.contains("%fs:0x0"), "{text}");
        assert_eq!((report.accesses, report.addresses), (3, 0));
        // `d+8`'s word, and the base's own.
        assert_eq!(report.words.len(), 2);
        assert_eq!(report.words[0], 0x200_0008);
    }

    #[test]
    fn an_address_is_the_segments_or_a_constant() {
        let code = "lea d+8(%rip), %rdi\nlea c(%rip), %r12\nlea f(%rip), %rax\nlea d(%rip), %r12\nlea nobody(%rip), %r9";
        let (text, report) = made("address", code, true).unwrap();
        let has = |part: &str| assert!(text.contains(part), "{part}: {text}");
        has("0x2000008(%rdi),%rdi");
        has("0x2000000(%r12),%r12");
        has("mov    $0x80");
        has("mov    $0x0,%r9d");
        assert_eq!(report.addresses, 3);
        assert_eq!(text.matches("%fs:").count(), 2, "{text}");
    }

    #[test]
    fn code_that_does_not_know_of_the_segment_is_refused_if_it_has_data() {
        for (name, bad) in [
            ("read", "mov d(%rip), %rax"),
            ("lea", "lea d(%rip), %rax"),
            ("constant", "mov $d, %edi"),
            ("wide", "movabs $d, %rdi"),
            ("indexed", "mov d(,%rax,8), %rax"),
            ("other", "mov %fs:40, %rax"),
            ("got", "movq d@GOTPCREL(%rip), %xmm0"),
        ] {
            let error = made(name, bad, false).map(|(text, _)| text).unwrap_err();
            assert!(
                error.contains("segment") || error.contains("%fs"),
                "{name}: {error}"
            );
        }
        for (name, good) in [
            ("shared", "mov c(%rip), %rax"),
            ("function", "mov $f, %edi"),
            ("table", "mov c(,%rax,8), %rax"),
        ] {
            made(name, good, false).unwrap();
        }
    }

    #[test]
    fn a_constant_must_not_depend_on_the_process() {
        for (name, bad) in [
            ("pointer", ".section .rodata\n.quad d\n.text"),
            ("distance", ".section .rodata\n.long d - .\n.text"),
            ("short", ".data\n.long d\n.text"),
        ] {
            let error = made(name, bad, false).map(|(text, _)| text).unwrap_err();
            assert!(error.contains("depends on where"), "{name}: {error}");
        }
    }
}
