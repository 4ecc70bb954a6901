//! `/v1/images`: for the operator.

use axum::extract::State as Axum;
use dormouse_images::store::Store;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::auth::Principal;
use super::databases::rfc3339;
use super::problem::{Problem, ProblemBody};

/// An image, and how many databases are on it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Image {
    #[schema(example = "0123456789abcdef")]
    image: String,
    /// Major version of PostgreSQL.
    #[schema(example = 17)]
    pg_version: u32,
    /// As `postgres --version` says it; null if the image's folder is gone.
    postgres: Option<String>,
    /// The newest of its major version, which new databases are made from.
    current: bool,
    /// RFC 3339, UTC.
    built_at: Option<String>,
    /// Guest memory sizes, in MiB, that it has a golden snapshot for.
    golden_mib: Vec<u64>,
    /// Databases on it that sleep.
    asleep: u64,
    /// Databases on it whose next start is a cold one.
    stopped: u64,
    awake: u64,
}

/// All images, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct Images {
    images: Vec<Image>,
    /// Databases that are on an older image than the newest of their major version.
    outdated: u64,
}

/// Major versions of PostgreSQL that a database can be made of.
#[derive(Debug, Serialize, ToSchema)]
pub struct Versions {
    versions: Vec<u32>,
    /// Of a create that names none; not among the others if there is no image of it.
    default: u32,
}

/// Lists the major versions of PostgreSQL that there are images of.
#[utoipa::path(
    get, path = "/v1/versions", tag = "images", security(("key" = []), ("session" = [])),
    responses((status = 200, description = "The versions", body = Versions))
)]
pub async fn versions(Axum(api): Axum<Api>, _: Principal) -> axum::Json<Versions> {
    let host = &api.shared().host;
    let versions = host.home().current_images().into_iter().map(|(version, _)| version).collect();
    axum::Json(Versions { versions, default: host.pg_version() })
}

/// Lists images, with how many databases are on each.
#[utoipa::path(
    get, path = "/v1/images", tag = "images", security(("key" = []), ("session" = [])),
    responses(
        (status = 200, description = "All images", body = Images),
        (status = 403, description = "Only the operator may", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn list(Axum(api): Axum<Api>, principal: Principal) -> Result<axum::Json<Images>, Problem> {
    principal.admin()?;
    let host = &api.shared().host;
    let newest = host.home().current_images();
    let is_newest = |image: &str| newest.iter().any(|(_, newest)| newest == image);
    let listed = Store::new(host.home().root()).list().map_err(|e| Problem::unavailable(format!("images cannot be listed: {e}")))?;
    let mut images: Vec<Image> = listed
        .into_iter()
        .map(|listed| Image {
            pg_version: listed.manifest.postgres_major(),
            current: is_newest(&listed.manifest.image),
            built_at: i64::try_from(listed.manifest.origin.built_at).ok().map(|s| rfc3339(s.saturating_mul(1000))),
            golden_mib: listed.golden,
            asleep: 0,
            stopped: 0,
            awake: 0,
            postgres: Some(listed.manifest.postgres_version),
            image: listed.manifest.image,
        })
        .collect();
    let mut outdated = 0;
    for on in host.metadata().count_by_image().await? {
        let has_newer = newest.iter().any(|(version, _)| *version == on.pg_version) && !is_newest(&on.image);
        outdated += if has_newer { on.asleep + on.stopped + on.awake } else { 0 };
        match images.iter_mut().find(|image| image.image == on.image) {
            Some(image) => (image.asleep, image.stopped, image.awake) = (on.asleep, on.stopped, on.awake),
            None => images.push(Image {
                image: on.image,
                pg_version: on.pg_version,
                postgres: None,
                current: false,
                built_at: None,
                golden_mib: Vec::new(),
                asleep: on.asleep,
                stopped: on.stopped,
                awake: on.awake,
            }),
        }
    }
    Ok(axum::Json(Images { images, outdated }))
}
