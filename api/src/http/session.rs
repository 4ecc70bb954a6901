//! `/v1/session`: the console trades a key for a cookie.
//!
//! The cookie holds a short-lived JWT (HS256). It is HttpOnly, so no script reads it, and SameSite=Strict. The
//! key itself is never kept by the browser. A session is renewed by using it past half its life.

use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::{Principal, of_key, same_origin};
use super::body::Body;
use super::problem::{Problem, ProblemBody};
use super::{Api, Shared};
use crate::identity::TenantId;
use crate::metadata::now_ms;
use crate::secret::{hmac, same};

/// The cookie's name.
pub const COOKIE: &str = "dormouse_session";

/// Whom a session stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    Admin,
    Tenant(TenantId),
}

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    /// s since 1970.
    iat: u64,
    exp: u64,
}

/// The key that signs sessions, and how long they live.
pub struct SessionKey {
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
    life: Duration,
}

impl SessionKey {
    pub fn new(secret: &str, life: Duration) -> SessionKey {
        // Already installed by an earlier server of this process: the same one.
        let _ = HS256.install_default();
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_required_spec_claims(&["exp", "sub"]);
        validation.leeway = 0;
        SessionKey {
            encoding: EncodingKey::from_secret(secret.as_bytes()),
            decoding: DecodingKey::from_secret(secret.as_bytes()),
            validation,
            life,
        }
    }

    pub(super) fn seal(&self, subject: &str) -> Result<String, Problem> {
        let iat = now_ms().unsigned_abs() / 1000;
        let claims = Claims { sub: subject.into(), iat, exp: iat + self.life.as_secs() };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.encoding)
            .map_err(|e| Problem::unavailable(format!("a session could not be made: {e}")))
    }

    fn open(&self, token: &str) -> Option<Claims> {
        jsonwebtoken::decode::<Claims>(token, &self.decoding, &self.validation).ok().map(|t| t.claims)
    }
}

/// jsonwebtoken's cryptography, reduced to the one algorithm used here.
static HS256: CryptoProvider = CryptoProvider {
    signer_factory: |algorithm, key| Ok(Box::new(HmacKey(hs256(algorithm, key.as_bytes())?))),
    verifier_factory: |algorithm, key| Ok(Box::new(HmacKey(hs256(algorithm, key.try_get_as_bytes()?)?))),
    key_utils: KeyUtils::new_unimplemented(),
};

fn hs256(algorithm: &Algorithm, key: &[u8]) -> jsonwebtoken::errors::Result<Vec<u8>> {
    match algorithm {
        Algorithm::HS256 => Ok(key.to_vec()),
        _ => Err(jsonwebtoken::errors::ErrorKind::InvalidAlgorithm.into()),
    }
}

struct HmacKey(Vec<u8>);

impl signature::Signer<Vec<u8>> for HmacKey {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        Ok(hmac(&self.0, message).to_vec())
    }
}

impl signature::Verifier<Vec<u8>> for HmacKey {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        if same(&hmac(&self.0, message), signature) { Ok(()) } else { Err(signature::Error::new()) }
    }
}

impl JwtSigner for HmacKey {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl JwtVerifier for HmacKey {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

/// Whom the request's cookie stands for; `None` without one.
pub fn claims(headers: &HeaderMap, shared: &Shared) -> Result<Option<Subject>, Problem> {
    let Some(token) = cookie(headers) else { return Ok(None) };
    let over = || Problem::unauthenticated("the session has ended; log in again");
    let claims = shared.session.open(token).ok_or_else(over)?;
    subject(&claims.sub).map(Some).ok_or_else(over)
}

fn subject(text: &str) -> Option<Subject> {
    match text {
        "admin" => Some(Subject::Admin),
        _ => TenantId::parse(text).map(Subject::Tenant),
    }
}

/// Who is logged in.
#[derive(Debug, Serialize, ToSchema)]
pub struct Session {
    /// `admin` or `tenant`.
    role: &'static str,
    /// The tenant's name; the operator's databases belong to `default`.
    tenant: String,
    /// How many ms the session lasts when it is not used; absent with a key.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in_ms: Option<u64>,
}

fn describe(principal: &Principal, life: Option<Duration>) -> Session {
    let (role, tenant) = match principal {
        Principal::Admin => ("admin", crate::identity::DEFAULT_TENANT.to_string()),
        Principal::Tenant(tenant) => ("tenant", tenant.name.clone()),
    };
    Session { role, tenant, expires_in_ms: life.map(|life| life.as_millis() as u64) }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSession {
    /// The operator's or a tenant's key.
    key: String,
}

/// Logs in: trades a key for a session cookie.
#[utoipa::path(
    post, path = "/v1/session", tag = "session", request_body = NewSession,
    responses(
        (status = 200, description = "Logged in; the cookie is set", body = Session),
        (status = 401, description = "The key opens nothing", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn create(State(api): State<Api>, headers: HeaderMap, Body(new): Body<NewSession>) -> Result<Response, Problem> {
    // A browser always says where a POST comes from; a login asked by another site would log the victim in as
    // someone else.
    if headers.contains_key(header::ORIGIN) {
        same_origin(&headers)?;
    }
    let principal = of_key(api.shared(), new.key.trim()).await?;
    with_cookie(api.shared(), &principal)
}

fn with_cookie(shared: &Shared, principal: &Principal) -> Result<Response, Problem> {
    let token = shared.session.seal(match principal {
        Principal::Admin => "admin",
        Principal::Tenant(tenant) => tenant.id.as_str(),
    })?;
    let life = shared.session.life;
    let body = axum::Json(describe(principal, Some(life)));
    Ok(set_cookie(body.into_response(), &token, life.as_secs()))
}

fn set_cookie(mut response: Response, token: &str, seconds: u64) -> Response {
    let text = format!("{COOKIE}={token}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict");
    if let Ok(value) = HeaderValue::from_str(&text) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
    response
}

/// Says who is logged in. A session past half its life is renewed.
#[utoipa::path(
    get, path = "/v1/session", tag = "session", security(("key" = []), ("session" = [])),
    responses(
        (status = 200, description = "Logged in", body = Session),
        (status = 401, description = "Not logged in", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn show(State(api): State<Api>, headers: HeaderMap, principal: Principal) -> Result<Response, Problem> {
    let shared = api.shared();
    let claims = cookie(&headers).and_then(|token| shared.session.open(token));
    let by_key = headers.contains_key(header::AUTHORIZATION);
    match claims {
        Some(claims) if !by_key => {
            let now = now_ms().unsigned_abs() / 1000;
            if claims.exp.saturating_sub(now) < shared.session.life.as_secs() / 2 {
                return with_cookie(shared, &principal);
            }
            Ok(axum::Json(describe(&principal, Some(shared.session.life))).into_response())
        }
        _ => Ok(axum::Json(describe(&principal, None)).into_response()),
    }
}

/// Logs out.
#[utoipa::path(
    delete, path = "/v1/session", tag = "session",
    responses((status = 204, description = "The cookie is removed"))
)]
pub async fn delete(headers: HeaderMap) -> Result<Response, Problem> {
    if cookie(&headers).is_some() {
        same_origin(&headers)?;
    }
    Ok(set_cookie(StatusCode::NO_CONTENT.into_response(), "", 0))
}
