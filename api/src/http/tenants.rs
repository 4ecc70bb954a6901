//! `/v1/tenants`: for the operator.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::auth::Principal;
use super::body::{Body, Search};
use super::databases::rfc3339;
use super::page::{cut, page};
use super::problem::{Problem, ProblemBody};
use crate::identity::{TenantId, check_name};
use crate::metadata::{NewTenantError, TenantRow};
use crate::secret::{TENANT_KEY_PREFIX, key_hash, new_key};

/// A tenant.
#[derive(Debug, Serialize, ToSchema)]
pub struct Tenant {
    #[schema(example = "tn_0123456789abcdefghij")]
    id: String,
    name: String,
    /// RFC 3339, UTC.
    created_at: String,
}

/// A new tenant. The key is shown here and never again.
#[derive(Debug, Serialize, ToSchema)]
pub struct NewlyCreatedTenant {
    #[serde(flatten)]
    tenant: Tenant,
    key: String,
}

/// A page of tenants, oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct Tenants {
    tenants: Vec<Tenant>,
    /// Give it as `cursor` for the next page; null on the last.
    next_cursor: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTenant {
    /// 1–63 of `[a-z0-9-]`, unique.
    name: String,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ListTenants {
    /// Tenants on a page, 1–1000; 100 if not given.
    limit: Option<i64>,
    /// Where the page starts: `next_cursor` of the one before.
    cursor: Option<String>,
}

fn view(row: TenantRow) -> Tenant {
    Tenant { id: row.id.to_string(), name: row.name, created_at: rfc3339(row.created_at) }
}

/// Lists tenants.
#[utoipa::path(
    get, path = "/v1/tenants", tag = "tenants", params(ListTenants), security(("key" = []), ("session" = [])),
    responses(
        (status = 200, description = "A page of tenants, oldest first", body = Tenants),
        (status = 403, description = "Only the operator may", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn list(State(api): State<Api>, principal: Principal, Search(query): Search<ListTenants>) -> Result<axum::Json<Tenants>, Problem> {
    principal.admin()?;
    let page = page(query.limit, query.cursor.as_deref())?;
    let mut rows = api.shared().host.metadata().list_tenants(page).await?;
    let next_cursor = cut(&mut rows, page, |row| row.seq);
    Ok(axum::Json(Tenants { tenants: rows.into_iter().map(view).collect(), next_cursor }))
}

/// Creates a tenant and its key.
#[utoipa::path(
    post, path = "/v1/tenants", tag = "tenants", request_body = CreateTenant, security(("key" = []), ("session" = [])),
    responses(
        (status = 201, description = "Created; the key is shown only here", body = NewlyCreatedTenant),
        (status = 403, description = "Only the operator may", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "The name is taken", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn create(State(api): State<Api>, principal: Principal, Body(new): Body<CreateTenant>) -> Result<impl IntoResponse, Problem> {
    principal.admin()?;
    check_name(&new.name).map_err(|e| Problem::invalid("name", e))?;
    let key = new_key(TENANT_KEY_PREFIX)?;
    let id = TenantId::random()?;
    let row = api.shared().host.metadata().create_tenant(&id, &new.name, &key_hash(&key)).await;
    let row = row.map_err(|e| match e {
        NewTenantError::NameTaken => Problem::name_taken("tenant", &new.name),
        NewTenantError::Metadata(e) => e.into(),
    })?;
    tracing::info!(tenant = new.name, "tenant created");
    Ok((StatusCode::CREATED, axum::Json(NewlyCreatedTenant { tenant: view(row), key })))
}
