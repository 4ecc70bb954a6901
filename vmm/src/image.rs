//! The image a guest is booted from: the manifest's parts, or files named on the command line.

use std::path::PathBuf;

use dormouse_abi::SHARE_VARIABLE;
use dormouse_images::manifest::{FirstProcess, Manifest, ManifestError, file};

use crate::boot::BootImage;
use crate::settings::Settings;

/// What the VMM has to know of an image.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its name; "-" when the parts were named one by one. Part of what a snapshot is bound to.
    pub name: String,
    /// The template's content hash.
    pub template: String,
    /// The template's folder.
    pub template_dir: PathBuf,
    /// Parts for a cold boot.
    pub boot: BootImage,
    /// Folder of the golden snapshot for this memory size, which need not exist.
    pub golden_dir: Option<PathBuf>,
}

/// Why an image could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The kernel was built for another contract.
    #[error(
        "image {image} was built for guest ABI {found}, this monitor speaks {}: build the image again",
        dormouse_abi::ABI_VERSION
    )]
    OtherAbi { image: String, found: u32 },
    /// Neither an image nor all of its parts.
    #[error("name an --image, or all of --kernel, --postgres, --boot and --template")]
    Unnamed,
    /// The guest has it at the same path.
    #[error("--share takes an absolute path")]
    Share,
}

impl Image {
    /// Finds the image that the settings name.
    pub fn find(settings: &Settings) -> Result<Self, ImageError> {
        let Some(dir) = settings.image_dir() else { return Self::from_parts(settings) };
        let manifest = Manifest::load(&dir)?;
        if manifest.abi != dormouse_abi::ABI_VERSION {
            return Err(ImageError::OtherAbi { image: manifest.image, found: manifest.abi });
        }
        let own = |given: &[String], or: Vec<String>| if given.is_empty() { or } else { given.to_vec() };
        // The golden guest has its own kernel, program and archive in memory.
        let is_itself = [&settings.kernel, &settings.postgres, &settings.boot].iter().all(|part| part.is_none());
        Ok(Self {
            template_dir: settings
                .template
                .clone()
                .unwrap_or_else(|| settings.home.join("templates").join(&manifest.template)),
            boot: BootImage {
                kernel: settings.kernel.clone().unwrap_or_else(|| dir.join(file::KERNEL)),
                postgres: settings.postgres.clone().unwrap_or_else(|| dir.join(file::POSTGRES)),
                archive: settings.boot.clone().unwrap_or_else(|| dir.join(file::BOOT)),
                slots: settings.processes,
                arguments: own(&settings.postgres_arg, manifest.first_process.arguments),
                environment: environment(own(&settings.postgres_env, manifest.first_process.environment), settings)?,
                prng_state: Some(manifest.layout.prng_state),
            },
            golden_dir: is_itself.then(|| dir.join(file::GOLDEN).join(settings.memory_mib.to_string())),
            name: manifest.image,
            template: manifest.template,
        })
    }

    /// The image over the template that a layer has already: a database that was moved to another image keeps its own.
    pub fn over(self, template: Option<String>, settings: &Settings) -> Self {
        match template {
            Some(template) if settings.template.is_none() => {
                Self { template_dir: settings.home.join("templates").join(&template), template, ..self }
            }
            _ => self,
        }
    }

    fn from_parts(settings: &Settings) -> Result<Self, ImageError> {
        let (Some(kernel), Some(postgres), Some(archive), Some(template_dir)) =
            (&settings.kernel, &settings.postgres, &settings.boot, &settings.template)
        else {
            return Err(ImageError::Unnamed);
        };
        let first = FirstProcess::postgres();
        let own = |given: &[String], or: Vec<String>| if given.is_empty() { or } else { given.to_vec() };
        let name = template_dir.file_name().map_or_else(|| "-".into(), |name| name.to_string_lossy().into_owned());
        Ok(Self {
            name: "-".to_owned(),
            template: name,
            template_dir: template_dir.clone(),
            boot: BootImage {
                kernel: kernel.clone(),
                postgres: postgres.clone(),
                archive: archive.clone(),
                slots: settings.processes,
                arguments: own(&settings.postgres_arg, first.arguments),
                environment: environment(own(&settings.postgres_env, first.environment), settings)?,
                prng_state: None,
            },
            golden_dir: None,
        })
    }
}

/// The environment, with what tells the kernel of a shared folder.
fn environment(mut list: Vec<String>, settings: &Settings) -> Result<Vec<String>, ImageError> {
    if let Some(folder) = settings.share() {
        let folder = folder.to_str().filter(|path| path.starts_with('/')).ok_or(ImageError::Share)?;
        list.push(format!("{SHARE_VARIABLE}={folder}"));
    }
    Ok(list)
}
