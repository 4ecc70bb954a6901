//! The REST API: resources, errors, authentication, and the console's files.
//!
//! Every resource has the same shape: a module with its wire types and its handlers, routed and documented in one
//! place (`utoipa`), so `/openapi.json` cannot say what the router does not do. Errors are problem details
//! ([`problem`]); nothing a client sends is a panic or a 500.

mod auth;
mod body;
mod console;
mod databases;
mod document;
mod events;
mod health;
mod images;
mod metrics;
mod operations;
mod page;
pub mod problem;
mod resets;
mod session;
mod tenants;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue, Method, Uri};
use axum::response::Response;
use axum::routing::get;
use utoipa::OpenApi;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::problem::Problem;
use self::session::SessionKey;
use crate::host::Host;

pub use self::console::Console;

/// What the handlers share. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    inner: Arc<Shared>,
}

pub(crate) struct Shared {
    pub host: Host,
    pub pooler: Arc<dormouse_pooler::Metrics>,
    pub resets: resets::Resets,
    pub admin_key_hash: [u8; 32],
    pub session: SessionKey,
    pub console: Console,
    /// `HOST:PORT` of the pooler in connection strings.
    pub public: String,
    /// How clients should use TLS: `require` or `prefer`, as `sslmode` has it.
    pub sslmode: &'static str,
    pub body_limit: usize,
    pub event_streams: AtomicUsize,
    pub event_streams_most: usize,
}

/// What the API is made from.
pub struct ApiParts {
    pub host: Host,
    /// What the pooler counts.
    pub pooler: Arc<dormouse_pooler::Metrics>,
    pub admin_key: String,
    /// Signs console sessions.
    pub session_secret: String,
    pub session_life: std::time::Duration,
    pub console: Console,
    pub public: String,
    pub sslmode: &'static str,
    pub body_limit: usize,
    pub event_streams: usize,
}

impl Api {
    pub fn new(parts: ApiParts) -> Api {
        Api {
            inner: Arc::new(Shared {
                host: parts.host,
                pooler: parts.pooler,
                resets: resets::Resets::default(),
                admin_key_hash: crate::secret::key_hash(&parts.admin_key),
                session: SessionKey::new(&parts.session_secret, parts.session_life),
                console: parts.console,
                public: parts.public,
                sslmode: parts.sslmode,
                body_limit: parts.body_limit,
                event_streams: AtomicUsize::new(0),
                event_streams_most: parts.event_streams,
            }),
        }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.inner
    }
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Dormouse",
        description = "Postgres that sleeps. Authenticate with `Authorization: Bearer KEY`: the operator's key or a \
                       tenant's. Errors are `application/problem+json` (RFC 9457)."
    ),
    components(schemas(problem::ProblemBody))
)]
struct Document;

fn routed() -> OpenApiRouter<Api> {
    let mut document = Document::openapi();
    let components = document.components.get_or_insert_default();
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    let cookie = SecurityScheme::ApiKey(ApiKey::Cookie(ApiKeyValue::new(session::COOKIE)));
    components.add_security_scheme("key", bearer);
    components.add_security_scheme("session", cookie);
    let mut router = OpenApiRouter::with_openapi(document)
        .routes(routes!(databases::list, databases::create))
        .routes(routes!(databases::show, databases::change, databases::delete))
        .routes(routes!(databases::suspend))
        .routes(routes!(operations::pack))
        .routes(routes!(databases::resume))
        .routes(routes!(databases::login))
        .routes(routes!(databases::password))
        .routes(routes!(operations::events))
        .routes(routes!(operations::tasks))
        .routes(routes!(operations::wake_trace))
        .routes(routes!(operations::restart))
        .routes(routes!(operations::adopt))
        .routes(routes!(images::list))
        .routes(routes!(images::versions))
        .routes(routes!(tenants::list, tenants::create))
        .routes(routes!(session::show, session::create, session::delete))
        .routes(routes!(events::stream))
        .routes(routes!(health::health))
        .routes(routes!(metrics::metrics));
    document::complete(router.get_openapi_mut());
    router
}

/// The API's description, as `/openapi.json` gives it.
pub fn openapi() -> utoipa::openapi::OpenApi {
    routed().into_openapi()
}

/// The whole service.
pub fn router(api: Api) -> Router {
    let (router, document) = routed().split_for_parts();
    let document = Arc::new(document);
    router
        .route("/openapi.json", get(move || std::future::ready(axum::Json(document.as_ref().clone()))))
        .fallback(elsewhere)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(api.shared().body_limit))
        .layer(axum::middleware::map_response(guard_headers))
        .with_state(api)
}

async fn elsewhere(axum::extract::State(api): axum::extract::State<Api>, method: Method, uri: Uri) -> Result<Response, Problem> {
    let path = uri.path();
    if path.starts_with("/v1/") || path == "/v1" || !(method == Method::GET || method == Method::HEAD) {
        return Err(Problem::not_found(format!("there is nothing at {path}; /openapi.json lists what there is")));
    }
    Ok(api.shared().console.serve(path))
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    Problem::method_not_allowed(format!("{} does not take {method}; /openapi.json lists what it takes", uri.path()))
}

/// Headers on every answer: no sniffing, no framing, no referrer, nothing kept by caches unless said otherwise.
async fn guard_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let mut put = |name: &'static str, value: &'static str| {
        headers.entry(HeaderName::from_static(name)).or_insert(HeaderValue::from_static(value));
    };
    put("x-content-type-options", "nosniff");
    put("x-frame-options", "DENY");
    put("referrer-policy", "no-referrer");
    put("cache-control", "no-store");
    response
}

#[cfg(test)]
mod tests;
