//! The data as a stock PostgreSQL finds them: the layer of a sleeping database merged with its template.

use std::path::Path;

use dormouse_vmm::layer;

use super::SteadyError;
use crate::client::{Client, Target};
use crate::native::{Native, NativeError, Programs, Setup};
use crate::pgbench;

/// What was found.
#[derive(Debug)]
pub struct Heap {
    /// What pg_amcheck said; nothing when all is well.
    pub corruption: Option<String>,
    /// Relations that it looked at.
    pub relations: u64,
    /// Sum of balances and of deltas, by table; all are equal when no transaction was half done.
    pub sums: Vec<String>,
}

/// `image` is the folder of the image that the database has.
pub fn check(
    programs: &Programs,
    home: &Path,
    id: &str,
    image: &Path,
) -> Result<Heap, SteadyError> {
    let template = template(image)?;
    let mut native = Native::prepare(
        programs,
        Setup {
            disk: Some(home.to_owned()),
            ..Setup::default()
        },
    )?;
    layer::merge(
        &home.join("databases").join(id).join("layer"),
        &home.join("templates").join(&template),
        &template,
        &native.data(),
    )?;
    native.start()?;
    let app = Target {
        database: "app".to_owned(),
        ..native.target()
    };
    let mut client = Client::connect(&app)?;
    let sums = pgbench::sums(&mut client)?;
    let relations =
        client.value("select count(*) from pg_class where relkind in ('r', 't', 'i')")?;
    client.close()?;
    let mut amcheck = programs.command("pg_amcheck");
    pgbench::connect(&mut amcheck, &app);
    amcheck.args([
        "--database=app",
        "--install-missing",
        "--heapallindexed",
        "--parent-check",
        "--rootdescend",
    ]);
    let corruption = match Programs::run(amcheck) {
        Ok(_) => None,
        Err(NativeError::Failed { message, .. }) => Some(message),
        Err(error) => return Err(error.into()),
    };
    native.stop()?;
    Ok(Heap {
        corruption,
        relations: relations.parse().unwrap_or(0),
        sums,
    })
}

/// The name of an image's template.
fn template(image: &Path) -> Result<String, SteadyError> {
    let path = image.join("image.json");
    let text = std::fs::read(&path).map_err(SteadyError::io(&path))?;
    let manifest: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let template = manifest.get("template").and_then(serde_json::Value::as_str);
    template
        .map(str::to_owned)
        .ok_or_else(|| SteadyError::Manifest(path.display().to_string()))
}
