//! Errors as `application/problem+json` (RFC 9457).
//!
//! `type` is stable and for programs, `detail` is a sentence for a person that says what to do.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::host::{CreateError, DeleteError, ExecuteError, PackError, RestartError, SuspendError, TasksError, WakeError};
use crate::metadata::MetadataError;

/// An error, on the wire.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody {
    /// `urn:dormouse:problem:NAME`; stable.
    #[serde(rename = "type")]
    kind: String,
    /// What kind of problem, in words.
    title: &'static str,
    /// The HTTP status, again.
    status: u16,
    /// What is wrong here, and what to do.
    detail: String,
    /// The field of the request that is wrong, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
}

/// An error, to be answered.
#[derive(Clone, Debug)]
pub struct Problem {
    status: StatusCode,
    name: &'static str,
    title: &'static str,
    detail: String,
    field: Option<String>,
}

impl Problem {
    fn new(status: StatusCode, name: &'static str, title: &'static str, detail: impl Into<String>) -> Problem {
        Problem { status, name, title, detail: detail.into(), field: None }
    }

    /// A field of the request has a value that cannot be.
    pub fn invalid(field: &str, detail: impl std::fmt::Display) -> Problem {
        let text = format!("{field}: {detail}");
        let mut problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", "A value is not valid", text);
        problem.field = Some(field.into());
        problem
    }

    /// The request cannot be read.
    pub fn malformed(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, "malformed", "The request cannot be read", detail)
    }

    pub fn media_type(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media-type", "The body is of the wrong type", detail)
    }

    pub fn too_large(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The body is too large", detail)
    }

    pub fn unauthenticated(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::UNAUTHORIZED, "unauthenticated", "Who you are is not known", detail)
    }

    pub fn forbidden(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::FORBIDDEN, "forbidden", "Not allowed", detail)
    }

    pub fn not_found(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail)
    }

    pub fn method_not_allowed(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Wrong method", detail)
    }

    pub fn name_taken(what: &str, name: &str) -> Problem {
        let detail = format!("there is a {what} named {name} already; choose another name");
        let mut problem = Problem::new(StatusCode::CONFLICT, "name-taken", "The name is taken", detail);
        problem.field = Some("name".into());
        problem
    }

    fn busy(detail: String) -> Problem {
        Problem::new(StatusCode::CONFLICT, "busy", "Not in the database's present state", detail)
    }

    fn deleting(detail: String) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail)
    }

    fn plan_full(detail: String) -> Problem {
        Problem::new(StatusCode::FORBIDDEN, "plan-full", "The plan is used up", detail)
    }

    fn disk_full(detail: String) -> Problem {
        Problem::new(StatusCode::INSUFFICIENT_STORAGE, "disk-full", "The disk is full", detail)
    }

    pub fn too_many(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many", "Too many at once", detail)
    }

    pub fn unavailable(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Not available now", detail)
    }

    fn internal(detail: String) -> Problem {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "The server failed", detail)
    }
}

/// An error whose cause is the operator's to read: logged whole, and told in one sentence.
fn hidden(cause: &dyn std::fmt::Display) -> Problem {
    tracing::error!(%cause, "a request failed");
    Problem::internal("something failed inside the server; its log says what".into())
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = ProblemBody {
            kind: format!("urn:dormouse:problem:{}", self.name),
            title: self.title,
            status: self.status.as_u16(),
            detail: self.detail,
            field: self.field,
        };
        let mut response = (self.status, axum::Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<MetadataError> for Problem {
    fn from(error: MetadataError) -> Problem {
        match error {
            MetadataError::Full => Problem::disk_full(error.to_string()),
            other => hidden(&other),
        }
    }
}

impl From<crate::secret::PasswordError> for Problem {
    fn from(error: crate::secret::PasswordError) -> Problem {
        hidden(&error)
    }
}

impl From<crate::secret::RandomError> for Problem {
    fn from(error: crate::secret::RandomError) -> Problem {
        hidden(&error)
    }
}

impl From<ExecuteError> for Problem {
    fn from(error: ExecuteError) -> Problem {
        match error {
            ExecuteError::Wake(error) => error.into(),
            ExecuteError::Guest(error) => Problem::unavailable(format!("the database did not carry it out: {error}")),
        }
    }
}

impl From<WakeError> for Problem {
    fn from(error: WakeError) -> Problem {
        let text = error.to_string();
        match error {
            WakeError::NotFound | WakeError::Deleting => Problem::deleting(text),
            WakeError::QueueFull => Problem::too_many(text),
            WakeError::DiskFull(_) => Problem::disk_full(text),
            WakeError::ShuttingDown | WakeError::Failed(_) => Problem::unavailable(text),
            WakeError::Metadata(_) => hidden(&text),
        }
    }
}

impl From<SuspendError> for Problem {
    fn from(error: SuspendError) -> Problem {
        let text = error.to_string();
        match error {
            SuspendError::NotFound | SuspendError::Deleting => Problem::deleting(text),
            SuspendError::Busy(_) => Problem::busy(text),
            SuspendError::DiskFull(_) => Problem::disk_full(text),
            SuspendError::Failed(_) => Problem::internal(text),
            SuspendError::QueueFull => Problem::too_many(text),
            SuspendError::Metadata(_) => hidden(&text),
        }
    }
}

impl From<PackError> for Problem {
    fn from(error: PackError) -> Problem {
        let text = error.to_string();
        match error {
            PackError::NotFound | PackError::Deleting => Problem::deleting(text),
            PackError::Awake | PackError::CalledOff | PackError::Unfit(_) => Problem::busy(text),
            PackError::QueueFull => Problem::too_many(text),
            PackError::Failed(_) => Problem::internal(text),
            PackError::Metadata(_) => hidden(&text),
        }
    }
}

impl From<RestartError> for Problem {
    fn from(error: RestartError) -> Problem {
        let text = error.to_string();
        match error {
            RestartError::NotFound | RestartError::Deleting => Problem::deleting(text),
            RestartError::InUse(_) => Problem::busy(text),
            RestartError::QueueFull => Problem::too_many(text),
            RestartError::Failed(_) => Problem::internal(text),
            RestartError::Metadata(_) => hidden(&text),
        }
    }
}

impl From<TasksError> for Problem {
    fn from(error: TasksError) -> Problem {
        let text = error.to_string();
        match error {
            TasksError::Asleep => Problem::busy(text),
            TasksError::Silent(_) => Problem::unavailable(text),
        }
    }
}

impl From<DeleteError> for Problem {
    fn from(error: DeleteError) -> Problem {
        let text = error.to_string();
        match error {
            DeleteError::NotFound => Problem::not_found(text),
            DeleteError::QueueFull => Problem::too_many(text),
            DeleteError::Failed(_) => Problem::internal(text),
            DeleteError::Metadata(e) if matches!(*e, MetadataError::Full) => Problem::disk_full(text),
            DeleteError::Metadata(_) => hidden(&text),
        }
    }
}

impl From<CreateError> for Problem {
    fn from(error: CreateError) -> Problem {
        let text = error.to_string();
        match error {
            CreateError::NoPlan => Problem::invalid("plan", text),
            CreateError::NoVersion { .. } => Problem::invalid("pg_version", text),
            CreateError::NameTaken => Problem::name_taken("database", "this"),
            CreateError::PlanFull(_) => Problem::plan_full(text),
            CreateError::DiskFull => Problem::disk_full(text),
            CreateError::NoImage | CreateError::ShuttingDown | CreateError::Interrupted => Problem::unavailable(text),
            CreateError::Random(_) | CreateError::Password(_) | CreateError::Metadata(_) => hidden(&text),
        }
    }
}
