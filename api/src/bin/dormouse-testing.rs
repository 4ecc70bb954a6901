//! The `dormouse` command in which a test can have the server die at each of `dormouse_api::crash::STEPS`.

fn main() -> std::process::ExitCode {
    dormouse_api::cli::main()
}
