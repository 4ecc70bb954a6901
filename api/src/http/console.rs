//! The console's files: those built into the binary, or a folder's.
//!
//! `build.rs` puts `web/dist` into the binary if it was built before. Files with a hash in their name never
//! change, so browsers keep them; the page itself is always asked for anew.

use std::borrow::Cow;
use std::path::{Component, Path, PathBuf};

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

include!(concat!(env!("OUT_DIR"), "/console.rs"));

/// Where the console's files come from.
pub enum Console {
    BuiltIn,
    Folder(PathBuf),
}

/// What the page may do: its own scripts, styles and connections, nothing else's.
const POLICY: &str = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'self'";

const NOT_BUILT: &str = "<!doctype html><meta charset=\"utf-8\"><title>Dormouse</title>\
<h1>The console is not part of this build</h1>\
<p>Run <code>make console</code>, then build <code>dormouse</code> again; or set <code>console.path</code> to a folder \
with a built console. The REST API is at work: see <a href=\"/openapi.json\">/openapi.json</a>.</p>";

impl Console {
    /// Whether there is a console at all.
    pub fn built(&self) -> bool {
        self.find("index.html").is_some()
    }

    /// The file at a path, or the page: it is the page that knows its own addresses.
    pub fn serve(&self, path: &str) -> Response {
        let name = path.trim_start_matches('/');
        let (name, bytes) = match self.find(name) {
            Some(bytes) if !name.is_empty() => (name, bytes),
            // A missing script must not be answered with a page.
            _ if name.contains('.') => {
                return super::problem::Problem::not_found(format!("there is nothing at {path}")).into_response();
            }
            _ => match self.find("index.html") {
                Some(bytes) => ("index.html", bytes),
                None => {
                    return (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], NOT_BUILT)
                        .into_response();
                }
            },
        };
        let body = match bytes {
            Cow::Borrowed(bytes) => Body::from(bytes),
            Cow::Owned(bytes) => Body::from(bytes),
        };
        let mut response = body.into_response();
        let headers = response.headers_mut();
        let mut put = |name, value| headers.insert(name, HeaderValue::from_static(value));
        put(header::CONTENT_TYPE, content_type(name));
        put(header::CONTENT_SECURITY_POLICY, POLICY);
        let kept = if name.starts_with("assets/") { "public, max-age=31536000, immutable" } else { "no-cache" };
        put(header::CACHE_CONTROL, kept);
        response
    }

    fn find(&self, name: &str) -> Option<Cow<'static, [u8]>> {
        match self {
            Console::BuiltIn => FILES.iter().find(|(file, _)| *file == name).map(|(_, bytes)| Cow::Borrowed(*bytes)),
            Console::Folder(folder) => {
                let name = Path::new(name);
                // Only plain names: nothing outside the folder.
                let plain = name.components().all(|c| matches!(c, Component::Normal(_)));
                let path = folder.join(name);
                (plain && path.is_file()).then(|| std::fs::read(path).ok().map(Cow::Owned))?
            }
        }
    }
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("ico") => "image/x-icon",
        Some("json" | "map") => "application/json",
        Some("webmanifest") => "application/manifest+json",
        Some("woff2") => "font/woff2",
        Some("txt") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}
