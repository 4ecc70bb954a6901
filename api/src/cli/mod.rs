//! The `dormouse` command: one word, one module, and each says what it did in a line.
//!
//! Commands about databases and tenants speak to the server by its REST API, as `curl` would. What a program may
//! want to read goes to standard output; errors go to standard error, one sentence that says what to do.

mod client;
mod config;
mod db;
mod image;
mod logs;
mod psql;
mod tenant;
mod up;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::settings::{SETTINGS, Settings, SettingsError, Sources};

#[derive(Parser)]
#[command(
    name = "dormouse",
    about = "Postgres that sleeps",
    disable_version_flag = true,
    after_help = "Every setting is also a flag: `dormouse config show` lists them, with where each value comes from."
)]
struct Cli {
    /// The settings file; dormouse.toml in this folder if there is one
    #[arg(long, global = true, value_name = "FILE", help_heading = "Settings")]
    config: Option<PathBuf>,
    /// Any setting, such as plans.free.memory_mib=1024
    #[arg(long, global = true, value_name = "KEY=VALUE", help_heading = "Settings", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// Version of the build, the image, the formats
    #[arg(long, short = 'V')]
    version: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server: API, console, pooler, databases
    Up,
    /// Create, list, show, suspend, resume, delete databases, change their passwords
    Db {
        #[command(flatten)]
        server: ServerArgs,
        #[command(subcommand)]
        command: db::Command,
    },
    /// Create and list tenants
    Tenant {
        #[command(flatten)]
        server: ServerArgs,
        #[command(subcommand)]
        command: tenant::Command,
    },
    /// Open psql on a database
    Psql {
        #[command(flatten)]
        server: ServerArgs,
        #[command(flatten)]
        psql: psql::PsqlArgs,
    },
    /// Show the console of a database's guest
    Logs {
        #[command(flatten)]
        server: ServerArgs,
        #[command(flatten)]
        logs: logs::LogsArgs,
    },
    /// Build, list, collect images
    Image {
        #[command(subcommand)]
        command: image::Command,
    },
    /// Show the settings
    Config {
        #[command(subcommand)]
        command: config::Command,
    },
    /// Run one database's virtual machine (started by the server)
    #[command(hide = true)]
    Vmm,
}

/// Which server, and as whom.
#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// The server's URL; this home's server if not given
    #[arg(long, env = "DORMOUSE_URL", value_name = "URL", global = true)]
    url: Option<String>,
    /// A key; the operator's of this home if not given
    #[arg(long, env = "DORMOUSE_KEY", value_name = "KEY", global = true, hide_env_values = true)]
    key: Option<String>,
    /// Answer as JSON
    #[arg(long, global = true)]
    json: bool,
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Start(#[from] crate::server::StartError),
    #[error(transparent)]
    Client(#[from] client::ClientError),
    #[error("{0}")]
    Said(String),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error(transparent)]
    Metadata(#[from] crate::metadata::MetadataError),
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("wanted KEY=VALUE")?;
    Ok((key.trim().into(), value.trim().into()))
}

/// The command line, with a flag for every setting.
fn command_line() -> clap::Command {
    let mut command = Cli::command();
    for setting in SETTINGS {
        let default = if setting.default.is_empty() { String::new() } else { format!(" [default: {}]", setting.default) };
        let arg = Arg::new(setting.key)
            .long(setting.flag())
            .global(true)
            .value_name("VALUE")
            .help_heading("Settings")
            .hide_short_help(setting.key != "home")
            .help(format!("{}{default}", setting.help));
        command = command.arg(arg);
    }
    command
}

fn settings(matches: &ArgMatches, cli: &Cli) -> Result<Settings, SettingsError> {
    let flags: BTreeMap<&'static str, String> = SETTINGS
        .iter()
        .filter_map(|s| Some((s.key, matches.get_one::<String>(s.key)?.clone())))
        .collect();
    Settings::load(&Sources::process(flags, cli.set.clone(), cli.config.clone()))
}

/// `dormouse vmm …`: the VMM's own entry point.
fn vmm() -> ExitCode {
    // It sees itself as its own program: the word that led here is not its argument.
    let arguments = std::env::args_os().take(1).chain(std::env::args_os().skip(2));
    dormouse_vmm::main(arguments.collect::<Vec<OsString>>())
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // Before anything else: a VMM starts for every wake, and has no use for what follows.
    if std::env::args_os().nth(1).is_some_and(|word| word == "vmm") {
        return vmm();
    }
    let matches = command_line().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match run(&matches, cli) {
        Ok(code) => code,
        Err(error) => {
            // `eprintln!` would panic where standard error is on a full disk.
            let _ = writeln!(std::io::stderr(), "dormouse: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(matches: &ArgMatches, cli: Cli) -> Result<ExitCode, CliError> {
    if cli.version {
        println!("{}", version(settings(matches, &cli).ok().as_ref()));
        return Ok(ExitCode::SUCCESS);
    }
    let settings = settings(matches, &cli);
    let Some(command) = cli.command else {
        // As for a mistyped command: help, and not a success.
        let _ = command_line().print_help();
        return Ok(ExitCode::from(2));
    };
    let settings = settings?;
    match command {
        Command::Up => up::run(settings),
        Command::Db { server, command } => db::run(&client::Client::new(&settings, &server)?, &server, command),
        Command::Tenant { server, command } => {
            tenant::run(&client::Client::new(&settings, &server)?, &server, command)
        }
        Command::Psql { server, psql } => psql::run(&client::Client::new(&settings, &server)?, psql),
        Command::Logs { server, logs } => logs::run(&settings, &server, logs),
        Command::Image { command } => image::run(&settings, command),
        Command::Config { command: config::Command::Show } => config::show(&settings),
        Command::Vmm => Ok(vmm()),
    }
}

/// Build, image, formats: what to name when something is wrong.
fn version(settings: Option<&Settings>) -> String {
    let images = settings.map(|s| image::current(&s.home)).unwrap_or_default().join("\n         ");
    let image = if images.is_empty() { "none (run `dormouse image build`)".into() } else { images };
    format!(
        "dormouse {}\nimage    {image}\nformats  guest {}, image {}, snapshot {}, metadata {}",
        crate::VERSION,
        dormouse_abi::ABI_VERSION,
        dormouse_images::manifest::FORMAT,
        dormouse_vmm::snapshot::format::VERSION,
        crate::metadata::version(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_flags_of_settings_work_anywhere() {
        command_line().debug_assert();
        for line in [
            &["dormouse", "--api-listen", "127.0.0.1:1", "up"][..],
            &["dormouse", "up", "--api-listen", "127.0.0.1:1"],
            &["dormouse", "config", "show", "--api-listen", "127.0.0.1:1"],
        ] {
            let matches = command_line().try_get_matches_from(line).unwrap();
            let value = matches.get_one::<String>("api.listen").map(String::as_str);
            assert_eq!(value, Some("127.0.0.1:1"), "{line:?}");
        }
    }
}
