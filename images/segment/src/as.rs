//! Stands in the assembler's place (`gcc -B`): rewrites what the compiler wrote so that data is found relative to `%fs`,
//! and hands it to the assembler.
//!
//! Only the last input file is rewritten, and there is never more than one from a compiler.

mod rewrite;

use std::io::{Read, Write};
use std::process::{Command, ExitCode, Stdio};

/// Options of the assembler that a compiler passes with their value as the next word.
const WITH_VALUE: [&str; 5] = ["-o", "-I", "-D", "--MD", "--debug-prefix-map"];

fn run() -> Result<ExitCode, String> {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let mut input = None;
    let mut at = 0;
    while at < words.len() {
        if WITH_VALUE.contains(&words[at].as_str()) {
            at += 2;
            continue;
        }
        if !words[at].starts_with('-') {
            input = Some(at);
        }
        at += 1;
    }
    let mut source = Vec::new();
    let name = match input {
        Some(at) => {
            let name = std::mem::replace(&mut words[at], "-".to_owned());
            source = std::fs::read(&name).map_err(|error| format!("{name}: {error}"))?;
            name
        }
        // What only asks for a version has no input.
        None if words.iter().any(|word| word == "--version") => String::new(),
        None => {
            std::io::stdin()
                .read_to_end(&mut source)
                .map_err(|error| format!("standard input: {error}"))?;
            "standard input".to_owned()
        }
    };
    // Comments and strings may be in any encoding.
    let text: String = source.iter().map(|&byte| char::from(byte)).collect();
    let rewritten =
        rewrite::rewrite(&text).map_err(|(line, why)| format!("{name}:{line}: {why}"))?;
    let bytes: Vec<u8> = rewritten.chars().map(|c| c as u8).collect();
    let mut assembler = Command::new("as")
        .args(&words)
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|error| format!("as: {error}"))?;
    if let Some(mut pipe) = assembler.stdin.take() {
        // An assembler that ends early says why itself.
        let _ = pipe.write_all(&bytes);
    }
    let status = assembler.wait().map_err(|error| format!("as: {error}"))?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("segment-as: {error}");
        ExitCode::FAILURE
    })
}
