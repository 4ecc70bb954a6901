//! `dormouse image …`: these work on the home's files; no server is needed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use dormouse_images::store::{InUse, Store};
use dormouse_images::{BuildOptions, DEFAULT_MAJOR, Manifest, bake_golden, build};

use super::CliError;
use super::db::print_table;
use crate::host::layout::Home;
use crate::metadata::Metadata;
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
    /// List images
    List,
    /// Remove images and templates that no database needs
    Gc,
}

/// Backends that a golden snapshot leaves ready.
const PARKED: u32 = 2;

pub fn run(settings: &Settings, command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Build { source, postgres } => make(settings, source, postgres),
        Command::List => list(settings),
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
    let built = build(&BuildOptions { source, postgres, home: settings.home.clone() }).map_err(said)?;
    let image = &built.manifest.image;
    let how = if built.new { "built" } else { "as before" };
    println!("image {image} {how}: {}", built.manifest.postgres_version);
    let program = std::env::current_exe().map_err(said)?;
    let program = settings.vmm_program.clone().unwrap_or(program);
    let vmm = [program.into_os_string(), "vmm".into()];
    // One for each size that a plan gives.
    let sizes: BTreeSet<u64> = settings.plans.values().map(|plan| plan.memory_mib).collect();
    for mib in sizes {
        let new = bake_golden(&settings.home, image, mib, PARKED, &vmm).map_err(said)?;
        println!("golden snapshot of {mib} MiB {}", if new { "made" } else { "as before" });
    }
    Ok(ExitCode::SUCCESS)
}

fn list(settings: &Settings) -> Result<ExitCode, CliError> {
    let listed = Store::new(&settings.home).list().map_err(said)?;
    let in_use = images_in_use(settings)?;
    let rows = listed.into_iter().map(|l| {
        let sizes: Vec<String> = l.golden.iter().map(u64::to_string).collect();
        let mut marks = Vec::new();
        if l.current {
            marks.push("current");
        }
        if in_use.contains(&l.manifest.image) {
            marks.push("in use");
        }
        [l.manifest.image, l.manifest.postgres_version, sizes.join(","), marks.join(", ")]
    });
    print_table(&["image", "postgres", "golden MiB", ""], rows);
    Ok(ExitCode::SUCCESS)
}

fn images_in_use(settings: &Settings) -> Result<BTreeSet<String>, CliError> {
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
        return Ok(BTreeSet::new());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(said)?;
    runtime.block_on(async {
        let metadata = Metadata::open(&home.metadata()).await?;
        let images = metadata.images_in_use().await?;
        metadata.close().await;
        Ok(images.into_iter().collect())
    })
}

fn collect(settings: &Settings) -> Result<ExitCode, CliError> {
    let store = Store::new(&settings.home);
    let images = images_in_use(settings)?;
    let mut templates = BTreeSet::new();
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
