//! Tiny guests in assembly, one per behaviour, and what runs them as a real VMM process.
//!
//! The first byte of the first process' first argument chooses the behaviour, so one "kernel" serves all tests.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::mem::offset_of;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use dormouse_abi as abi;
use dormouse_vmm::sockets;

pub const SHARED: u64 = abi::SYSTEM + abi::system::SHARED;
const ARGUMENT: u64 = abi::SYSTEM + abi::system::BOOT_INFO + offset_of!(abi::BootInfo, strings) as u64;
/// Memory that no test loads anything into: flags and buffers of the guests.
pub const SCRATCH: u64 = abi::KERNEL + (3 << 20);
/// Where the page with its stack is in a slot.
pub const HOT: u64 = 4 << 20;
const RX: u64 = abi::SYSTEM + abi::system::QUEUES;
const TX: u64 = RX + abi::system::QUEUE_STRIDE;

std::arch::global_asm!(
    r#"
    .pushsection .rodata
    .globl dormouse_guest_start, dormouse_guest_end
dormouse_guest_start:
    .quad {magic}
    .long {version}, 130f - dormouse_guest_start        /* touch */
    .quad {kernel} + (10f - dormouse_guest_start)       /* entry */
    .quad {kernel}
    .quad {kernel} + (20f - dormouse_guest_start)       /* vectors */
    .quad {kernel} + 0x10000

    /* ring-0 stubs: vector 0x40 sets a flag, all others end the guest with its registers in the log */
    .balign 16
20: .rept 64
    jmp 21f
    .balign 16
    .endr
    movl $1, {scratch}
    iretq
    .balign 16
    .rept 191
    jmp 21f
    .balign 16
    .endr
21: cmpb $'g', {argument}
    jne 22f
    mov (%r13), %r14                                    /* the neighbour's memory, as the fault found it */
22: mov (%rsp), %rcx                                    /* %rip, or an error code */
    mov 8(%rsp), %rdx
    movabs ${doorbell}, %rax
    mov %rax, {scratch} - 8                             /* not the doorbell: a read there logs the registers */
    mov (%rax), %eax
    jmp 22b

10: movabs ${doorbell}, %r15
    movb {argument}, %al
    cmpb $'d', %al
    je 30f
    cmpb $'t', %al
    je 40f
    cmpb $'i', %al
    je 50f
    cmpb $'s', %al
    je 60f
    cmpb $'e', %al
    je 70f
    cmpb $'n', %al
    je 70f
    cmpb $'r', %al
    je 80f
    cmpb $'x', %al
    je 90f
    cmpb $'g', %al
    je 120f
    cmpb $'h', %al
    je 100f
    cmpb $'p', %al
    je 110f
99: movl $1, 8(%r15)                                    /* EXIT 1: the test failed */

    /* d: the doorbell */
30: movl $'h', 12(%r15)
    movl $'i', 12(%r15)
    movl $10, 12(%r15)
    movl $7, 8(%r15)

    /* t: a halt ends at its deadline, 50 ms on */
40: movl $1, {ready}
    mov {mono}, %rax
    add $50000000, %rax
    mov %rax, {deadline}
    movl $0, 4(%r15)
    movl $0, 8(%r15)

    /* i: an interrupt into a spinning guest */
50: movl $1, {want_tick}
    mov $0x1122334455667788, %rbx
51: cmpl $0, {scratch}
    je 51b
    mov $0x1122334455667788, %rax
    cmp %rax, %rbx
    jne 99b
    movl $0, 8(%r15)

    /* s: sleeps; afterwards checks registers, vector state and memory */
60: lea {scratch} + 0x1000, %rdi
    xor %ecx, %ecx
61: mov %rcx, (%rdi, %rcx, 8)
    inc %rcx
    cmp $0x8000, %rcx
    jne 61b
    movabs $0x0000123456789abc, %rbx
    vmovq %rbx, %xmm3
    vinsertf128 $1, %xmm3, %ymm3, %ymm3
    mov $0x77, %ebp
    mov $0x1414, %r14d
    wrfsbase %rbx
    mov {restores}, %r13
    movl $1, {ready}
62: movl $0, 4(%r15)
    movl $0, {event}
    cmpl $0, {shutdown}
    jne 69f
    cmp %r13, {restores}
    je 62b
    mov {restores}, %r13
    movabs $0x0000123456789abc, %rax
    cmp %rax, %rbx
    jne 99b
    rdfsbase %rcx
    cmp %rax, %rcx
    jne 99b
    vextractf128 $1, %ymm3, %xmm4
    vmovq %xmm4, %rcx
    cmp %rax, %rcx
    jne 99b
    cmp $0x77, %ebp
    jne 99b
    cmp $0x1414, %r14d
    jne 99b
    lea {scratch} + 0x1000, %rdi
    xor %ecx, %ecx
63: cmp %rcx, (%rdi, %rcx, 8)
    jne 99b
    inc %rcx
    cmp $0x8000, %rcx
    jne 63b
    lea {scratch} + 0x1000, %rdi                        /* each life changes one word and keeps it right */
    movq $0, (%rdi)
    movl $'w', 12(%r15)
    movl $10, 12(%r15)
    jmp 62b
69: movl $0, 8(%r15)

    /* n: as e, and never leaves by itself: spins for what comes, and until what it sends was taken */
    /* e: echoes every stream. Receive buffers 0-7 of 4 KiB at scratch + 0x10000, sent buffers beside them. */
70: mov $0, %ecx
71: mov %ecx, %edx
    shl $12, %edx
    add ${scratch} + 0x10000, %edx
    mov %ecx, %esi
    shl $4, %esi
    mov %rdx, {rx}(%rsi)                                /* descriptor: address, length, write */
    movl $4096, {rx} + 8(%rsi)
    movw $2, {rx} + 12(%rsi)
    movw $0, {rx} + 14(%rsi)
    mov %cx, {rx} + 0x2004(, %rcx, 2)
    inc %ecx
    cmp $8, %ecx
    jne 71b
    movw $8, {rx} + 0x2002
    xor %r12d, %r12d                                    /* next used of the receive queue */
    movl $1, {ready}
72: movl $0, {event}
    cmpl $0, {shutdown}
    jne 69b
73: movzwl {rx} + 0x3002, %eax
    cmp %ax, %r12w
    jne 74f
    cmpb $'n', {argument}
    je 72b
    movl $0, 4(%r15)
    jmp 72b
74: mov %r12d, %ecx
    and $127, %ecx
    mov {rx} + 0x3004(, %rcx, 8), %ebx                  /* head */
    mov %ebx, %esi
    shl $12, %esi
    add ${scratch} + 0x10000, %esi                      /* the packet */
    movzwl 30(%rsi), %eax
    cmp $1, %ax
    jne 75f
    movw $2, 30(%rsi)                                   /* REQUEST: RESPONSE */
    jmp 77f
75: cmp $5, %ax
    je 77f                                              /* RW: the same back */
    cmp $4, %ax
    jne 76f
    cmpl $3, 32(%rsi)
    jne 76f
    movw $3, 30(%rsi)                                   /* SHUTDOWN of both ways: RST */
    jmp 77f
76: lea -6(%rax), %edx
    cmp $1, %edx
    ja 78f                                              /* anything else: nothing */
    movw $6, 30(%rsi)                                   /* CREDIT_UPDATE and CREDIT_REQUEST: CREDIT_UPDATE */
77: mov (%rsi), %rax                                    /* swap ends */
    mov 8(%rsi), %rdx
    mov %rdx, (%rsi)
    mov %rax, 8(%rsi)
    mov 16(%rsi), %eax
    mov 20(%rsi), %edx
    mov %edx, 16(%rsi)
    mov %eax, 20(%rsi)
    movl $65536, 36(%rsi)                               /* of credit, and as taken counts what the host has taken: so */
    mov 24(%rsi), %eax                                  /* what is on its way to the host is never more than that */
    add $44, %eax
    mov %rsi, {tx}                                      /* transmit descriptor 0: sent before the next is made */
    mov %eax, {tx} + 8
    movl $0, {tx} + 12
    movzwl {tx} + 0x2002, %ecx
    mov %ecx, %edx
    and $127, %edx
    movw $0, {tx} + 0x2004(, %rdx, 2)
    inc %ecx
    mov %cx, {tx} + 0x2002
    cmpb $'n', {argument}
    je 79f
    movl $2, (%r15)                                     /* NOTIFY */
    jmp 78f
79: movl $0, 16(%r15)                                   /* SEND */
790: movzwl {tx} + 0x3002, %eax
    cmp %ax, %cx
    jne 790b
78: movzwl {rx} + 0x2002, %ecx                          /* the receive buffer back */
    mov %ecx, %edx
    and $127, %edx
    mov %bx, {rx} + 0x2004(, %rdx, 2)
    inc %ecx
    mov %cx, {rx} + 0x2002
    inc %r12d
    jmp 73b

    /* r: reads from the doorbell, which is an error with registers in the log */
80: mov $0xabcdef, %ebx
    mov (%r15), %eax
    jmp 99b

    /* x: touches page 0 */
90: mov 8, %eax
    jmp 99b

    /* h: hangs: never looks up */
100: movq ${scratch}, {tasks}
    movl $1, {ready}
101: jmp 101b

    /* p: makes progress: computes, and looks up 40 times */
110: movq ${scratch}, {tasks}
111: cmpl $0, {event}
    je 111b
    movl $0, {event}
    incl {attended}
    cmpl $40, {attended}
    jb 111b
    movl $0, 8(%r15)

    /* g: slot 1's process has two words of stack left and pushes on, above the last word of slot 0's page */
120: movabs ${neighbour}, %r13
    movabs $0x0123456789abcdef, %rax
    mov %rax, (%r13)
    movabs ${stack} + 16, %rsp
    xor %ebp, %ebp
121: pushq $-1
    inc %ebp
    jmp 121b

    /* reads of the pages of a list */
130: mov (%rdi), %rax
    add $8, %rdi
    test %rax, %rax
    jz 131f
    mov (%rax), %al
    jmp 130b
131: movabs ${doorbell}, %rax
    movl $0, 4(%rax)
dormouse_guest_end:
    .popsection
    "#,
    magic = const abi::KERNEL_MAGIC,
    version = const abi::ABI_VERSION,
    kernel = const abi::KERNEL,
    doorbell = const abi::DOORBELL,
    argument = const ARGUMENT,
    scratch = const SCRATCH,
    rx = const RX,
    tx = const TX,
    mono = const SHARED + offset_of!(abi::Shared, mono_ns) as u64,
    deadline = const SHARED + offset_of!(abi::Shared, next_deadline_ns) as u64,
    want_tick = const SHARED + offset_of!(abi::Shared, want_tick) as u64,
    ready = const SHARED + offset_of!(abi::Shared, ready) as u64,
    event = const SHARED + offset_of!(abi::Shared, event) as u64,
    shutdown = const SHARED + offset_of!(abi::Shared, shutdown) as u64,
    attended = const SHARED + offset_of!(abi::Shared, attended) as u64,
    tasks = const SHARED + offset_of!(abi::Shared, tasks) as u64,
    neighbour = const abi::SLOT_BASE + HOT + abi::LARGE_PAGE - 8,
    stack = const abi::SLOT_BASE + abi::SLOT_STRIDE + HOT,
    restores = const SHARED + offset_of!(abi::Shared, restore_count) as u64,
    options(att_syntax)
);

unsafe extern "C" {
    static dormouse_guest_start: u8;
    static dormouse_guest_end: u8;
}

fn guest_code() -> &'static [u8] {
    // SAFETY: both labels are of one contiguous piece of read-only data in this program.
    unsafe {
        let start = &raw const dormouse_guest_start;
        std::slice::from_raw_parts(start, (&raw const dormouse_guest_end).offset_from(start) as usize)
    }
}

/// An executable ELF with segments (address, bytes, memory length, flags), and one section, `.dormouse.words`, which names
/// the words at these addresses.
fn elf(segments: &[(u64, &[u8], u64, u32)], words: &[u32]) -> Vec<u8> {
    let mut offset = 64 + 56 * segments.len() as u64;
    let words: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let names = b"\0.dormouse.words\0.shstrtab\0";
    let words_at = offset + segments.iter().map(|(_, bytes, ..)| bytes.len() as u64).sum::<u64>();
    let names_at = words_at + words.len() as u64;
    let sections_at = (names_at + names.len() as u64).next_multiple_of(8);
    let mut head = Vec::new();
    head.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    head.extend_from_slice(&2u16.to_le_bytes());
    head.extend_from_slice(&62u16.to_le_bytes());
    head.extend_from_slice(&1u32.to_le_bytes());
    for word in [segments[0].0, 64, sections_at] {
        head.extend_from_slice(&word.to_le_bytes());
    }
    head.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, segments.len() as u16, 64, 3, 2] {
        head.extend_from_slice(&half.to_le_bytes());
    }
    let mut body = Vec::new();
    for (address, bytes, memory, flags) in segments {
        head.extend_from_slice(&1u32.to_le_bytes());
        head.extend_from_slice(&flags.to_le_bytes());
        for word in [offset, *address, *address, bytes.len() as u64, *memory, 4096] {
            head.extend_from_slice(&word.to_le_bytes());
        }
        offset += bytes.len() as u64;
        body.extend_from_slice(bytes);
    }
    head.extend(body);
    head.extend_from_slice(&words);
    head.extend_from_slice(names);
    head.resize(sections_at as usize, 0);
    // Name, type, flags, address, offset, length, link, info, alignment, length of an entry.
    for (name, kind, at, len) in
        [(0u32, 0u32, 0, 0), (1, 1, words_at, words.len() as u64), (17, 3, names_at, names.len() as u64)]
    {
        head.extend_from_slice(&name.to_le_bytes());
        head.extend_from_slice(&kind.to_le_bytes());
        for word in [0, 0, at, len, 0, 1, 0] {
            head.extend_from_slice(&word.to_le_bytes());
        }
    }
    head
}

/// False when there is no KVM here; fails in continuous integration, where there must be.
pub fn has_kvm(test: &str) -> bool {
    let usable = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    if !usable {
        assert!(std::env::var_os("CI").is_none(), "{test}: no usable /dev/kvm");
        eprintln!("{test}: skipped, no usable /dev/kvm");
    }
    usable
}

/// A home folder with the parts of an image in it.
pub struct Home {
    pub dir: tempfile::TempDir,
}

pub const DATABASE: &str = "db_aaaaaaaaaaaaaaaaaaaa";

impl Home {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let code = guest_code();
        std::fs::write(at("kernel.elf"), elf(&[(abi::KERNEL, code, 0x10000, 7)], &[])).unwrap();
        let text = vec![0xc3u8; 4096];
        let data = b"pristine".to_vec();
        let data_at = abi::TEXT + HOT + (1 << 20);
        let segments: [(u64, &[u8], u64, u32); 2] = [(abi::TEXT, &text, 4096, 5), (data_at, &data, 8192, 6)];
        std::fs::write(at("postgres.elf"), elf(&segments, &[data_at as u32 + 16])).unwrap();
        std::fs::write(at("boot.cpio"), b"").unwrap();
        std::fs::create_dir(at("template")).unwrap();
        std::fs::write(at("template/PG_VERSION"), b"17\n").unwrap();
        Self { dir }
    }

    /// The same parts as an image with a manifest, for golden snapshots; returns its name.
    pub fn make_image(&self) -> String {
        use dormouse_images::manifest::{FORMAT, FirstProcess, Layout, Manifest, Origin, Part};
        let image = "0123456789abcdef".to_owned();
        let template = "aa".repeat(32);
        let dir = self.path("images").join(&image);
        std::fs::create_dir_all(&dir).unwrap();
        for name in ["kernel.elf", "postgres.elf", "boot.cpio"] {
            std::fs::copy(self.path(name), dir.join(name)).unwrap();
        }
        std::fs::create_dir_all(self.path("templates")).unwrap();
        std::fs::rename(self.path("template"), self.path("templates").join(&template)).unwrap();
        let part = Part { sha256: "0".repeat(64), bytes: 0 };
        let manifest = Manifest {
            format: FORMAT,
            image: image.clone(),
            abi: abi::ABI_VERSION,
            kernel: part.clone(),
            postgres: part.clone(),
            boot: part,
            template,
            postgres_version: "17".to_owned(),
            wal_segment_bytes: 1 << 20,
            layout: Layout { shared_end: 4096, hot: HOT, data: HOT + (1 << 20), data_end: HOT + (1 << 20) + 8192, prng_state: 0 },
            first_process: FirstProcess { arguments: vec!["e".to_owned()], environment: Vec::new() },
            origin: Origin { built_at: 0, builder: "test".to_owned() },
        };
        std::fs::write(dir.join("image.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
        image
    }

    /// The VMM with the image.
    pub fn start_image(&self, image: &str, database: &str, more: &[&str]) -> Vmm {
        let child = self.image_command(image, database, more).spawn().unwrap();
        Vmm { child, sockets: self.sockets() }
    }

    /// Makes the image's golden snapshot for guests of 64 MiB; its folder.
    pub fn bake(&self, image: &str, more: &[&str]) -> PathBuf {
        let golden = self.path("images").join(image).join("golden/64");
        let words = [&["--golden", golden.to_str().unwrap()], more].concat();
        let (status, log) = self.start_image(image, "db_golden", &words).end();
        assert_eq!(status.code(), Some(0), "{log}");
        golden
    }

    /// Its command.
    pub fn image_command(&self, image: &str, database: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dormouse-vmm"));
        command
            .args(["--database", database, "--memory-mib", "64", "--processes", "4", "--image", image])
            .arg("--home")
            .arg(self.dir.path())
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where VMMs listen.
    pub fn sockets(&self) -> PathBuf {
        self.path("run/vmms")
    }

    pub fn database_dir(&self) -> PathBuf {
        self.path("databases").join(DATABASE)
    }

    /// The VMM with a behaviour.
    pub fn command(&self, behaviour: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dormouse-vmm"));
        command
            .args(["--database", DATABASE, "--memory-mib", "64", "--processes", "4", "--postgres-arg", behaviour])
            .arg("--home")
            .arg(self.dir.path());
        for part in ["kernel", "postgres", "boot", "template"] {
            let name = match part {
                "boot" => "boot.cpio".to_owned(),
                "template" => part.to_owned(),
                _ => format!("{part}.elf"),
            };
            command.arg(format!("--{part}")).arg(self.path(&name));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    pub fn start(&self, behaviour: &str, more: &[&str]) -> Vmm {
        Vmm { child: self.command(behaviour).args(more).spawn().unwrap(), sockets: self.sockets() }
    }

    pub fn console(&self) -> String {
        std::fs::read_to_string(self.database_dir().join("console.log")).unwrap_or_default()
    }
}

/// A VMM process; killed when dropped.
pub struct Vmm {
    pub child: Child,
    sockets: PathBuf,
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Vmm {
    /// Starts a command of [`Home::command`].
    pub fn new(command: Command, home: &Home) -> Self {
        Self::try_new(command, home).unwrap()
    }

    /// The same, where the start itself may fail.
    pub fn try_new(mut command: Command, home: &Home) -> std::io::Result<Self> {
        Ok(Self { child: command.spawn()?, sockets: home.sockets() })
    }

    /// Waits for the end; returns the status and what was logged.
    pub fn end(mut self) -> (ExitStatus, String) {
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap(), log)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: a signal to a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// Waits for the end; returns the status and the processor time it took.
    pub fn end_and_time(mut self) -> (ExitStatus, Duration) {
        self.child.stderr.take().unwrap().read_to_string(&mut String::new()).unwrap();
        // Still there until it is waited for.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let after_name = stat.rsplit_once(')').unwrap().1;
        let ticks: u64 = after_name.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum();
        // SAFETY: asks for a number.
        let a_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
        (self.child.wait().unwrap(), Duration::from_millis(ticks * 1000 / a_second))
    }

    /// Connects to its socket of sessions (`sock`) or of control (`ctl`) once it listens.
    pub fn connect(&self, name: &str) -> UnixStream {
        let vmm = sockets::name(self.pid(), sockets::started(self.pid()).unwrap().expect("it runs"));
        let path = self.sockets.join(format!("{vmm}.{name}"));
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            match UnixStream::connect(&path) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                    return stream;
                }
                Err(error) => assert!(Instant::now() < until, "{name}: {error}"),
            }
            std::thread::yield_now();
        }
    }

    pub fn control(&self) -> Ctl {
        Ctl(BufReader::new(self.connect("ctl")))
    }

    /// A session: the stream, and its number.
    pub fn session(&self) -> (UnixStream, u64) {
        let mut stream = self.connect("sock");
        let (status, session, ..) = hello(&mut stream, 1, 0, 0, 0);
        assert_eq!(status, 0);
        (stream, session)
    }
}

/// Says hello; returns status, session, and the VMM's sent and received counts.
pub fn hello(stream: &mut UnixStream, operation: u32, session: u64, sent: u64, received: u64) -> (u32, u64, u64, u64) {
    hello_in(stream, operation, session, (sent, received), b"")
}

/// The same with an epoch behind it, or a new session's first bytes.
pub fn hello_in(
    stream: &mut UnixStream,
    operation: u32,
    session: u64,
    (sent, received): (u64, u64),
    behind: &[u8],
) -> (u32, u64, u64, u64) {
    let mut bytes = b"DMS1".to_vec();
    bytes.extend_from_slice(&operation.to_le_bytes());
    for word in [session, sent, received] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(behind);
    stream.write_all(&bytes).unwrap();
    let mut answer = [0; 32];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer[..4], b"DMS1");
    let word = |at: usize| u64::from_le_bytes(answer[at..at + 8].try_into().unwrap());
    (u32::from_le_bytes(answer[4..8].try_into().unwrap()), word(8), word(16), word(24))
}

/// A control client.
pub struct Ctl(BufReader<UnixStream>);

impl Ctl {
    pub fn line(&mut self) -> serde_json::Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    pub fn say(&mut self, request: &str) {
        self.0.get_mut().write_all(format!("{request}\n").as_bytes()).unwrap();
    }

    /// Asks, and returns the answer, passing over events.
    pub fn ask(&mut self, request: &str) -> serde_json::Value {
        self.say(request);
        loop {
            let line = self.line();
            if line.get("ok").is_some() {
                return line;
            }
        }
    }

    /// Likewise; `None` if the VMM ends instead.
    pub fn try_ask(&mut self, request: &str) -> Option<serde_json::Value> {
        self.say(request);
        let lines = (&mut self.0).lines().map_while(Result::ok);
        let mut values = lines.map(|line| serde_json::from_str::<serde_json::Value>(&line).unwrap());
        values.find(|value| value.get("ok").is_some())
    }

    /// Waits for an event.
    pub fn event(&mut self, name: &str) -> serde_json::Value {
        loop {
            let line = self.line();
            if line["event"] == name {
                return line;
            }
        }
    }
}

/// A folder's files and their bytes.
pub fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .map(|entries| entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.sort();
    names
}
