//! The pass after the linker: `finish PROGRAM DISASSEMBLY WORDS`.
//!
//! The assembler took every symbol that a file does not have among its own code and constants for data. Now that all
//! addresses are known, accesses to what turned out to be shared lose their segment, and the addresses of such become
//! constants. Whatever would reach data without the segment is an error, in code of whatever origin. WORDS gets the link
//! addresses of all words of data to which a process adds its segment's base, as 32-bit integers.
//!
//! PROGRAM is linked at a fixed address with `--emit-relocs`, and changed in place; DISASSEMBLY is what `objdump -d
//! --no-show-raw-insn` says of it.

mod elf;
mod program;
#[cfg(test)]
mod rewrite;

use std::process::ExitCode;

fn run() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, disassembly, words] = &arguments[..] else {
        return Err("usage: finish PROGRAM DISASSEMBLY WORDS".to_owned());
    };
    let read = |path: &String| std::fs::read(path).map_err(|error| format!("{path}: {error}"));
    let write = |path: &String, bytes: &[u8]| {
        std::fs::write(path, bytes).map_err(|error| format!("{path}: {error}"))
    };
    let mut program =
        elf::Program::parse(read(path)?).map_err(|error| format!("{path}: {error}"))?;
    let text = String::from_utf8_lossy(&read(disassembly)?).into_owned();
    let report = program::finish(&mut program, &text)?;
    let bytes: Vec<u8> = report
        .words
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    write(words, &bytes)?;
    write(path, &program.bytes)?;
    println!(
        "{path}: {} words of data are relocated; {} accesses and {} addresses turned out to be of shared things",
        report.words.len(),
        report.accesses,
        report.addresses
    );
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("segment-finish: {error}");
            ExitCode::FAILURE
        }
    }
}
