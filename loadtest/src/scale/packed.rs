//! Copies of used, packed databases: to use and pack each of 100,000 would take a day.
//!
//! A few originals are made through the API, used and packed as any database is, read, and deleted. A copy's folder is what an
//! original's was, under the copy's own id (`dormouse_vmm::pack::copy`). Copies are made while no server runs; only one that
//! was woken is made anew while it sleeps again.

use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use dormouse_vmm::pack::copy::Original;
use dormouse_vmm::pack::{self, PackError};

use super::ScaleError;
use super::calls::{Caller, tenant};
use super::fill::{self, Known};
use super::server::{Place, Running};

/// Of so many different ones the copies are made, or of fewer, if there are fewer copies.
const ORIGINALS: u64 = 20;

pub struct Originals(Vec<Original>);

impl Originals {
    /// Enough for so many copies.
    pub fn make(
        place: &Place,
        server: &Running,
        copies: u64,
        say: &(dyn Fn(String) + Sync),
    ) -> Result<Self, ScaleError> {
        let count = copies.min(ORIGINALS);
        if count > 0 {
            say(format!("using and packing {count} databases, of which copies are made"));
        }
        let mut caller = Caller::open(&server.rest)?;
        let mut made = Vec::new();
        for n in 0..count {
            let (id, password) = caller.create(&format!("original-{n}"), &tenant(n))?;
            made.push(Known { id, password: password.as_str().into() });
        }
        let targets: Result<Vec<_>, ScaleError> =
            made.iter().map(|database| Ok((server.target(database)?, database.id.as_str()))).collect();
        fill::by_use(&server.rest, &targets?, &|_| {})?;
        let mut originals = Vec::new();
        for Known { id, .. } in made {
            server.rest.pack(&id)?;
            originals.push(Original::read(&place.folder(&id), &id).map_err(copying(&id))?);
            caller.delete(&id)?;
        }
        Ok(Self(originals))
    }

    /// Makes the folders of copies, which must not be there, and puts them on disk, all at once. Says how fast.
    pub fn copy(&self, place: &Place, ids: &[&str], say: &(dyn Fn(String) + Sync)) -> Result<(), ScaleError> {
        let begun = Instant::now();
        fill::side_by_side(fill::cores(), ids, |n, id| {
            if n.is_multiple_of(5_000) {
                say(format!("  {n} of {} copied", ids.len()));
            }
            self.write(&place.folder(id), id)
        })?;
        place.flush()?;
        say(format!("  {:.0} copies a second", ids.len() as f64 / begun.elapsed().as_secs_f64()));
        Ok(())
    }

    /// Has a copy that was woken and sleeps be as it was made. It is on disk, as after packing: the next wake's own flush does
    /// not wait for it.
    pub fn renew(&self, place: &Place, id: &str) -> Result<(), ScaleError> {
        let folder = place.folder(id);
        fs::remove_dir_all(&folder).map_err(ScaleError::io(&folder))?;
        self.write(&folder, id)?;
        let packed = folder.join(pack::NAME);
        File::open(&packed).and_then(|file| file.sync_all()).map_err(ScaleError::io(&packed))
    }

    fn write(&self, folder: &Path, id: &str) -> Result<(), ScaleError> {
        // Each copy is always of the same one.
        let sum: usize = id.bytes().map(usize::from).sum();
        self.0[sum % self.0.len()].write(folder, id).map_err(copying(id))
    }
}

fn copying(id: &str) -> impl FnOnce(PackError) -> ScaleError {
    move |source| ScaleError::Copy { id: id.to_owned(), source }
}
