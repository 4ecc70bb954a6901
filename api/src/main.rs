//! The `dormouse` command.

fn main() -> std::process::ExitCode {
    // Before anything else: a VMM starts for every wake, and has no use for what follows.
    if std::env::args_os().nth(1).is_some_and(|word| word == "vmm") {
        return dormouse_api::cli::vmm();
    }
    dormouse_api::cli::main()
}
