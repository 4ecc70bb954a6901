//! `dormouse image …`: all but `adopt` work on the home's files, and need no server.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Subcommand;
use dormouse_images::store::{InUse, Store};
use dormouse_images::{BuildOptions, DEFAULT_MAJOR, Manifest, bake_and_rehearse, build};

use serde_json::json;

use super::client::{Client, ClientError, text};
use super::db::{pages, print_table};
use super::{CliError, ServerArgs};
use crate::host::layout::Home;
use crate::metadata::{ImageUse, Metadata};
use crate::settings::Settings;

#[derive(Subcommand)]
pub enum Command {
    /// Build an image of this source and make it the one for new databases of that version
    Build {
        /// The images folder of Dormouse's source
        #[arg(long, default_value = "images")]
        source: PathBuf,
        /// The major version of PostgreSQL
        #[arg(long, default_value_t = DEFAULT_MAJOR)]
        postgres: u32,
    },
    /// List images, with how many databases are on each
    List,
    /// Say how many databases are on an older image than the newest of their version of PostgreSQL
    Status,
    /// Move databases to the newest image of their version of PostgreSQL, those asleep without waking them
    ///
    /// A moved database's next use is a cold start. One with client sessions is left alone. It can be ended and started
    /// again at any time.
    Adopt {
        #[command(flatten)]
        server: ServerArgs,
        /// Names or ids; all that are on an older image if none is given
        names: Vec<String>,
        /// Also those with client sessions, which end
        #[arg(long)]
        end_sessions: bool,
        /// So many databases a second at most: each that is used again starts cold
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        per_second: u32,
    },
    /// Remove images and templates that no database needs
    Gc,
}

/// Backends that a golden snapshot leaves ready.
const PARKED: u32 = 2;

pub fn run(settings: &Settings, command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Build { source, postgres } => make(settings, source, postgres),
        Command::List => list(settings),
        Command::Status => status(settings),
        Command::Adopt { server, names, end_sessions, per_second } => {
            adopt(&Client::new(settings, &server)?, &names, end_sessions, per_second)
        }
        Command::Gc => collect(settings),
    }
}

/// The current images and their Postgres, for `--version`.
pub fn current(home: &Path) -> Vec<String> {
    let store = Store::new(home);
    let images = store.currents().unwrap_or_default().into_values();
    let manifests = images.filter_map(|image| Manifest::load(&store.image(&image)).ok());
    manifests.map(|manifest| format!("{}, {}", manifest.image, manifest.postgres_version)).collect()
}

fn said(error: impl std::fmt::Display) -> CliError {
    CliError::Said(error.to_string())
}

fn make(settings: &Settings, source: PathBuf, postgres: u32) -> Result<ExitCode, CliError> {
    if !source.join("postgres").is_dir() {
        return Err(CliError::Said(format!(
            "{} is not the images folder of Dormouse's source: run this in the source's top folder, or give --source",
            source.display()
        )));
    }
    Home::new(settings.home.clone()).create().map_err(said)?;
    let built = build(&BuildOptions { source, postgres, home: settings.home.clone(), tests: false }).map_err(said)?;
    let image = &built.manifest.image;
    let how = if built.new { "built" } else { "as before" };
    println!("image {image} {how}: {}", built.manifest.postgres_version);
    let program = std::env::current_exe().map_err(said)?;
    let program = settings.vmm_program.clone().unwrap_or(program);
    let vmm = [program.into_os_string(), "vmm".into()];
    // One for each size that a plan gives.
    let sizes: BTreeSet<u64> = settings.plans.values().map(|plan| plan.memory_mib).collect();
    for mib in sizes {
        let (new, rehearsed) = bake_and_rehearse(&settings.home, image, mib, PARKED, &vmm).map_err(said)?;
        println!("golden snapshot of {mib} MiB {}", if new { "made" } else { "as before" });
        if let Some(pages) = rehearsed {
            println!("rehearsed: VMs that stand by have {pages} of its pages ready");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(settings: &Settings) -> Result<ExitCode, CliError> {
    let listed = Store::new(&settings.home).list().map_err(said)?;
    let in_use = in_use(settings)?;
    let rows = listed.into_iter().map(|l| {
        let sizes: Vec<String> = l.golden.iter().map(u64::to_string).collect();
        let mut marks = Vec::new();
        if l.current {
            marks.push("current");
        }
        let of: Vec<&ImageUse> = in_use.images.iter().filter(|on| on.image == l.manifest.image).collect();
        let sum = |count: fn(&ImageUse) -> u64| of.iter().map(|on| count(on)).sum::<u64>().to_string();
        let (asleep, stopped, awake) = (sum(|on| on.asleep), sum(|on| on.stopped), sum(|on| on.awake));
        [l.manifest.image, l.manifest.postgres_version, sizes.join(","), asleep, stopped, awake, marks.join(", ")]
    });
    print_table(&["image", "postgres", "golden MiB", "asleep", "stopped", "awake", ""], rows);
    Ok(ExitCode::SUCCESS)
}

/// What databases need, as the metadata has it.
#[derive(Default)]
struct Needed {
    images: Vec<ImageUse>,
    /// Of layers whose databases have moved to another image.
    templates: Vec<String>,
}

fn status(settings: &Settings) -> Result<ExitCode, CliError> {
    let newest = Home::new(settings.home.clone()).current_images();
    let in_use = in_use(settings)?.images;
    let all: u64 = in_use.iter().map(|on| on.asleep + on.stopped + on.awake).sum();
    let older = in_use.iter().filter(|on| newest.iter().any(|(version, image)| *version == on.pg_version && *image != on.image));
    let (asleep, stopped, awake) =
        older.fold((0, 0, 0), |(asleep, stopped, awake), on| (asleep + on.asleep, stopped + on.stopped, awake + on.awake));
    let count = asleep + stopped + awake;
    println!("{count} of {all} databases are on an older image: {asleep} asleep, {stopped} stopped, {awake} awake");
    if count > 0 {
        println!("each moves at its next cold start, or by `dormouse image adopt`");
    }
    Ok(ExitCode::SUCCESS)
}

fn adopt(client: &Client, names: &[String], end_sessions: bool, per_second: u32) -> Result<ExitCode, CliError> {
    let all = match names {
        [] => {
            let rows = pages(client, "/v1/databases", "limit=1000&outdated=true", "databases", None)?;
            rows.iter().map(|row| Ok((text(row, "id")?.to_string(), text(row, "name")?.to_string()))).collect::<Result<_, ClientError>>()?
        }
        names => names.iter().map(|name| Ok((client.resolve(name, None)?, name.clone()))).collect::<Result<Vec<_>, ClientError>>()?,
    };
    let (mut moved, mut left, mut failed) = (0, 0, 0);
    let begun = Instant::now();
    for (n, (id, name)) in (0u32..).zip(&all) {
        // Paced from the beginning, so that slow ones are made up for.
        let due = Duration::from_secs(1) * n / per_second;
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
        match client.post(&format!("/v1/databases/{id}/adopt"), Some(json!({ "end_sessions": end_sessions }))) {
            Ok(answer) if answer["moved"] == true => moved += 1,
            Ok(_) => {}
            // Deleted since it was listed.
            Err(ClientError::Refused { status: 404, .. }) if names.is_empty() => {}
            Err(ClientError::Refused { status: 409, detail }) => {
                left += 1;
                eprintln!("{name} ({id}) is left as it is: {detail}");
            }
            Err(ClientError::Refused { detail, .. }) => {
                failed += 1;
                eprintln!("{name} ({id}): {detail}");
            }
            Err(other) => return Err(other.into()),
        }
        if (n + 1).is_multiple_of(100) {
            eprintln!("{} of {} done", n + 1, all.len());
        }
    }
    println!("{moved} moved to the newest image, {left} left for their sessions, {failed} failed");
    if left > 0 {
        println!("those left move at their next cold start, or with --end-sessions");
    }
    Ok(if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn in_use(settings: &Settings) -> Result<Needed, CliError> {
    let home = Home::new(settings.home.clone());
    if !home.metadata().exists() {
        // Without metadata nobody can say what is needed, unless there is nothing to need it.
        let databases = std::fs::read_dir(home.databases()).map(|mut d| d.next().is_some()).unwrap_or(false);
        if databases {
            return Err(CliError::Said(format!(
                "there are databases in {} but no metadata that says which images they need: put {} back first",
                home.databases().display(),
                home.metadata().display()
            )));
        }
        return Ok(Needed::default());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(said)?;
    runtime.block_on(async {
        let metadata = Metadata::open(&home.metadata()).await?;
        let needed = Needed { images: metadata.count_by_image().await?, templates: metadata.templates_in_use().await? };
        metadata.close().await;
        Ok(needed)
    })
}

fn collect(settings: &Settings) -> Result<ExitCode, CliError> {
    let store = Store::new(&settings.home);
    let needed = in_use(settings)?;
    let images: BTreeSet<String> = needed.images.into_iter().map(|on| on.image).collect();
    let mut templates: BTreeSet<String> = needed.templates.into_iter().collect();
    for image in &images {
        match Manifest::load(&store.image(image)) {
            Ok(manifest) => drop(templates.insert(manifest.template)),
            Err(error) => {
                return Err(CliError::Said(format!(
                    "{error}. A database needs this image, so what it needs is not known: nothing was removed"
                )));
            }
        }
    }
    let gone = store.collect(&InUse { images, templates }).map_err(said)?;
    for image in &gone.images {
        println!("removed image {image}");
    }
    for template in &gone.templates {
        println!("removed template {template}");
    }
    if gone.images.is_empty() && gone.templates.is_empty() {
        println!("nothing to remove");
    }
    Ok(ExitCode::SUCCESS)
}
