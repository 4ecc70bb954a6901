//! The `dormouse` command.

fn main() -> std::process::ExitCode {
    dormouse_api::cli::main()
}
