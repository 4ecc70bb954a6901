//! The API over real metadata in a temporary folder. Nothing is woken here: see `api/tests`.

use axum::body::Body as HttpBody;
use axum::http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::metadata::{Metadata, StateJournal};
use crate::settings::{Settings, Sources};

const ADMIN: &str = "dma_0123456789012345678901234567890123456789012";

/// The one in `image.json`.
const IMAGE: &str = "0123456789abcdef";

struct World {
    router: Router,
    host: Host,
    _home: tempfile::TempDir,
}

async fn world(set: &[(&str, &str)]) -> World {
    let home = tempfile::tempdir().unwrap();
    let mut all = vec![("home".to_string(), home.path().to_str().unwrap().to_string())];
    all.extend(set.iter().map(|(k, v)| (k.to_string(), v.to_string())));
    let settings = Settings::load(&Sources { set: all, ..Sources::default() }).unwrap();
    crate::host::layout::Home::new(home.path().into()).create().unwrap();
    let image = home.path().join("images").join(IMAGE);
    std::fs::create_dir_all(image.join("golden")).unwrap();
    std::fs::write(image.join("image.json"), include_str!("../../tests/support/image.json")).unwrap();
    std::os::unix::fs::symlink(IMAGE, home.path().join("images/current-17")).unwrap();
    let metadata = Metadata::open(&home.path().join("dormouse.db")).await.unwrap();
    let (journal, _) = StateJournal::start(metadata.clone(), 100);
    let host = Host::new(&settings, metadata, journal).unwrap();
    let console = home.path().join("console");
    std::fs::create_dir_all(console.join("assets")).unwrap();
    std::fs::write(console.join("index.html"), "<p>console").unwrap();
    std::fs::write(console.join("assets/a.js"), "1").unwrap();
    let api = Api::new(ApiParts {
        host: host.clone(),
        pooler: Arc::default(),
        admin_key: ADMIN.into(),
        session_secret: "secret".repeat(8),
        session_life: settings.session_life,
        console: Console::Folder(console),
        public: "db.example:5432".into(),
        sslmode: "require",
        body_limit: settings.api_body_limit,
        event_streams: settings.api_event_streams,
    });
    World { router: router(api), host, _home: home }
}

struct Answer {
    status: u16,
    headers: axum::http::HeaderMap,
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|v| v.to_str().unwrap()).unwrap_or_default()
    }

    /// The body is a problem of this kind, with a sentence that has these words.
    #[track_caller]
    fn is_problem(&self, status: u16, name: &str, words: &[&str]) {
        assert_eq!(self.status, status, "{}", self.body);
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(self.body["type"], format!("urn:dormouse:problem:{name}"));
        assert_eq!(self.body["status"], status);
        assert!(self.body["title"].is_string());
        let detail = self.body["detail"].as_str().unwrap();
        for word in words {
            assert!(detail.contains(word), "{detail:?} lacks {word:?}");
        }
    }
}

impl World {
    async fn send(&self, request: Request<HttpBody>) -> Response<HttpBody> {
        self.router.clone().oneshot(request).await.unwrap()
    }

    async fn call_with(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&str>) -> Answer {
        let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = body.map(|b| HttpBody::from(b.to_string())).unwrap_or_default();
        let response = self.send(request.body(body).unwrap()).await;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Answer { status, headers, body }
    }

    async fn call(&self, key: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
        let bearer = format!("Bearer {key}");
        let text = body.map(|b| b.to_string());
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        self.call_with(method, path, &headers, text.as_deref()).await
    }

    async fn tenant(&self, name: &str) -> String {
        let created = self.call(ADMIN, "POST", "/v1/tenants", Some(json!({ "name": name }))).await;
        assert_eq!(created.status, 201, "{}", created.body);
        created.body["key"].as_str().unwrap().into()
    }

    async fn create(&self, key: &str, name: &str) -> String {
        let created = self.call(key, "POST", "/v1/databases", Some(json!({ "name": name }))).await;
        assert_eq!(created.status, 201, "{}", created.body);
        created.body["id"].as_str().unwrap().into()
    }
}

#[tokio::test]
async fn a_create_answers_with_the_connection_string_once() {
    let w = world(&[]).await;
    let created = w.call(ADMIN, "POST", "/v1/databases", Some(json!({"name": "hello"}))).await;
    assert_eq!(created.status, 201, "{}", created.body);
    let id = created.body["id"].as_str().unwrap();
    assert_eq!(created.header("location"), format!("/v1/databases/{id}"));
    let uri = created.body["connection_uri"].as_str().unwrap();
    let rest = uri.strip_prefix(&format!("postgresql://app.{id}:")).unwrap();
    let (password, rest) = rest.split_once('@').unwrap();
    assert_eq!((password.len(), rest), (24, "db.example:5432/app?sslmode=require"));
    let shown = w.call(ADMIN, "GET", &format!("/v1/databases/{id}"), None).await;
    assert_eq!(shown.status, 200);
    assert_eq!(shown.body["connection_uri"], Value::Null);
    assert!(!shown.body.to_string().contains(password));
    for (field, value) in [("name", "hello"), ("plan", "free"), ("tenant", "default"), ("state", "stopped")] {
        assert_eq!(shown.body[field], value, "{field}");
    }
    assert_eq!(shown.body["cool_down_ms"], 1000);
    let created_at = shown.body["created_at"].as_str().unwrap();
    assert!(created_at.starts_with("20") && created_at.ends_with('Z'), "{created_at}");
    // Only a verifier is kept of the password.
    let role = w.host.metadata().role(&crate::identity::DatabaseId::parse(id).unwrap(), "app").await.unwrap().unwrap();
    assert!(role.verifier.unwrap().starts_with("SCRAM-SHA-256$4096:"));
}

#[tokio::test]
async fn bad_requests_are_problems_that_name_the_field() {
    let w = world(&[("plans.tiny.databases", "0")]).await;
    w.create(ADMIN, "taken").await;
    let cases: &[(&str, u16, &str, Option<&str>)] = &[
        ("{", 400, "malformed", None),
        ("[]", 400, "malformed", None),
        ("", 400, "malformed", None),
        ("{\"name\":7}", 400, "malformed", None),
        ("{}", 422, "invalid", Some("name")),
        ("{\"name\":\"a\",\"size\":1}", 422, "invalid", Some("size")),
        ("{\"name\":\"\"}", 422, "invalid", Some("name")),
        ("{\"name\":\"Not A Name\"}", 422, "invalid", Some("name")),
        ("{\"name\":\"a\",\"plan\":\"gold\"}", 422, "invalid", Some("plan")),
        ("{\"name\":\"a\",\"cool_down_ms\":1}", 422, "invalid", Some("cool_down_ms")),
        ("{\"name\":\"a\",\"pg_version\":16}", 422, "invalid", Some("pg_version")),
        ("{\"name\":\"a\",\"pg_version\":\"17\"}", 400, "malformed", None),
        ("{\"name\":\"a\",\"tenant\":\"nobody\"}", 422, "invalid", Some("tenant")),
        ("{\"name\":\"taken\"}", 409, "name-taken", Some("name")),
        ("{\"name\":\"a\",\"plan\":\"tiny\"}", 403, "plan-full", None),
    ];
    let bearer = format!("Bearer {ADMIN}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json; charset=utf-8")];
    for (body, status, name, field) in cases {
        let answer = w.call_with("POST", "/v1/databases", &headers, Some(body)).await;
        answer.is_problem(*status, name, field.as_slice());
        assert_eq!(answer.body["field"].as_str(), *field, "{body}");
    }
    let long = format!("{{\"name\":\"{}\"}}", "x".repeat(70_000));
    w.call_with("POST", "/v1/databases", &headers, Some(&long)).await.is_problem(413, "too-large", &["65536"]);
    let plain = [("authorization", bearer.as_str()), ("content-type", "text/plain")];
    w.call_with("POST", "/v1/databases", &plain, Some("{}")).await.is_problem(415, "media-type", &["application/json"]);
    w.call(ADMIN, "PUT", "/v1/databases", None).await.is_problem(405, "method-not-allowed", &["PUT"]);
    w.call(ADMIN, "GET", "/v1/nothing", None).await.is_problem(404, "not-found", &["/v1/nothing"]);
    w.call(ADMIN, "GET", "/v1/databases?limit=0", None).await.is_problem(422, "invalid", &["limit"]);
    w.call(ADMIN, "GET", "/v1/databases?limit=x", None).await.is_problem(400, "malformed", &[]);
    w.call(ADMIN, "GET", "/v1/databases?colour=red", None).await.is_problem(400, "malformed", &["colour"]);
    w.call(ADMIN, "GET", "/v1/databases?cursor=x", None).await.is_problem(422, "invalid", &["cursor"]);
    for id in ["db_00000000000000000000", "hello", "..%2f..", "%00"] {
        let path = format!("/v1/databases/{id}");
        for (method, path) in [("GET", path.clone()), ("DELETE", path.clone()), ("POST", format!("{path}/suspend"))] {
            w.call(ADMIN, method, &path, None).await.is_problem(404, "not-found", &["no such database"]);
        }
    }
    assert_eq!(w.call(ADMIN, "GET", "/v1/databases", None).await.body["databases"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn keys_are_asked_for_and_wrong_ones_open_nothing() {
    let w = world(&[]).await;
    let none = w.call_with("GET", "/v1/databases", &[], None).await;
    none.is_problem(401, "unauthenticated", &["Bearer"]);
    assert_eq!(none.header("www-authenticate"), "Bearer");
    for value in ["Basic abc", "Bearer", "Bearer ", "Bearer dma_wrong", "bearer\u{a0}x"] {
        let answer = w.call_with("GET", "/v1/databases", &[("authorization", value)], None).await;
        answer.is_problem(401, "unauthenticated", &[]);
    }
    assert_eq!(w.call_with("GET", "/healthz", &[], None).await.status, 200);
}

#[tokio::test]
async fn a_tenant_sees_only_its_own_and_the_operator_all() {
    let w = world(&[]).await;
    let (ada, bob) = (w.tenant("ada").await, w.tenant("bob").await);
    assert!(ada.starts_with("dmt_"));
    let id = w.create(&ada, "mine").await;
    // Names are unique to a tenant.
    w.create(&bob, "mine").await;
    let path = format!("/v1/databases/{id}");
    for (method, path, body) in [
        ("GET", path.clone(), None),
        ("DELETE", path.clone(), None),
        ("PATCH", path.clone(), Some(json!({"cool_down_ms": 5000}))),
        ("POST", format!("{path}/suspend"), None),
        ("POST", format!("{path}/resume"), None),
        ("POST", format!("{path}/logins"), None),
        ("POST", format!("{path}/password"), None),
    ] {
        w.call(&bob, method, &path, body).await.is_problem(404, "not-found", &["no such database"]);
    }
    let names = |answer: &Answer| -> Vec<(String, String)> {
        let rows = answer.body["databases"].as_array().unwrap();
        rows.iter().map(|d| (d["tenant"].as_str().unwrap().into(), d["name"].as_str().unwrap().into())).collect()
    };
    let of = |t: &str, n: &str| (t.to_string(), n.to_string());
    assert_eq!(names(&w.call(&ada, "GET", "/v1/databases", None).await), [of("ada", "mine")]);
    assert_eq!(names(&w.call(ADMIN, "GET", "/v1/databases", None).await), [of("ada", "mine"), of("bob", "mine")]);
    assert_eq!(names(&w.call(ADMIN, "GET", "/v1/databases?tenant=bob", None).await), [of("bob", "mine")]);
    w.call(&bob, "GET", "/v1/databases?tenant=ada", None).await.is_problem(422, "invalid", &["no tenant"]);
    assert_eq!(w.call(&ada, "GET", &path, None).await.status, 200);
    // What is the operator's is not a tenant's to do.
    w.call(&ada, "GET", "/v1/tenants", None).await.is_problem(403, "forbidden", &["admin.key"]);
    w.call(&ada, "POST", "/v1/tenants", Some(json!({"name": "eve"}))).await.is_problem(403, "forbidden", &[]);
    let other = json!({"name": "x", "tenant": "bob"});
    w.call(&ada, "POST", "/v1/databases", Some(other.clone())).await.is_problem(422, "invalid", &["operator"]);
    assert_eq!(w.call(ADMIN, "POST", "/v1/databases", Some(other)).await.body["tenant"], "bob");
    w.call(ADMIN, "POST", "/v1/tenants", Some(json!({"name": "ada"}))).await.is_problem(409, "name-taken", &["ada"]);
    let tenants = w.call(ADMIN, "GET", "/v1/tenants", None).await.body;
    assert_eq!(tenants["tenants"].as_array().unwrap().len(), 3);
    assert!(!tenants.to_string().contains("dmt_"));
}

#[tokio::test]
async fn lists_go_by_pages() {
    let w = world(&[]).await;
    for i in 0..5 {
        w.create(ADMIN, &format!("n{i}")).await;
    }
    let mut seen = Vec::new();
    let mut path = "/v1/databases?limit=2".to_string();
    for _ in 0..3 {
        let page = w.call(ADMIN, "GET", &path, None).await.body;
        seen.extend(page["databases"].as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap().to_string()));
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/v1/databases?limit=2&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(seen, ["n0", "n1", "n2", "n3", "n4"]);
    let named = w.call(ADMIN, "GET", "/v1/databases?name=n3", None).await.body;
    assert_eq!(named["databases"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_cool_down_is_set_and_given_back_to_the_plan() {
    let w = world(&[("plans.free.cool_down_ms", "2000")]).await;
    let id = w.create(ADMIN, "a").await;
    let path = format!("/v1/databases/{id}");
    for (body, shown) in [(json!({"cool_down_ms": 300}), 300), (json!({}), 300), (json!({"cool_down_ms": null}), 2000)] {
        let changed = w.call(ADMIN, "PATCH", &path, Some(body.clone())).await;
        assert_eq!((changed.status, &changed.body["cool_down_ms"]), (200, &json!(shown)), "{body}");
        assert_eq!(w.call(ADMIN, "GET", &path, None).await.body["cool_down_ms"], shown);
    }
    w.call(ADMIN, "PATCH", &path, Some(json!({"cool_down_ms": 0}))).await.is_problem(422, "invalid", &["cool_down_ms"]);
    w.call(ADMIN, "PATCH", &path, Some(json!({"name": "b"}))).await.is_problem(422, "invalid", &["name"]);
}

#[tokio::test]
async fn a_deleted_database_is_not_found_and_its_name_is_free() {
    let w = world(&[]).await;
    let id = w.create(ADMIN, "a").await;
    let path = format!("/v1/databases/{id}");
    assert_eq!(w.call(ADMIN, "DELETE", &path, None).await.status, 204);
    for method in ["GET", "DELETE"] {
        w.call(ADMIN, method, &path, None).await.is_problem(404, "not-found", &[]);
    }
    w.create(ADMIN, "a").await;
}

#[tokio::test]
async fn a_login_is_another_role_that_expires() {
    let w = world(&[]).await;
    let id = w.create(ADMIN, "a").await;
    let login = w.call(ADMIN, "POST", &format!("/v1/databases/{id}/logins"), None).await;
    assert_eq!(login.status, 201);
    let uri = login.body["connection_uri"].as_str().unwrap();
    let role = uri.strip_prefix("postgresql://").unwrap().split_once('.').unwrap().0;
    assert!(role.starts_with("login-"));
    let id = crate::identity::DatabaseId::parse(&id).unwrap();
    assert!(w.host.metadata().role(&id, role).await.unwrap().is_some());
    assert!(w.host.metadata().role(&id, "app").await.unwrap().is_some());
}

#[tokio::test]
async fn a_new_password_takes_the_place_of_the_old_and_only_its_owner_gets_it() {
    let w = world(&[]).await;
    let (ada, bob) = (w.tenant("ada").await, w.tenant("bob").await);
    let id = w.create(&ada, "a").await;
    let path = format!("/v1/databases/{id}/password");
    let id = crate::identity::DatabaseId::parse(&id).unwrap();
    let verifier = async || w.host.metadata().role(&id, "app").await.unwrap().unwrap().verifier.unwrap();
    let mut seen = vec![verifier().await];
    w.call(&bob, "POST", &path, None).await.is_problem(404, "not-found", &["no such database"]);
    w.call_with("POST", &path, &[], None).await.is_problem(401, "unauthenticated", &[]);
    assert_eq!(verifier().await, seen[0]);
    for key in [ada.as_str(), ADMIN] {
        let answer = w.call(key, "POST", &path, None).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let uri = answer.body["connection_uri"].as_str().unwrap();
        let password = uri.strip_prefix(&format!("postgresql://app.{id}:")).unwrap();
        let password = password.strip_suffix("@db.example:5432/app?sslmode=require").unwrap();
        assert_eq!(password.len(), 24);
        let now = verifier().await;
        assert!(now.starts_with("SCRAM-SHA-256$4096:") && !now.contains(password) && !seen.contains(&now), "{now}");
        seen.push(now);
    }
    w.call(ADMIN, "POST", "/v1/databases/db_00000000000000000000/password", None).await.is_problem(404, "not-found", &[]);
}

#[tokio::test]
async fn the_console_trades_a_key_for_a_cookie() {
    let w = world(&[]).await;
    let ada = w.tenant("ada").await;
    let json = ("content-type", "application/json");
    let log_in = json!({"key": ada}).to_string();
    let answer = w.call_with("POST", "/v1/session", &[json], Some(&log_in)).await;
    assert_eq!((answer.status, answer.body["tenant"].as_str()), (200, Some("ada")));
    let set = answer.header("set-cookie").to_string();
    for part in ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=3600"] {
        assert!(set.contains(part), "{set}");
    }
    assert!(!set.contains(&ada));
    let cookie = set.split(';').next().unwrap();
    let same = [("cookie", cookie), ("host", "h:8080"), ("origin", "http://h:8080"), json];
    assert_eq!(w.call_with("GET", "/v1/session", &[("cookie", cookie)], None).await.body["role"], "tenant");
    let create = "{\"name\":\"a\"}";
    let created = w.call_with("POST", "/v1/databases", &same, Some(create)).await;
    assert_eq!((created.status, created.body["tenant"].as_str()), (201, Some("ada")));
    // Another site's page, or one that does not say where it is from, changes nothing.
    for origin in [Some("http://evil.example"), Some("http://h:9090"), Some("null"), None] {
        let mut headers = vec![("cookie", cookie), ("host", "h:8080"), json];
        headers.extend(origin.map(|o| ("origin", o)));
        let answer = w.call_with("POST", "/v1/databases", &headers, Some("{\"name\":\"b\"}")).await;
        answer.is_problem(403, "forbidden", &["console"]);
    }
    // A cookie that was tampered with, or signed with another algorithm, is no session.
    let (name, token) = cookie.split_once('=').unwrap();
    let parts: Vec<&str> = token.split('.').collect();
    let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";
    for bad in [format!("{}x.{}.{}", parts[0], parts[1], parts[2]), format!("{none}.{}.", parts[1]), format!("{}.{}.", parts[0], parts[1]), "x".into()] {
        let cookie = format!("{name}={bad}");
        let answer = w.call_with("GET", "/v1/databases", &[("cookie", cookie.as_str())], None).await;
        answer.is_problem(401, "unauthenticated", &["log in"]);
    }
    let out = w.call_with("DELETE", "/v1/session", &same, None).await;
    assert_eq!(out.status, 204);
    assert!(out.header("set-cookie").contains("Max-Age=0"));
    let wrong = w.call_with("POST", "/v1/session", &[json], Some("{\"key\":\"x\"}")).await;
    wrong.is_problem(401, "unauthenticated", &["key"]);
}

#[tokio::test]
async fn a_session_ends() {
    let key = SessionKey::new(&"secret".repeat(8), std::time::Duration::ZERO);
    let w = world(&[]).await;
    // Sealed with the same secret, and over at once.
    let over = format!("{}={}", session::COOKIE, key.seal("admin").unwrap());
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    w.call_with("GET", "/v1/session", &[("cookie", over.as_str())], None).await.is_problem(401, "unauthenticated", &["log in"]);
}

#[tokio::test]
async fn events_are_a_tenants_own() {
    let w = world(&[]).await;
    let (ada, bob) = (w.tenant("ada").await, w.tenant("bob").await);
    let request = Request::get("/v1/events").header("authorization", format!("Bearer {ada}"));
    let response = w.send(request.body(HttpBody::empty()).unwrap()).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body();
    w.create(&bob, "other").await;
    let id = w.create(&ada, "mine").await;
    w.call(&ada, "DELETE", &format!("/v1/databases/{id}"), None).await;
    let mut text = String::new();
    while !text.contains("event: deleted") {
        text.push_str(std::str::from_utf8(&body.frame().await.unwrap().unwrap().into_data().unwrap()).unwrap());
    }
    assert!(text.contains("event: database") && text.contains("\"mine\"") && text.contains("\"deleting\""), "{text}");
    assert!(!text.contains("other"), "{text}");
}

#[tokio::test]
async fn event_streams_are_bounded() {
    let w = world(&[("api.event_streams", "1")]).await;
    let open = || async {
        let request = Request::get("/v1/events").header("authorization", format!("Bearer {ADMIN}"));
        w.send(request.body(HttpBody::empty()).unwrap()).await
    };
    let first = open().await;
    assert_eq!(first.status(), StatusCode::OK);
    assert_eq!(open().await.status(), StatusCode::TOO_MANY_REQUESTS);
    drop(first);
    assert_eq!(open().await.status(), StatusCode::OK);
}

#[tokio::test]
async fn the_console_is_served_and_nothing_outside_it() {
    let w = world(&[]).await;
    for (path, status, kind) in [
        ("/", 200, "text/html; charset=utf-8"),
        ("/somewhere", 200, "text/html; charset=utf-8"),
        ("/assets/a.js", 200, "text/javascript; charset=utf-8"),
        ("/assets/b.js", 404, "application/problem+json"),
        ("/../admin.key", 404, "application/problem+json"),
        ("//etc/passwd.txt", 404, "application/problem+json"),
    ] {
        let answer = w.call_with("GET", path, &[], None).await;
        assert_eq!((answer.status, answer.header("content-type")), (status, kind), "{path}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
    }
    assert!(w.call_with("GET", "/", &[], None).await.header("content-security-policy").contains("default-src 'self'"));
    assert!(w.call_with("GET", "/assets/a.js", &[], None).await.header("cache-control").contains("immutable"));
}

#[tokio::test]
async fn openapi_describes_every_route() {
    let w = world(&[]).await;
    let document = w.call_with("GET", "/openapi.json", &[], None).await.body;
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
    for path in [
        "/healthz",
        "/v1/databases",
        "/v1/databases/{id}",
        "/v1/databases/{id}/logins",
        "/v1/databases/{id}/pack",
        "/v1/databases/{id}/password",
        "/v1/databases/{id}/resume",
        "/v1/databases/{id}/suspend",
        "/v1/events",
        "/v1/session",
        "/v1/tenants",
    ] {
        assert!(paths.iter().any(|p| *p == path), "{path} is missing in {paths:?}");
    }
    let states = &document["components"]["schemas"]["State"]["enum"];
    assert_eq!(states.as_array().unwrap().len(), 8, "{states}");
    let created = document["components"]["schemas"]["NewlyCreated"].to_string();
    assert!(created.contains("connection_uri"), "{created}");
    assert!(document["components"]["schemas"]["Problem"].is_object(), "{document}");
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let told = |status: &str| {
                let schema = &operation["responses"][status]["content"]["application/problem+json"]["schema"];
                schema["$ref"] == "#/components/schemas/Problem"
            };
            let (asks, reads) = (operation.get("security").is_some(), operation.get("requestBody").is_some());
            assert!(!asks || told("401"), "{method} {path}: {operation}");
            assert!(!reads || ["400", "413", "415", "422"].into_iter().all(told), "{method} {path}: {operation}");
        }
    }
}

#[tokio::test]
async fn a_version_of_postgres_is_one_that_there_is_an_image_of() {
    let w = world(&[]).await;
    let created = w.call(ADMIN, "POST", "/v1/databases", Some(json!({"name": "a", "pg_version": 17}))).await;
    assert_eq!((&created.body["pg_version"], &created.body["image"]), (&json!(17), &json!(IMAGE)), "{}", created.body);
    let other = w.call(ADMIN, "POST", "/v1/databases", Some(json!({"name": "b", "pg_version": 18}))).await;
    other.is_problem(422, "invalid", &["PostgreSQL 18", "there is 17", "dormouse image build"]);
    assert_eq!(w.call(ADMIN, "GET", "/v1/databases", None).await.body["databases"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn events_come_newest_first_in_pages_and_only_to_their_owner() {
    let w = world(&[]).await;
    let (own, other) = (w.tenant("own").await, w.tenant("other").await);
    let id = w.create(&own, "a").await;
    for n in 0..3 {
        w.call(&own, "POST", &format!("/v1/databases/{id}/restart"), None).await;
        let listed = w.call(&own, "GET", &format!("/v1/databases/{id}/events"), None).await;
        assert_eq!(listed.body["events"].as_array().unwrap().len(), n + 2, "{}", listed.body);
    }
    let first = w.call(&own, "GET", &format!("/v1/databases/{id}/events?limit=3"), None).await.body;
    let kinds = |body: &Value| -> Vec<String> {
        body["events"].as_array().unwrap().iter().map(|e| e["kind"].as_str().unwrap().into()).collect()
    };
    assert_eq!(kinds(&first), ["restarted", "restarted", "restarted"]);
    let cursor = first["next_cursor"].as_str().unwrap();
    let last = w.call(&own, "GET", &format!("/v1/databases/{id}/events?limit=3&cursor={cursor}"), None).await.body;
    assert_eq!(kinds(&last), ["created"]);
    assert_eq!(last["next_cursor"], Value::Null);
    for path in ["events", "tasks", "wake-trace"] {
        let path = format!("/v1/databases/{id}/{path}");
        w.call(&other, "GET", &path, None).await.is_problem(404, "not-found", &["no such database"]);
    }
    w.call(&own, "GET", &format!("/v1/databases/{id}/tasks"), None).await.is_problem(409, "busy", &["not awake"]);
    let untraced = w.call(&own, "GET", &format!("/v1/databases/{id}/wake-trace"), None).await;
    untraced.is_problem(404, "not-found", &["has not been woken"]);
}

#[tokio::test]
async fn metrics_are_the_operators_and_as_prometheus_reads_them() {
    let w = world(&[]).await;
    let own = w.tenant("own").await;
    w.create(&own, "a").await;
    w.call(&own, "GET", "/metrics", None).await.is_problem(403, "forbidden", &[]);
    w.call_with("GET", "/metrics", &[], None).await.is_problem(401, "unauthenticated", &[]);
    let answer = w.call(ADMIN, "GET", "/metrics", None).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "text/plain; version=0.0.4; charset=utf-8"));
    let text = answer.body.as_str().unwrap();
    assert!(text.contains("dormouse_database_events_total{kind=\"created\"} 1\n"), "{text}");
    assert!(text.contains("# TYPE dormouse_wake_seconds histogram\n"), "{text}");
    let buckets = text.lines().filter(|line| line.starts_with("dormouse_wake_seconds_bucket{kind=\"cold\",le="));
    let bounds: Vec<_> = buckets.map(|line| line.split('"').nth(3).unwrap()).collect();
    assert_eq!((bounds.len(), bounds[0], bounds[12], bounds[13]), (14, "0.001", "4.096", "+Inf"));
    // Each name has its help and type once, before its values.
    let mut known = std::collections::HashSet::new();
    for line in text.lines() {
        match line.strip_prefix("# TYPE ") {
            Some(of) => assert!(known.insert(of.split(' ').next().unwrap()), "{of} twice"),
            None if line.starts_with('#') => {}
            None => {
                let name = line.split(['{', ' ']).next().unwrap();
                let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
                assert!(known.contains(name) || known.contains(family), "{line} has no type");
            }
        }
    }
}

#[tokio::test]
async fn images_are_counted_for_the_operator_alone() {
    let w = world(&[]).await;
    let own = w.tenant("own").await;
    w.call(&own, "GET", "/v1/images", None).await.is_problem(403, "forbidden", &[]);
    let id = w.create(&own, "a").await;
    let body = w.call(ADMIN, "GET", "/v1/images", None).await.body;
    assert_eq!(body["outdated"], 0);
    let image = &body["images"][0];
    assert_eq!((&image["image"], &image["current"], &image["stopped"]), (&json!(IMAGE), &json!(true), &json!(1)), "{body}");
    let adopted = w.call(&own, "POST", &format!("/v1/databases/{id}/adopt"), Some(json!({}))).await;
    assert_eq!((adopted.status, &adopted.body["moved"]), (200, &json!(false)), "{}", adopted.body);
    assert_eq!(w.call(ADMIN, "GET", "/v1/databases?outdated=true", None).await.body["databases"], json!([]));
}
