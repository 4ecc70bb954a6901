//! Builds and lists images without the server: for packagers and tests. `dormouse image` does the same and more.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dormouse_images::store::Store;
use dormouse_images::{BuildOptions, DEFAULT_MAJOR, bake_and_rehearse, build};

#[derive(Parser)]
#[command(version, about = "Builds and lists Dormouse's images")]
struct Command {
    /// Where images and templates are kept.
    #[arg(long, env = "DORMOUSE_HOME", default_value = ".dormouse")]
    home: PathBuf,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Builds the image of this source and makes it the current one.
    Build {
        /// The `images` folder of Dormouse's source.
        #[arg(long, default_value = "images")]
        source: PathBuf,
        /// The major version of PostgreSQL.
        #[arg(long, default_value_t = DEFAULT_MAJOR)]
        postgres: u32,
        /// With the module that PostgreSQL's own tests load: for running those tests, and nothing else.
        #[arg(long)]
        tests: bool,
    },
    /// Makes the current image's golden snapshot.
    Golden {
        /// The major version of PostgreSQL.
        #[arg(long, default_value_t = DEFAULT_MAJOR)]
        postgres: u32,
        /// Memory of the guests it is for, in MiB.
        #[arg(long)]
        memory_mib: u64,
        /// Backends to leave ready.
        #[arg(long, default_value_t = 2)]
        park: u32,
        /// The VMM: program and first arguments.
        #[arg(last = true, required = true)]
        vmm: Vec<OsString>,
    },
    /// Lists the images.
    List,
}

fn run(command: Command) -> Result<(), Box<dyn std::error::Error>> {
    let store = Store::new(&command.home);
    match command.action {
        Action::Build { source, postgres, tests } => {
            let built = build(&BuildOptions { source, postgres, home: command.home, tests })?;
            let how = if built.new { "built" } else { "as before" };
            println!("{} {how}: {}", built.manifest.image, built.manifest.postgres_version);
        }
        Action::Golden { postgres, memory_mib, park, vmm } => {
            let image = store.current(postgres).ok_or("there is no such image: build one first")?;
            let (made, rehearsed) = bake_and_rehearse(&command.home, &image, memory_mib, park, &vmm)?;
            println!("{image} golden snapshot of {memory_mib} MiB: {}", if made { "made" } else { "as before" });
            if let Some(pages) = rehearsed {
                println!("rehearsed: {pages} pages differ");
            }
        }
        Action::List => {
            for listed in store.list()? {
                let mark = if listed.current { "current" } else { "" };
                let manifest = listed.manifest;
                println!("{} {} golden {:?} {mark}", manifest.image, manifest.postgres_version, listed.golden);
            }
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    match run(Command::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dormouse-image: {error}");
            ExitCode::FAILURE
        }
    }
}
