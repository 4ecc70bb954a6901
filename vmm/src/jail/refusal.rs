//! A refused call ends the process, and its number stands in the log: it is a bug of ours, or an attack.

use std::io;

/// The process' exit status (`docs/interfaces.md`).
pub const STATUS: libc::c_int = 76;

/// Text made without allocating: a handler may have interrupted the allocator.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Line {
    fn text(&mut self, text: &[u8]) {
        for byte in text {
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = *byte;
                self.len += 1;
            }
        }
    }

    fn number(&mut self, mut number: u64, base: u64) {
        let mut digits = [0u8; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b"0123456789abcdef"[(number % base) as usize];
            number /= base;
            if number == 0 {
                break;
            }
        }
        self.text(&digits[at..]);
    }
}

/// The line that the log gets of a call, as the others are: JSON.
fn line(call: i64, arguments: [i64; 3], thread: &[u8]) -> Line {
    let mut line = Line { bytes: [0; 256], len: 0 };
    line.text(br#"{"level":"ERROR","fields":{"message":"the jail refuses a system call, and ends the process","error":"call "#);
    line.number(call as u64, 10);
    line.text(b" (0x");
    for (at, argument) in arguments.into_iter().enumerate() {
        line.text(if at == 0 { b"" } else { b", 0x" });
        line.number(argument as u64, 16);
    }
    line.text(b") of thread ");
    line.text(thread.split(|byte| *byte == 0).next().unwrap_or_default());
    line.text(b"\"}}\n");
    line
}

extern "C" fn refused(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let mut name = [0u8; 16];
    // SAFETY: the kernel passes both structures to a handler with SA_SIGINFO. Nothing here allocates or takes a lock, and
    // nothing returns to what made the call.
    unsafe {
        let registers = &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let arguments = [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX].map(|register| registers[register as usize]);
        // The number as the kernel saw it, after the call's address.
        let call = i64::from(*info.byte_add(24).cast::<libc::c_int>());
        libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr());
        let line = line(call, arguments, &name);
        libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.len);
        libc::_exit(STATUS);
    }
}

/// From now on a call that is refused is told in the log.
pub fn tell() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is a valid one; the handler calls only what a handler may.
    let done = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = refused as extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut())
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn a_refused_call_is_told_as_a_line_of_the_log() {
        let line = line(41, [2, -1, 0], b"io\0\0");
        let value: serde_json::Value = serde_json::from_slice(&line.bytes[..line.len]).unwrap();
        assert_eq!(value["fields"]["error"], "call 41 (0x2, 0xffffffffffffffff, 0x0) of thread io");
    }
}
