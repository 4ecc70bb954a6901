//! The REST API from the command's side.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::ServerArgs;
use crate::host::layout::Home;
use crate::settings::Settings;

/// Why a call was not answered as wished.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no server answers at {url} ({reason}); start one with `dormouse up`, or name another with --url")]
    Unreachable { url: String, reason: String },
    #[error("cannot read the operator's key {path}: {source}; give a key with --key or DORMOUSE_KEY")]
    Key { path: std::path::PathBuf, source: std::io::Error },
    #[error("{detail}")]
    Refused { status: u16, detail: String },
    #[error("the server's answer makes no sense: {0}")]
    Answer(String),
}

/// A server and a key to it.
pub struct Client {
    agent: ureq::Agent,
    url: String,
    key: String,
}

impl Client {
    /// The server of this home, or the one that the arguments name.
    pub fn new(settings: &Settings, args: &ServerArgs) -> Result<Client, ClientError> {
        let home = Home::new(settings.home.clone());
        let url = match &args.url {
            Some(url) => url.trim_end_matches('/').to_string(),
            None => announced(&home.server_file()).unwrap_or_else(|| format!("http://{}", settings.api_listen)),
        };
        let key = match &args.key {
            Some(key) => key.clone(),
            None => {
                let path = home.admin_key();
                std::fs::read_to_string(&path).map_err(|source| ClientError::Key { path, source })?
            }
        };
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(5)))
            // A suspend waits for a statement; the server gives up before this.
            .timeout_global(Some(
                settings.suspend_wait + settings.turn_timeout() + settings.wake_timeout + Duration::from_secs(30),
            ))
            .build();
        Ok(Client { agent: config.into(), url, key: key.trim().to_string() })
    }

    pub fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.answer(self.agent.get(self.at(path)).header("authorization", self.bearer()).call())
    }

    pub fn delete(&self, path: &str) -> Result<Value, ClientError> {
        self.answer(self.agent.delete(self.at(path)).header("authorization", self.bearer()).call())
    }

    pub fn post(&self, path: &str, body: Option<Value>) -> Result<Value, ClientError> {
        let request = self.agent.post(self.at(path)).header("authorization", self.bearer());
        self.answer(match body {
            Some(body) => request.send_json(body),
            None => request.send_empty(),
        })
    }

    pub fn patch(&self, path: &str, body: Value) -> Result<Value, ClientError> {
        self.answer(self.agent.patch(self.at(path)).header("authorization", self.bearer()).send_json(body))
    }

    /// The id of a database that is named by its name or its id.
    pub fn resolve(&self, name: &str, tenant: Option<&str>) -> Result<String, ClientError> {
        if crate::identity::DatabaseId::parse(name).is_some() {
            return Ok(name.to_string());
        }
        let refused = |detail: String| ClientError::Refused { status: 404, detail };
        if crate::identity::check_name(name).is_err() {
            return Err(refused(format!("{name:?} is neither a name nor an id of a database")));
        }
        let mut path = format!("/v1/databases?name={name}");
        if let Some(tenant) = tenant {
            path.push_str(&format!("&tenant={}", escape(tenant)));
        }
        let answer = self.get(&path)?;
        let found = answer["databases"].as_array().map(Vec::as_slice).unwrap_or_default();
        match found {
            [] => Err(refused(format!("there is no database named {name}; `dormouse db list` shows what there is"))),
            [one] => text(one, "id").map(str::to_string),
            many => {
                // The operator sees every tenant's. Its own is meant, if there is one.
                let own = many.iter().find(|d| d["tenant"] == crate::identity::DEFAULT_TENANT);
                match own {
                    Some(one) => text(one, "id").map(str::to_string),
                    None => Err(refused(format!("several tenants have a database named {name}: say which with --tenant"))),
                }
            }
        }
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.key)
    }

    fn answer(&self, result: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Value, ClientError> {
        let mut response = result.map_err(|e| ClientError::Unreachable { url: self.url.clone(), reason: e.to_string() })?;
        let status = response.status();
        let body = response.body_mut().read_to_string().map_err(|e| ClientError::Answer(e.to_string()))?;
        let value: Value = match body.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).map_err(|e| ClientError::Answer(format!("{status}: {e}")))?,
        };
        if status.is_success() {
            return Ok(value);
        }
        let detail = value["detail"].as_str().map_or_else(|| format!("the server answered {status}"), str::to_string);
        Err(ClientError::Refused { status: status.as_u16(), detail })
    }
}

/// A text field of an answer.
pub fn text<'a>(value: &'a Value, field: &str) -> Result<&'a str, ClientError> {
    value[field].as_str().ok_or_else(|| ClientError::Answer(format!("it has no {field}")))
}

/// Percent-encodes what is not plain in a query.
pub fn escape(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(b).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// Where the running server of a home says it is.
fn announced(path: &Path) -> Option<String> {
    let value: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    value["api"].as_str().map(str::to_string)
}
