//! PostgreSQL's own pgbench, of the same build as native PostgreSQL, against any server.

use std::path::Path;
use std::process::Command;

use thiserror::Error;

use crate::client::{Address, Client, ClientError, Target};
use crate::native::{NativeError, Programs};

#[derive(Debug, Error)]
pub enum PgbenchError {
    #[error("{0}")]
    Native(#[from] NativeError),
    #[error("pgbench printed no figure:\n{0}")]
    NoFigure(String),
    #[error("pgbench counted {0} failed transactions")]
    FailedTransactions(u64),
}

/// pgbench, told where to connect.
pub fn command(programs: &Programs, target: &Target) -> Command {
    let mut command = programs.command("pgbench");
    connect(&mut command, target);
    command
}

/// The sums of accounts, tellers, branches and history. Every transaction adds the same to one of each.
pub fn sums(client: &mut Client) -> Result<Vec<String>, ClientError> {
    let rows = client.query(
        "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers),
                (select sum(bbalance) from pgbench_branches), (select sum(delta) from pgbench_history)",
    )?;
    Ok(rows.into_iter().flatten().flatten().collect())
}

/// Whether they are as whole transactions leave them.
pub fn agree(sums: &[String]) -> bool {
    sums.len() == 4 && sums.iter().all(|sum| *sum == sums[0])
}

/// Tells a client program of PostgreSQL's where to connect, and as whom; without TLS.
pub fn connect(command: &mut Command, target: &Target) {
    match &target.address {
        Address::Tcp { host, port } => command.args(["-h", host, "-p", &port.to_string()]),
        Address::Unix(path) => command
            .arg("-h")
            .arg(path.parent().unwrap_or(Path::new("/"))),
    };
    command
        .args(["-U", &target.user])
        .env("PGPASSWORD", &target.password);
    command
        .env("PGDATABASE", &target.database)
        .env("PGSSLMODE", "disable");
}

pub fn initialise(programs: &Programs, target: &Target, scale: u32) -> Result<(), PgbenchError> {
    let mut command = command(programs, target);
    command.args(["-i", "-q", "-s", &scale.to_string()]);
    Programs::run(command)?;
    Ok(())
}

/// Runs pgbench with these arguments to its end, in which no transaction may have failed.
pub fn run(
    programs: &Programs,
    target: &Target,
    arguments: &[String],
) -> Result<Figures, PgbenchError> {
    let mut command = command(programs, target);
    command.args(arguments);
    let printed = Programs::run(command)?;
    let figures = Figures::read(&printed).ok_or_else(|| PgbenchError::NoFigure(printed.clone()))?;
    if figures.failed > 0 {
        return Err(PgbenchError::FailedTransactions(figures.failed));
    }
    Ok(figures)
}

/// What pgbench prints at its end.
#[derive(Debug, PartialEq)]
pub struct Figures {
    pub transactions: u64,
    pub failed: u64,
    pub tps: f64,
}

impl Figures {
    pub fn read(printed: &str) -> Option<Self> {
        let after = |label: &str| {
            let line = printed.lines().find_map(|line| line.strip_prefix(label))?;
            line.split([' ', '/']).find(|word| !word.is_empty())
        };
        Some(Self {
            transactions: after("number of transactions actually processed:")?
                .parse()
                .ok()?,
            failed: after("number of failed transactions:")
                .map_or(Ok(0), str::parse)
                .ok()?,
            tps: after("tps = ")?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "\
pgbench (17.6)
transaction type: <builtin: select only>
scaling factor: 5
number of clients: 4
number of transactions actually processed: 123456
number of failed transactions: 0 (0.000%)
latency average = 0.140 ms
initial connection time = 11.523 ms
tps = 28561.123456 (without initial connection time)
";

    #[test]
    fn reads_what_pgbench_prints() {
        assert_eq!(
            Figures::read(PRINTED),
            Some(Figures {
                transactions: 123_456,
                failed: 0,
                tps: 28_561.123_456
            })
        );
        let counted = PRINTED.replace("processed: 123456", "processed: 40/40");
        assert_eq!(
            Figures::read(&counted).map(|figures| figures.transactions),
            Some(40)
        );
    }

    #[test]
    fn does_not_make_up_a_figure() {
        assert_eq!(Figures::read(""), None);
        assert_eq!(Figures::read("tps = fast\n"), None);
    }
}
