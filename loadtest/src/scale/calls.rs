//! The REST calls of the run, on connections that are kept.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::ScaleError;
use crate::client::Target;
use crate::http::Connection;
use crate::rest::Rest;

/// The databases are spread over so many tenants.
pub const TENANTS: u64 = 100;

/// The tenant of the database with this number.
pub fn tenant(number: u64) -> String {
    format!("scale-{}", number % TENANTS)
}

pub struct Caller {
    connection: Connection,
    authorization: String,
}

impl Caller {
    pub fn open(rest: &Rest) -> Result<Self, ScaleError> {
        Ok(Self {
            connection: Connection::open(&rest.base)?,
            authorization: format!("Bearer {}", rest.key),
        })
    }

    fn call(&mut self, method: &str, path: &str, body: Option<Value>) -> Result<Value, ScaleError> {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let mut headers = vec![("authorization", self.authorization.as_str())];
        if !body.is_empty() {
            headers.push(("content-type", "application/json"));
        }
        let answer = self.connection.request(method, path, &headers, &body)?;
        let refused = || ScaleError::Refused {
            call: format!("{method} {path}"),
            status: answer.status,
            body: String::from_utf8_lossy(&answer.body).into_owned(),
        };
        match answer.status {
            204 => Ok(Value::Null),
            200..300 => serde_json::from_slice(&answer.body).map_err(|_| refused()),
            _ => Err(refused()),
        }
    }

    pub fn create_tenant(&mut self, name: &str) -> Result<(), ScaleError> {
        self.call("POST", "/v1/tenants", Some(json!({ "name": name })))
            .map(drop)
    }

    /// Gives the id and the password.
    pub fn create(&mut self, name: &str, tenant: &str) -> Result<(String, String), ScaleError> {
        let made = self.call(
            "POST",
            "/v1/databases",
            Some(json!({ "name": name, "tenant": tenant })),
        )?;
        let id = made["id"].as_str().unwrap_or_default().to_owned();
        let target = Target::parse(made["connection_uri"].as_str().unwrap_or_default())?;
        Ok((id, target.password))
    }

    pub fn get(&mut self, id: &str) -> Result<(), ScaleError> {
        self.call("GET", &format!("/v1/databases/{id}"), None)
            .map(drop)
    }

    pub fn delete(&mut self, id: &str) -> Result<(), ScaleError> {
        self.call("DELETE", &format!("/v1/databases/{id}"), None)
            .map(drop)
    }

    /// A page of a list: how many it has, and where the next begins.
    pub fn page(
        &mut self,
        query: &str,
        cursor: Option<&str>,
    ) -> Result<(usize, Option<String>), ScaleError> {
        let cursor = cursor
            .map(|cursor| format!("&cursor={cursor}"))
            .unwrap_or_default();
        let page = self.call("GET", &format!("/v1/databases?{query}{cursor}"), None)?;
        let count = page["databases"].as_array().map_or(0, Vec::len);
        Ok((count, page["next_cursor"].as_str().map(str::to_owned)))
    }

    pub fn images(&mut self) -> Result<(), ScaleError> {
        self.call("GET", "/v1/images", None).map(drop)
    }
}

/// The time of each of so many calls.
pub fn timed(
    count: usize,
    mut call: impl FnMut(usize) -> Result<(), ScaleError>,
) -> Result<Vec<Duration>, ScaleError> {
    let mut times = Vec::with_capacity(count);
    for n in 0..count {
        let asked = Instant::now();
        call(n)?;
        times.push(asked.elapsed());
    }
    Ok(times)
}
