//! The images and templates under `DORMOUSE_HOME`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::manifest::{Manifest, NAME_LEN, file};
use crate::tree::flush_folder;

/// The links in the folder of images that name the current one of each major version of PostgreSQL.
const CURRENT: &str = "current-";

/// The folders of one `DORMOUSE_HOME`.
#[derive(Clone, Debug)]
pub struct Store {
    home: PathBuf,
}

/// One image, as listed.
#[derive(Clone, Debug)]
pub struct Listed {
    pub manifest: Manifest,
    pub current: bool,
    /// Sizes in MiB for which it has a golden snapshot, ascending.
    pub golden: Vec<u64>,
}

/// What databases need. Both are asked for, since a layer needs its template even when its image is lost.
#[derive(Clone, Debug, Default)]
pub struct InUse {
    pub images: BTreeSet<String>,
    pub templates: BTreeSet<String>,
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub images: Vec<String>,
    pub templates: Vec<String>,
}

impl Store {
    pub fn new(home: &Path) -> Store {
        Store { home: home.to_owned() }
    }

    pub fn images(&self) -> PathBuf {
        self.home.join("images")
    }

    pub fn image(&self, image: &str) -> PathBuf {
        self.images().join(image)
    }

    pub fn templates(&self) -> PathBuf {
        self.home.join("templates")
    }

    pub fn template(&self, template: &str) -> PathBuf {
        self.templates().join(template)
    }

    pub fn current_link(&self, major: u32) -> PathBuf {
        self.images().join(format!("{CURRENT}{major}"))
    }

    /// The name of the current image of a major version of PostgreSQL, if there is one.
    pub fn current(&self, major: u32) -> Option<String> {
        fs::read_link(self.current_link(major)).ok()?.file_name()?.to_str().map(str::to_owned)
    }

    /// The current images by major version: what new databases can be made from.
    ///
    /// # Errors
    /// If the folder of images cannot be read; if it does not exist, there are none.
    pub fn currents(&self) -> io::Result<BTreeMap<u32, String>> {
        let majors = names(&self.images())?.into_iter().filter_map(|name| name.strip_prefix(CURRENT)?.parse().ok());
        Ok(majors.filter_map(|major| Some((major, self.current(major)?))).collect())
    }

    /// Makes an image the one that new databases of its major version are made from, by one rename.
    pub(crate) fn set_current(&self, major: u32, image: &str) -> io::Result<()> {
        if self.current(major).as_deref() == Some(image) {
            return Ok(());
        }
        let link = self.images().join(format!(".current-{}", std::process::id()));
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::symlink(image, &link)?;
        fs::rename(&link, self.current_link(major))?;
        flush_folder(&self.images())
    }

    /// All images whose manifest can be read, the newest first.
    ///
    /// # Errors
    /// If the folder of images cannot be read; if it does not exist, there are none.
    pub fn list(&self) -> io::Result<Vec<Listed>> {
        let current: BTreeSet<String> = self.currents()?.into_values().collect();
        let mut list = Vec::new();
        for name in self.image_names()? {
            let folder = self.image(&name);
            let Ok(manifest) = Manifest::load(&folder) else {
                continue;
            };
            let mut golden: Vec<u64> =
                names(&folder.join(file::GOLDEN))?.iter().filter_map(|mib| mib.parse().ok()).collect();
            golden.sort_unstable();
            list.push(Listed { current: current.contains(&name), manifest, golden });
        }
        list.sort_by_key(|listed| std::cmp::Reverse(listed.manifest.origin.built_at));
        Ok(list)
    }

    fn image_names(&self) -> io::Result<Vec<String>> {
        let mut list = names(&self.images())?;
        list.retain(|name| is_image(name));
        Ok(list)
    }

    /// Removes the images and templates that no database needs. The current images and every image in use are kept,
    /// with their templates; so is every template in use. An image whose manifest cannot be read is kept if it is
    /// named as in use, and as long as there is one such, no template is removed: its own is not known.
    ///
    /// # Errors
    /// If something cannot be listed or removed; what is left is whole or hidden from listings.
    pub fn collect(&self, in_use: &InUse) -> io::Result<Collected> {
        let current: BTreeSet<String> = self.currents()?.into_values().collect();
        let mut collected = Collected::default();
        let mut needed = in_use.templates.clone();
        let mut all_known = true;
        for name in self.image_names()? {
            if current.contains(&name) || in_use.images.contains(&name) {
                match Manifest::load(&self.image(&name)) {
                    Ok(manifest) => drop(needed.insert(manifest.template)),
                    Err(_) => all_known = false,
                }
                continue;
            }
            remove(&self.images(), &name)?;
            collected.images.push(name);
        }
        if all_known {
            for name in names(&self.templates())? {
                if !needed.contains(&name) {
                    remove(&self.templates(), &name)?;
                    collected.templates.push(name);
                }
            }
        }
        Ok(collected)
    }
}

/// Whether a name is one of an image: beside them are the links to the current ones.
fn is_image(name: &str) -> bool {
    name.len() == NAME_LEN && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The names in a folder but hidden ones, sorted; none if there is no such folder.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        // A name that is not UTF-8 is none of ours.
        if let Ok(name) = entry?.file_name().into_string()
            && !name.starts_with('.')
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Hides a folder by one rename, then removes it: it is never seen half gone.
fn remove(folder: &Path, name: &str) -> io::Result<()> {
    let hidden = folder.join(format!(".gone-{name}"));
    if hidden.exists() {
        fs::remove_dir_all(&hidden)?;
    }
    fs::rename(folder.join(name), &hidden)?;
    flush_folder(folder)?;
    fs::remove_dir_all(&hidden)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::tests::example;

    fn store_with(templates: &[&str]) -> (tempfile::TempDir, Store, Vec<String>) {
        let home = tempfile::tempdir().unwrap();
        let store = Store::new(home.path());
        let mut images = Vec::new();
        for (age, template) in templates.iter().enumerate() {
            let mut manifest = example(template);
            manifest.origin.built_at = age as u64;
            let folder = store.image(&manifest.image);
            fs::create_dir_all(folder.join("golden/128")).unwrap();
            fs::write(folder.join(file::MANIFEST), serde_json::to_string(&manifest).unwrap()).unwrap();
            fs::create_dir_all(store.template(template)).unwrap();
            images.push(manifest.image);
        }
        (home, store, images)
    }

    #[test]
    fn the_list_is_newest_first_and_tells_the_current_one() {
        let (_home, store, images) = store_with(&["a", "b"]);
        store.set_current(17, &images[0]).unwrap();
        store.set_current(17, &images[1]).unwrap();
        store.set_current(17, &images[0]).unwrap();
        let list = store.list().unwrap();
        let seen: Vec<_> = list.iter().map(|l| (l.manifest.image.clone(), l.current, l.golden.clone())).collect();
        assert_eq!(seen, [(images[1].clone(), false, vec![128]), (images[0].clone(), true, vec![128])]);
    }

    #[test]
    fn each_major_version_has_a_current_image_and_none_is_collected() {
        let (_home, store, images) = store_with(&["a", "b", "c"]);
        store.set_current(17, &images[0]).unwrap();
        store.set_current(18, &images[1]).unwrap();
        assert_eq!(store.current(17).as_ref(), Some(&images[0]));
        assert_eq!(store.current(19), None);
        assert_eq!(store.currents().unwrap(), [(17, images[0].clone()), (18, images[1].clone())].into());
        assert_eq!(store.list().unwrap().iter().filter(|listed| listed.current).count(), 2);
        assert_eq!(store.collect(&InUse::default()).unwrap().images, [images[2].clone()]);
        assert!(store.image(&images[0]).exists() && store.image(&images[1]).exists());
    }

    #[test]
    fn only_what_no_database_needs_is_collected() {
        let (_home, store, images) = store_with(&["a", "b", "c", "d"]);
        store.set_current(17, &images[3]).unwrap();
        let in_use = InUse { images: [images[0].clone()].into(), templates: ["b".to_owned()].into() };
        let collected = store.collect(&in_use).unwrap();
        let mut gone = vec![images[1].clone(), images[2].clone()];
        gone.sort();
        assert_eq!(collected, Collected { images: gone, templates: vec!["c".to_owned()] });
        assert!(store.image(&images[0]).exists() && store.image(&images[3]).exists());
        for kept in ["a", "b", "d"] {
            assert!(store.template(kept).exists());
        }
        assert_eq!(store.current(17).as_deref(), Some(images[3].as_str()));
        assert_eq!(store.collect(&in_use).unwrap(), Collected::default());
    }

    #[test]
    fn no_template_is_collected_while_an_image_in_use_cannot_be_read() {
        let (_home, store, images) = store_with(&["a", "b"]);
        store.set_current(17, &images[1]).unwrap();
        fs::write(store.image(&images[0]).join(file::MANIFEST), "{").unwrap();
        let in_use = InUse { images: [images[0].clone()].into(), ..InUse::default() };
        assert_eq!(store.collect(&in_use).unwrap(), Collected::default());
        assert!(store.template("a").exists());
    }

    #[test]
    fn a_home_without_images_lists_and_collects_nothing() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::new(home.path());
        assert!(store.list().unwrap().is_empty());
        assert_eq!(store.collect(&InUse::default()).unwrap(), Collected::default());
    }
}
