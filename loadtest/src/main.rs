//! `dormouse-loadtest`: see the library's documentation.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use dormouse_loadtest::report::Report;
use dormouse_loadtest::rest::Rest;
use dormouse_loadtest::wake::Counts;
use dormouse_loadtest::{footprint, scale, smoke, speed, steady, wake};
use serde::Serialize;

/// Measures a running Dormouse server, against native PostgreSQL where there is something to compare.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    server: Server,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Server {
    /// Where the REST API is.
    #[arg(long, global = true, default_value = "http://127.0.0.1:8080")]
    api: String,
    /// The server's folder: its admin.key is used, and its disk is measured.
    #[arg(
        long,
        global = true,
        env = "DORMOUSE_HOME",
        default_value = ".dormouse"
    )]
    home: PathBuf,
    /// Native PostgreSQL, as built by `make oracle`.
    #[arg(long, global = true, default_value_os_t = wake::default_oracle())]
    oracle: PathBuf,
    /// Also write the figures to this file.
    #[arg(long, global = true)]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Time to the first row from asleep, new, cold and created, and of native PostgreSQL.
    Wake {
        /// Samples of each series that sleeps.
        #[arg(long, default_value_t = 100)]
        samples: usize,
        /// Used databases that they are taken of, at random.
        #[arg(long, default_value_t = 10)]
        databases: usize,
        /// Samples of create, of cold start, of wakes from packed, and with the host's page cache dropped (which needs root).
        #[arg(long, default_value_t = 20)]
        slow_samples: usize,
        /// Leaves out what takes a dropped page cache, which costs all that runs on this host.
        #[arg(long)]
        keep_page_cache: bool,
        /// Samples of native PostgreSQL.
        #[arg(long, default_value_t = 20)]
        native_samples: usize,
        /// Draws all samples there.
        #[arg(long)]
        svg: Option<PathBuf>,
    },
    /// Transactions, a scan, COPY and an aggregate, in turns with native PostgreSQL on one core behind PgBouncer.
    Speed(speed::Plan),
    /// Half an hour of TPC-B, and whether the server is as well afterwards; fails where it is not.
    Steady(steady::Plan),
    /// One database through its whole life, each step checked.
    Smoke,
    /// Disk and processes of sleeping databases, memory and CPU of idle ones.
    Footprint {
        #[arg(long, default_value_t = 5)]
        databases: usize,
        /// How many to have awake at once; 0 for none.
        #[arg(long, default_value_t = 20)]
        awake: usize,
    },
    /// Creates, lists, gets, wakes, memory and start of a server of its own with up to a million databases.
    Scale(scale::Plan),
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dormouse-loadtest: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<(), Box<dyn Error>> {
    let Server {
        api,
        home,
        oracle,
        json,
    } = &cli.server;
    if let Command::Scale(plan) = cli.command {
        return finish(json, scale::run(home, plan)?, scale::Scale::print);
    }
    let rest = Rest::open(api, &home.join("admin.key"))?;
    match cli.command {
        Command::Scale(_) => Ok(()),
        Command::Wake {
            samples,
            databases,
            slow_samples,
            keep_page_cache,
            native_samples,
            svg,
        } => {
            let counts = Counts {
                databases,
                held: samples,
                new: samples,
                dropped: if keep_page_cache { 0 } else { slow_samples },
                packed: slow_samples,
                during: samples,
                create: slow_samples,
                cold: slow_samples,
                native: native_samples,
            };
            let wakes = wake::run(&rest, home, oracle, counts)?;
            if let Some(file) = svg {
                std::fs::write(file, &wakes.picture)?;
            }
            finish(json, wakes, wake::Wakes::print)
        }
        Command::Speed(plan) => finish(
            json,
            speed::run(&rest, home, oracle, plan)?,
            speed::Speed::print,
        ),
        Command::Steady(plan) => {
            let steady = steady::run(&rest, home, oracle, plan)?;
            let passed = steady.passed();
            finish(json, steady, steady::Steady::print)?;
            if passed {
                Ok(())
            } else {
                Err("not all criteria are met".into())
            }
        }
        Command::Smoke => Ok(smoke::run(&rest, home)?),
        Command::Footprint { databases, awake } => finish(
            json,
            footprint::run(&rest, home, databases, awake)?,
            footprint::Footprints::print,
        ),
    }
}

fn finish<R: Serialize>(
    json: &Option<PathBuf>,
    results: R,
    print: impl Fn(&R),
) -> Result<(), Box<dyn Error>> {
    let report = Report::new(results);
    report.print_head();
    print(&report.results);
    if let Some(file) = json {
        report
            .write(file)
            .map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(())
}
