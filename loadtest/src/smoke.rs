//! `smoke`: one database through its whole life, each step checked. For a server on a machine one does not trust yet.

use std::path::Path;
use std::time::Instant;

use thiserror::Error;

use crate::client::{Client, ClientError};
use crate::rest::{self, Created, Rest, RestError};
use crate::wake;

#[derive(Debug, Error)]
pub enum SmokeError {
    #[error("{0}")]
    Rest(#[from] RestError),
    #[error("{0}")]
    Client(#[from] ClientError),
    #[error("{step}: expected {expected:?}, got {got:?}")]
    Wrong {
        step: &'static str,
        expected: String,
        got: String,
    },
}

/// Create, ask, suspend, ask on the same session, ask on a new one, start cold, ask, delete.
pub fn run(rest: &Rest, home: &Path) -> Result<(), SmokeError> {
    let started = Instant::now();
    let say = |what: &str| println!("{:>8.2} s  {what}", started.elapsed().as_secs_f64());
    let created = rest.create(&wake::name("smoke"))?;
    say("created");
    let lived = live(rest, home, &created, &say);
    let deleted = rest.delete(&created.database.id);
    lived?;
    deleted?;
    say("deleted");
    Ok(())
}

fn live(rest: &Rest, home: &Path, created: &Created, say: &dyn Fn(&str)) -> Result<(), SmokeError> {
    let id = created.database.id.as_str();
    let mut held = created.connect()?;
    let version = held.value("show server_version")?;
    say(&format!("PostgreSQL {version} answers"));
    held.query("create table rows as select generate_series(1, 1000) as n")?;
    held.query("create temporary table kept as select 42 as answer")?;
    let first_start = held.value(wake::START_TIME)?;
    rest.suspend(id)?;
    say("suspended: no process");
    expect(
        "the held session",
        &held.value("select answer from kept")?,
        "42",
    )?;
    say("restored: the held session is as it was");
    rest.suspend(id)?;
    let mut new = Client::connect(&created.target()?)?;
    expect(
        "a new session",
        &new.value("select sum(n) from rows")?,
        "500500",
    )?;
    expect(
        "the start time",
        &new.value(wake::START_TIME)?,
        &first_start,
    )?;
    new.close()?;
    say("suspended and restored again: a new session sees the data");
    rest.suspend(id)?;
    rest::remove_snapshot(home, id)?;
    let mut cold = Client::connect(&created.target()?)?;
    expect(
        "after a cold start",
        &cold.value("select sum(n) from rows")?,
        "500500",
    )?;
    if cold.value(wake::START_TIME)? == first_start {
        return Err(SmokeError::Wrong {
            step: "the cold start",
            expected: "another start time".to_owned(),
            got: first_start,
        });
    }
    say("started cold, without its snapshot: the data is there");
    cold.close()?;
    Ok(())
}

fn expect(step: &'static str, got: &str, expected: &str) -> Result<(), SmokeError> {
    if got == expected {
        return Ok(());
    }
    Err(SmokeError::Wrong {
        step,
        expected: expected.to_owned(),
        got: got.to_owned(),
    })
}
