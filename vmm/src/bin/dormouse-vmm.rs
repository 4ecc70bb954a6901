//! The virtual machine monitor on its own; `dormouse vmm` is the same entry.
fn main() -> std::process::ExitCode {
    dormouse_vmm::main(std::env::args_os())
}
