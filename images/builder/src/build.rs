//! Packs what the recipes made into an image and its template.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use crate::hash::{file_hash, hexadecimal, tree_hash};
use crate::manifest::{FORMAT, FirstProcess, Manifest, ManifestError, NAME_LEN, Origin, Part, file};
use crate::recipe::{self, Parts, RecipeError};
use crate::store::Store;
use crate::tree::{Draft, copy_file, copy_tree};

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("cannot {what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the template {path} has another content than its name says: remove it once no database needs it")]
    TemplateChanged { path: PathBuf },
}

/// What to build and where to.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The `images` folder of Dormouse's source.
    pub source: PathBuf,
    /// The major version of PostgreSQL.
    pub postgres: u32,
    /// `DORMOUSE_HOME`.
    pub home: PathBuf,
    /// With the modules that PostgreSQL's own tests load, and no other purpose.
    pub tests: bool,
}

/// What a build gave.
#[derive(Clone, Debug)]
pub struct Built {
    pub manifest: Manifest,
    /// False if the very same image was there already.
    pub new: bool,
}

pub(crate) trait At<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T, BuildError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T, BuildError> {
        self.map_err(|source| BuildError::Io { what, path: path.to_owned(), source })
    }
}

/// Builds the image of this source, or finds it built, and makes it the current one of its major version. Progress goes
/// to standard error.
///
/// # Errors
/// If a recipe fails, or the result cannot be written. What was there before is as it was.
pub fn build(options: &BuildOptions) -> Result<Built, BuildError> {
    let parts = recipe::make(&options.source, options.postgres, options.tests)?;
    let store = Store::new(&options.home);
    let manifest = describe(&parts)?;
    place_template(&store, &parts, &manifest.template)?;
    let new = place_image(&store, &parts, &manifest)?;
    let major = manifest.postgres_major();
    store.set_current(major, &manifest.image).at("switch", &store.current_link(major))?;
    // Of an image that was there, its own manifest tells when it was built.
    let manifest = Manifest::load(&store.image(&manifest.image))?;
    Ok(Built { manifest, new })
}

fn part(path: &Path) -> Result<Part, BuildError> {
    let (sha256, bytes) = file_hash(path).at("read", path)?;
    Ok(Part { sha256, bytes })
}

fn describe(parts: &Parts) -> Result<Manifest, BuildError> {
    let mut manifest = Manifest {
        format: FORMAT,
        image: String::new(),
        abi: dormouse_abi::ABI_VERSION,
        kernel: part(&parts.kernel)?,
        postgres: part(&parts.postgres)?,
        boot: part(&parts.boot)?,
        template: tree_hash(&parts.template).at("read", &parts.template)?,
        postgres_version: parts.postgres_version.clone(),
        wal_segment_bytes: parts.wal_segment_bytes,
        layout: parts.layout,
        first_process: FirstProcess::postgres(),
        origin: Origin {
            built_at: SystemTime::now().duration_since(UNIX_EPOCH).map(|age| age.as_secs()).unwrap_or(0),
            builder: env!("CARGO_PKG_VERSION").to_owned(),
        },
    };
    manifest.image = name(&manifest);
    Ok(manifest)
}

/// The image's name: a hash over all that makes it behave as it does.
fn name(manifest: &Manifest) -> String {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    add(&manifest.format.to_string());
    add(&manifest.abi.to_string());
    for part in [&manifest.kernel, &manifest.postgres, &manifest.boot] {
        add(&part.sha256);
    }
    add(&manifest.template);
    add(&manifest.wal_segment_bytes.to_string());
    for word in &manifest.first_process.arguments {
        add(word);
    }
    add("");
    for word in &manifest.first_process.environment {
        add(word);
    }
    hexadecimal(&hash.finalize())[..NAME_LEN].to_owned()
}

fn place_template(store: &Store, parts: &Parts, template: &str) -> Result<(), BuildError> {
    let target = store.template(template);
    if target.exists() {
        // A database reads it block by block: it must be what its name says, or nothing of this image may start.
        return match tree_hash(&target).at("read", &target)? == template {
            true => Ok(()),
            false => Err(BuildError::TemplateChanged { path: target }),
        };
    }
    fs::create_dir_all(store.templates()).at("create", &store.templates())?;
    let draft = Draft::beside(&target).at("replace", &target)?;
    copy_tree(&parts.template, draft.path()).at("write", draft.path())?;
    draft.finish(&target).at("write", &target)
}

fn place_image(store: &Store, parts: &Parts, manifest: &Manifest) -> Result<bool, BuildError> {
    let target = store.image(&manifest.image);
    if target.exists() {
        return Ok(false);
    }
    fs::create_dir_all(store.images()).at("create", &store.images())?;
    let draft = Draft::beside(&target).at("replace", &target)?;
    let folder = draft.path();
    fs::create_dir(folder).at("create", folder)?;
    for (from, name) in [(&parts.kernel, file::KERNEL), (&parts.postgres, file::POSTGRES), (&parts.boot, file::BOOT)] {
        copy_file(from, &folder.join(name)).at("copy", from)?;
    }
    let path = folder.join(file::MANIFEST);
    let text = serde_json::to_string_pretty(manifest).map_err(io::Error::other).at("write", &path)?;
    fs::write(&path, text + "\n").at("write", &path)?;
    draft.finish(&target).at("write", &target)?;
    Ok(true)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::manifest::Layout;

    pub(crate) fn example(template: &str) -> Manifest {
        let part = Part { sha256: "00".repeat(32), bytes: 0 };
        let mut manifest = Manifest {
            format: FORMAT,
            image: String::new(),
            abi: 1,
            kernel: part.clone(),
            postgres: part.clone(),
            boot: part,
            template: template.to_owned(),
            postgres_version: "postgres (PostgreSQL) 17.0".to_owned(),
            wal_segment_bytes: 1 << 20,
            layout: Layout { shared_end: 0, hot: 0, data: 0, data_end: 0, prng_state: 0 },
            first_process: FirstProcess::postgres(),
            origin: Origin { built_at: 1, builder: "0".to_owned() },
        };
        manifest.image = name(&manifest);
        manifest
    }

    #[test]
    fn the_name_depends_on_parts_and_words_but_not_on_when_it_was_built() {
        let one = example("t");
        let mut other = one.clone();
        other.origin.built_at = 2;
        assert_eq!(name(&one), name(&other));
        other.first_process.arguments.push("-B".to_owned());
        assert_ne!(name(&one), name(&other));
        let mut other = one.clone();
        other.kernel.sha256 = "11".repeat(32);
        assert_ne!(name(&one), name(&other));
        assert_ne!(name(&one), name(&example("u")));
        assert_eq!(one.image.len(), NAME_LEN);
    }
}
