//! `dormouse psql NAME`: psql with a login that works for a minute, since no password is kept.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use clap::Args;

use super::CliError;
use super::client::{Client, text};

#[derive(Args)]
pub struct PsqlArgs {
    /// Name or id
    name: String,
    /// Whose it is, where several tenants have one of this name
    #[arg(long)]
    tenant: Option<String>,
    /// Further arguments of psql, after --
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub fn run(client: &Client, args: PsqlArgs) -> Result<ExitCode, CliError> {
    let id = client.resolve(&args.name, args.tenant.as_deref())?;
    let login = client.post(&format!("/v1/databases/{id}/logins"), None)?;
    let uri = text(&login, "connection_uri")?;
    // The password goes by the environment: arguments can be read by every user of the machine.
    let (uri, password) = without_password(uri).ok_or_else(|| CliError::Said("the server's login makes no sense".into()))?;
    let error = Command::new("psql").arg(uri).args(&args.arguments).env("PGPASSWORD", password).exec();
    Err(match error.kind() {
        std::io::ErrorKind::NotFound => {
            CliError::Said("there is no psql on this machine: apt-get install postgresql-client".into())
        }
        _ => CliError::Io { what: "psql".into(), source: error },
    })
}

/// `postgresql://USER:PASSWORD@REST` as `postgresql://USER@REST` and the password.
fn without_password(uri: &str) -> Option<(String, String)> {
    let (login, rest) = uri.split_once('@')?;
    let (user, password) = login.rsplit_once(':')?;
    Some((format!("{user}@{rest}"), password.to_string()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_password_is_taken_out_of_the_uri() {
        let (uri, password) = super::without_password("postgresql://a.db_1:pw@h:1/app?sslmode=prefer").unwrap();
        assert_eq!((uri.as_str(), password.as_str()), ("postgresql://a.db_1@h:1/app?sslmode=prefer", "pw"));
    }
}
