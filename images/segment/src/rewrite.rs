//! Rewrites AT&T assembly so that data is found relative to `%fs`.
//!
//! | compiled | becomes |
//! |---|---|
//! | `mov x(%rip), %eax` | `mov %fs:x(%rip), %eax` |
//! | `lea x(%rip), %rax`, `mov x@GOTPCREL(%rip), %rax` | `mov %fs:__dormouse_segment(%rip), %rax; lea x(%rax), %rax` |
//! | `add x@GOTPCREL(%rip), %rax` and the like | `add %fs:.Laddress.x(%rip), %rax`, and a word with the address of `x` among data |
//!
//! What this file itself puts among code or constants stays as it is. All else is taken for data: what of it turns out
//! not to be is put right after the link (`finish`), which also refuses whatever was missed here. No flag changes, and no
//! register but the one that is written anyway.

use std::collections::{BTreeSet, HashMap};

/// The variable that holds the segment's base.
const BASE: &str = "__dormouse_segment";

/// Where a symbol of this file lies, as far as that matters.
#[derive(Clone, Debug, PartialEq)]
enum Place<'a> {
    /// Among code or constants, which all processes share.
    Shared,
    Own,
    Alias(&'a str),
}

fn is_symbol(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'$')
}

fn section_is_shared(name: &str) -> bool {
    let name = name.trim_matches('"');
    let below = |root: &str| {
        name.strip_prefix(root)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    below(".text") || below(".rodata") || name == ".init" || name == ".fini"
}

/// Statements of a line, without its comment. A `;` in a string ends a statement too early, which does no harm: what
/// looks for strings looks at directives only, and those are not changed.
fn statements(line: &str) -> impl Iterator<Item = &str> {
    let code = line.split('#').next().unwrap_or_default();
    code.split(';').map(str::trim)
}

/// Takes labels off a statement's front.
fn labels<'a>(mut statement: &'a str, mut each: impl FnMut(&'a str)) -> &'a str {
    loop {
        let end = statement
            .bytes()
            .position(|byte| !is_symbol(byte))
            .unwrap_or(statement.len());
        if end == 0 || statement.as_bytes().get(end) != Some(&b':') {
            return statement;
        }
        each(&statement[..end]);
        statement = statement[end + 1..].trim_start();
    }
}

/// Which symbols of the file lie where.
fn places(text: &str) -> HashMap<&str, Place<'_>> {
    let mut places = HashMap::new();
    let mut shared = true;
    let mut before = true;
    let mut pushed = Vec::new();
    for line in text.lines() {
        for statement in statements(line) {
            let place = if shared { Place::Shared } else { Place::Own };
            let rest = labels(statement, |name| {
                places.insert(name, place.clone());
            });
            let (word, operands) = rest.split_once([' ', '\t']).unwrap_or((rest, ""));
            let first = operands.split(',').next().unwrap_or_default().trim();
            match word {
                ".text" => (before, shared) = (shared, true),
                ".data" | ".bss" => (before, shared) = (shared, false),
                ".section" => (before, shared) = (shared, section_is_shared(first)),
                ".pushsection" => {
                    pushed.push((shared, before));
                    (before, shared) = (shared, section_is_shared(first));
                }
                ".popsection" => (shared, before) = pushed.pop().unwrap_or((false, false)),
                ".previous" => std::mem::swap(&mut shared, &mut before),
                ".comm" | ".lcomm" => drop(places.insert(first, Place::Own)),
                ".set" | ".equ" => {
                    if let Some((_, target)) = operands.split_once(',') {
                        places.insert(first, Place::Alias(target.trim()));
                    }
                }
                _ => {}
            }
        }
    }
    places
}

fn is_shared(places: &HashMap<&str, Place<'_>>, symbol: &str) -> bool {
    let mut symbol = symbol;
    // Aliases of aliases are few; a circle is not the assembler's either.
    for _ in 0..16 {
        match places.get(symbol) {
            Some(Place::Alias(target)) => symbol = target,
            Some(place) => return *place == Place::Shared,
            None => return false,
        }
    }
    false
}

/// The symbol of `symbol±n`, `n+symbol` or a number; an error for what has two symbols.
fn symbol_of(expression: &str) -> Result<Option<&str>, String> {
    let mut symbols = expression
        .split(['+', '-'])
        .filter(|term| !term.is_empty() && !term.as_bytes()[0].is_ascii_digit());
    match (symbols.next(), symbols.next()) {
        (symbol, None) => Ok(symbol),
        _ => Err(format!(
            "cannot tell where `{expression}` lies: it has two symbols"
        )),
    }
}

const RIP: &str = "(%rip)";
/// What stands before a symbol's name in the label of a word with its address.
const ADDRESS: &str = ".Laddress.";

/// Rewrites one statement with one operand relative to `%rip`.
///
/// Symbols of which it needs a word with the address are added to `addresses`.
fn statement<'a>(
    statement: &'a str,
    places: &HashMap<&str, Place<'_>>,
    addresses: &mut BTreeSet<&'a str>,
) -> Result<String, String> {
    let unchanged = || Ok(statement.to_owned());
    let at = statement.find(RIP).ok_or("no operand relative to %rip")?;
    if statement[at + RIP.len()..].contains(RIP) {
        return Err("two operands relative to %rip".to_owned());
    }
    let start = statement[..at]
        .rfind(|c: char| !(matches!(c, '@' | '+' | '-') || c.is_ascii() && is_symbol(c as u8)))
        .map_or(0, |before| before + 1);
    let operand = &statement[start..at];
    match statement[..start].chars().next_back() {
        // Has a segment already.
        Some(':') => return unchanged(),
        Some(' ' | '\t' | ',' | '*') => {}
        _ => return Err(format!("cannot read the operand before {RIP}")),
    }
    let body = labels(statement.trim_start(), |_| {});
    let mnemonic = body.split([' ', '\t']).next().unwrap_or_default();
    if mnemonic.starts_with('.') {
        return unchanged();
    }
    let (expression, from_got) = match operand.split_once('@') {
        None => (operand, false),
        Some((symbol, "GOTPCREL")) => (symbol, true),
        Some((_, kind)) => return Err(format!("an operand of kind @{kind}")),
    };
    let Some(symbol) = symbol_of(expression)? else {
        return unchanged();
    };
    let target = statement[at + RIP.len()..]
        .trim_start()
        .strip_prefix(',')
        .map(str::trim);
    let register = target.filter(|register| is_register(register));
    let moves = mnemonic == "mov" || mnemonic == "movq";
    let takes_address = if from_got {
        moves && register.is_some()
    } else {
        mnemonic.starts_with("lea")
    };
    if from_got && !takes_address {
        // The linker's own table of addresses could not be a process' own: code that does not know of %fs reads it.
        addresses.insert(symbol);
        return Ok(format!(
            "{}%fs:{ADDRESS}{symbol}{}",
            &statement[..start],
            &statement[at..]
        ));
    }
    let shared = is_shared(places, symbol);
    if shared && !from_got {
        return unchanged();
    }
    if !takes_address {
        return Ok(format!(
            "{}%fs:{}",
            &statement[..start],
            &statement[start..]
        ));
    }
    let register = register.ok_or("the address of data in anything but a 64-bit register")?;
    let front = &statement[..statement.len() - body.len()];
    if shared {
        return Ok(format!("{front}lea {expression}{RIP}, {register}"));
    }
    Ok(format!(
        "{front}mov %fs:{BASE}{RIP}, {register}; lea {expression}({register}), {register}"
    ))
}

fn is_register(name: &str) -> bool {
    const NAMES: [&str; 15] = [
        "%rax", "%rbx", "%rcx", "%rdx", "%rsi", "%rdi", "%rbp", "%r8", "%r9", "%r10", "%r11",
        "%r12", "%r13", "%r14", "%r15",
    ];
    NAMES.contains(&name)
}

/// Rewrites a file; an error comes with its line. Lines keep their numbers.
pub fn rewrite(text: &str) -> Result<String, (usize, String)> {
    let places = places(text);
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    let mut addresses = BTreeSet::new();
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let code = line.split('#').next().unwrap_or_default();
        if !code.contains(RIP) {
            out.push_str(line);
            continue;
        }
        for (place, part) in code.split(';').enumerate() {
            if place > 0 {
                out.push(';');
            }
            if part.contains(RIP) {
                let end = part.trim_end().len();
                out.push_str(
                    &statement(&part[..end], &places, &mut addresses)
                        .map_err(|why| (index + 1, why))?,
                );
                out.push_str(&part[end..]);
            } else {
                out.push_str(part);
            }
        }
        out.push_str(&line[code.len()..]);
    }
    for symbol in addresses {
        let section = format!(".section .data.rel.ro.address.{symbol}, \"aw\"");
        out.push_str(&format!(
            "\t{section}\n\t.balign 8\n{ADDRESS}{symbol}:\t.quad {symbol}\n"
        ));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Symbols of every kind, before the statement in question.
    const FILE: &str = "
	.text
f:	ret
	.section	.rodata.str1.1,\"aMS\",@progbits,1
.LC0:	.string \"a;b (%rip)\"
	.section	.data.rel.ro.local,\"aw\"
.LC1:	.quad f
	.data
d:	.quad 0
	.set	constant, .LC0
	.set	variable, d
	.local	b
	.comm	b,8,8
	.text
";

    fn one(statement: &str) -> String {
        let out = rewrite(&format!("{FILE}\t{statement}\n")).unwrap();
        out.strip_prefix(FILE).unwrap().trim().to_owned()
    }

    #[test]
    fn an_access_to_data_gets_the_segment() {
        for (before, after) in [
            ("movl	d(%rip), %eax", "movl	%fs:d(%rip), %eax"),
            ("movl	$5, unknown+8(%rip)", "movl	$5, %fs:unknown+8(%rip)"),
            (
                "lock cmpxchgq	%rdx,-8+b(%rip)",
                "lock cmpxchgq	%rdx,%fs:-8+b(%rip)",
            ),
            ("call	*variable(%rip)", "call	*%fs:variable(%rip)"),
            ("vmovdqu	.LC1(%rip), %ymm0", "vmovdqu	%fs:.LC1(%rip), %ymm0"),
            (
                "1: incq d(%rip); ret # x(%rip)",
                "1: incq %fs:d(%rip); ret # x(%rip)",
            ),
            (
                "imulq	$24, d+4(%rip), %rax",
                "imulq	$24, %fs:d+4(%rip), %rax",
            ),
        ] {
            assert_eq!(one(before), after);
        }
    }

    #[test]
    fn an_address_of_data_is_taken_from_the_segments_base() {
        let base = "mov %fs:__dormouse_segment(%rip)";
        for (before, after) in [
            (
                "leaq	d+8(%rip), %rdi",
                format!("{base}, %rdi; lea d+8(%rdi), %rdi"),
            ),
            (
                "2: lea	unknown(%rip),%r12",
                format!("2: {base}, %r12; lea unknown(%r12), %r12"),
            ),
            (
                "movq	g@GOTPCREL(%rip), %rax",
                format!("{base}, %rax; lea g(%rax), %rax"),
            ),
        ] {
            assert_eq!(one(before), after);
        }
    }

    #[test]
    fn what_the_file_has_among_code_and_constants_stays() {
        for same in [
            "movss	.LC0+4(%rip), %xmm0",
            "leaq	f(%rip), %rax",
            "leaq	constant(%rip), %rax",
            "call	f",
            "movl	%fs:d(%rip), %eax",
            "movl	4(%rax), %eax",
        ] {
            assert_eq!(one(same), same);
        }
        assert_eq!(one("movq	f@GOTPCREL(%rip), %rax"), "lea f(%rip), %rax");
    }

    #[test]
    fn an_address_in_another_operand_is_read_from_a_word_of_its_own() {
        for (before, after) in [
            (
                "cmpq	$0, weak@GOTPCREL(%rip)",
                "cmpq	$0, %fs:.Laddress.weak(%rip)",
            ),
            (
                "addq	weak@GOTPCREL(%rip), %rdi",
                "addq	%fs:.Laddress.weak(%rip), %rdi",
            ),
            (
                "movq	weak@GOTPCREL(%rip), %xmm0",
                "movq	%fs:.Laddress.weak(%rip), %xmm0",
            ),
        ] {
            let word = "\t.section .data.rel.ro.address.weak, \"aw\"\n\t.balign 8\n.Laddress.weak:\t.quad weak";
            assert_eq!(one(before), format!("{after}\n{word}"));
        }
    }

    #[test]
    fn what_it_does_not_understand_is_refused() {
        for (bad, why) in [
            ("leal	d(%rip), %eax", "64-bit register"),
            ("movl	d-b(%rip), %eax", "two symbols"),
            ("movl	(d+4)(%rip), %eax", "cannot read"),
            ("movq	t@GOTTPOFF(%rip), %rax", "@GOTTPOFF"),
        ] {
            let (line, message) = rewrite(&format!("nop\n{bad}\n")).unwrap_err();
            assert_eq!(line, 2);
            assert!(message.contains(why), "{message}");
        }
    }

    #[test]
    fn sections_are_left_as_they_are_entered() {
        let text = ".data\n.pushsection .rodata\nc:\n.popsection\nd:\n.section .text\n.previous\ne:\nmov c(%rip), %al\nmov d(%rip), %al\nmov e(%rip), %al\n";
        let out = rewrite(text).unwrap();
        assert!(
            out.ends_with("mov c(%rip), %al\nmov %fs:d(%rip), %al\nmov %fs:e(%rip), %al\n"),
            "{out}"
        );
    }
}
