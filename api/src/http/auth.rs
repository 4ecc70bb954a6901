//! Who asks: the operator, a tenant, or nobody.
//!
//! By `Authorization: Bearer KEY`, or by the console's cookie ([`super::session`]). A cookie is sent by the
//! browser whoever wrote the page, so a change asked with one must come from the server's own origin.

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use axum::http::{HeaderMap, Method, header, request::Parts};

use super::problem::Problem;
use super::session;
use super::{Api, Shared};
use crate::identity::TenantId;
use crate::metadata::{DatabaseRow, TenantRow};
use crate::secret::{key_hash, same};

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// The operator: sees every tenant's databases; its own belong to the tenant `default`.
    Admin,
    Tenant(TenantRow),
}

impl Principal {
    /// The tenant whose rows are seen; none: all.
    pub fn tenant(&self) -> Option<&TenantId> {
        match self {
            Principal::Admin => None,
            Principal::Tenant(tenant) => Some(&tenant.id),
        }
    }

    pub fn may_see(&self, row: &DatabaseRow) -> bool {
        self.tenant().is_none_or(|tenant| *tenant == row.tenant)
    }

    pub fn admin(&self) -> Result<(), Problem> {
        match self {
            Principal::Admin => Ok(()),
            Principal::Tenant(_) => Err(Problem::forbidden("this takes the operator's key (admin.key), not a tenant's")),
        }
    }
}

impl FromRequestParts<Api> for Principal {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        if let Some(value) = parts.headers.get(header::AUTHORIZATION) {
            let key = value.to_str().ok().and_then(bearer).ok_or_else(|| {
                Problem::unauthenticated("the Authorization header must be: Bearer KEY")
            })?;
            return of_key(api.shared(), key).await;
        }
        let claims = session::claims(&parts.headers, api.shared())?.ok_or_else(|| {
            Problem::unauthenticated("send the header Authorization: Bearer KEY, with admin.key's content or a tenant's key")
        })?;
        if !matches!(parts.method, Method::GET | Method::HEAD) {
            same_origin(&parts.headers)?;
        }
        match claims {
            session::Subject::Admin => Ok(Principal::Admin),
            session::Subject::Tenant(id) => match api.shared().host.metadata().tenant_by_id(&id).await? {
                Some(tenant) => Ok(Principal::Tenant(tenant)),
                None => Err(Problem::unauthenticated("the tenant of this session is gone; log in again")),
            },
        }
    }
}

impl OptionalFromRequestParts<Api> for Principal {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Option<Self>, Problem> {
        Ok(<Principal as FromRequestParts<Api>>::from_request_parts(parts, api).await.ok())
    }
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
}

/// Whose key it is.
pub async fn of_key(shared: &Shared, key: &str) -> Result<Principal, Problem> {
    let hash = key_hash(key);
    if same(&hash, &shared.admin_key_hash) {
        return Ok(Principal::Admin);
    }
    match shared.host.metadata().tenant_by_key(&hash).await? {
        Some(tenant) => Ok(Principal::Tenant(tenant)),
        None => Err(Problem::unauthenticated("this key opens nothing here; check that it was copied whole")),
    }
}

/// Refuses a change that another site's page asks for with our cookie. SameSite=Strict keeps the cookie from
/// other sites, but not from another port of this host; the Origin header does.
pub fn same_origin(headers: &HeaderMap) -> Result<(), Problem> {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
    let origin = text(header::ORIGIN).and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
    match (origin, text(header::HOST)) {
        (Some(origin), Some(host)) if origin.eq_ignore_ascii_case(host) => Ok(()),
        _ => Err(Problem::forbidden("a change asked with a console session must come from the console itself")),
    }
}
