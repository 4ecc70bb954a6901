//! `dormouse db …`

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::client::{Client, ClientError, escape, text};
use super::{CliError, ServerArgs};

#[derive(Subcommand)]
pub enum Command {
    /// Create a database and print its connection string, which is shown only now
    Create {
        name: String,
        /// A plan of the settings [default: free]
        #[arg(long)]
        plan: Option<String>,
        /// Major version of PostgreSQL [default: the server's]
        #[arg(long)]
        pg_version: Option<u32>,
        /// Suspend it when unused for so many ms
        #[arg(long)]
        cool_down_ms: Option<u64>,
        /// Whose it is to be (operator only)
        #[arg(long)]
        tenant: Option<String>,
    },
    /// List databases
    List {
        /// Only this tenant's (operator only)
        #[arg(long)]
        tenant: Option<String>,
    },
    /// Show a database
    Show {
        #[command(flatten)]
        which: Which,
        /// Show its last wake instead, step by step
        #[arg(long)]
        wake_trace: bool,
    },
    /// Put a database to sleep now
    Suspend(Which),
    /// Wake a database now
    Resume(Which),
    /// Shut a database down: its next use is a cold start, on the newest image; sessions end
    Restart(Which),
    /// Pack a database that sleeps, without waiting for its time asleep (operator only)
    Pack(Which),
    /// Show what happened to a database, the newest last
    Events {
        #[command(flatten)]
        which: Which,
        /// So many of the newest
        #[arg(long, default_value_t = 20)]
        last: u32,
    },
    /// Show what every process of an awake database is doing, with backtraces
    Tasks(Which),
    /// Suspend a database when unused for so many ms
    CoolDown {
        #[command(flatten)]
        which: Which,
        /// ms, or `plan` for its plan's
        ms: String,
    },
    /// Give a database's user a new password and print the connection string, which is shown only now
    Password(Which),
    /// Delete a database with all its data
    Delete(Which),
}

#[derive(clap::Args)]
pub struct Which {
    /// Name or id
    name: String,
    /// Whose it is, where several tenants have one of this name
    #[arg(long)]
    tenant: Option<String>,
}

impl Which {
    fn path(&self, client: &Client) -> Result<String, ClientError> {
        Ok(format!("/v1/databases/{}", client.resolve(&self.name, self.tenant.as_deref())?))
    }
}

pub fn run(client: &Client, args: &ServerArgs, command: Command) -> Result<ExitCode, CliError> {
    let show = |value: &Value| print_one(value, args.json);
    match command {
        Command::Create { name, plan, pg_version, cool_down_ms, tenant } => {
            let mut body = json!({ "name": name });
            let given = [("plan", plan.map(Value::from)), ("pg_version", pg_version.map(Value::from)), ("cool_down_ms", cool_down_ms.map(Value::from)), ("tenant", tenant.map(Value::from))];
            for (field, value) in given {
                if let Some(value) = value {
                    body[field] = value;
                }
            }
            let created = client.post("/v1/databases", Some(body))?;
            if args.json {
                println!("{created}");
            } else {
                println!("{}", text(&created, "connection_uri")?);
                eprintln!("{} is {}; its password is shown only here", name, text(&created, "state")?);
            }
        }
        Command::List { tenant } => list(client, args, tenant)?,
        Command::Show { which, wake_trace: true } => wake_trace(client, args, &which)?,
        Command::Show { which, .. } => show(&client.get(&which.path(client)?)?)?,
        Command::Suspend(which) => show(&client.post(&format!("{}/suspend", which.path(client)?), None)?)?,
        Command::Pack(which) => show(&client.post(&format!("{}/pack", which.path(client)?), None)?)?,
        Command::Resume(which) => show(&client.post(&format!("{}/resume", which.path(client)?), None)?)?,
        Command::Restart(which) => show(&client.post(&format!("{}/restart", which.path(client)?), None)?)?,
        Command::Events { which, last } => events(client, args, &which, last)?,
        Command::Tasks(which) => {
            let answer = client.get(&format!("{}/tasks", which.path(client)?))?;
            print!("{}", if args.json { format!("{answer}\n") } else { text(&answer, "report")?.to_string() });
        }
        Command::CoolDown { which, ms } => {
            let value = match ms.as_str() {
                "plan" => Value::Null,
                ms => Value::from(ms.parse::<u64>().map_err(|_| CliError::Said("wanted a number of ms, or `plan`".into()))?),
            };
            show(&client.patch(&which.path(client)?, json!({ "cool_down_ms": value }))?)?;
        }
        Command::Password(which) => {
            let changed = client.post(&format!("{}/password", which.path(client)?), None)?;
            if args.json {
                println!("{changed}");
            } else {
                println!("{}", text(&changed, "connection_uri")?);
                eprintln!("{} has a new password, shown only here; the old one opens no new connection", which.name);
            }
        }
        Command::Delete(which) => {
            client.delete(&which.path(client)?)?;
            if !args.json {
                println!("{} is deleted", which.name);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn wake_trace(client: &Client, args: &ServerArgs, which: &Which) -> Result<(), CliError> {
    let trace = client.get(&format!("{}/wake-trace", which.path(client)?))?;
    if args.json {
        println!("{trace}");
        return Ok(());
    }
    let whole = if trace["complete"] == true { "" } else { " (without the steps of a client's answer)" };
    println!("{} at {}{whole}", text(&trace, "kind")?, text(&trace, "at")?);
    let steps = trace["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    let cell = |step: &Value, name: &str| step[name].as_u64().unwrap_or_default().to_string();
    let rows = steps.iter().map(|step| {
        [step["step"].as_str().unwrap_or_default().to_owned(), cell(step, "at_us"), cell(step, "took_us")]
    });
    print_table(&["step", "at µs", "took µs"], rows);
    Ok(())
}

fn events(client: &Client, args: &ServerArgs, which: &Which, last: u32) -> Result<(), CliError> {
    let path = format!("{}/events", which.path(client)?);
    let mut all = pages(client, &path, &format!("limit={}", last.clamp(1, 1000)), "events", Some(last as usize))?;
    all.reverse();
    if args.json {
        println!("{}", Value::from(all));
        return Ok(());
    }
    let columns = ["at", "kind", "message"];
    print_table(&columns, all.iter().map(|row| columns.map(|c| row[c].as_str().unwrap_or_default().to_string())));
    Ok(())
}

/// All rows of a list that comes in pages, or the first `most`.
pub fn pages(client: &Client, path: &str, query: &str, field: &str, most: Option<usize>) -> Result<Vec<Value>, ClientError> {
    let most = most.unwrap_or(usize::MAX);
    let mut all = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let from = cursor.map(|cursor| format!("&cursor={}", escape(&cursor))).unwrap_or_default();
        let mut page = client.get(&format!("{path}?{query}{from}"))?;
        if let Some(rows) = page[field].as_array_mut() {
            all.append(rows);
        }
        cursor = page["next_cursor"].as_str().map(str::to_string);
        if cursor.is_none() || all.len() >= most {
            all.truncate(most);
            return Ok(all);
        }
    }
}

fn list(client: &Client, args: &ServerArgs, tenant: Option<String>) -> Result<(), CliError> {
    let query = tenant.map_or("limit=1000".to_string(), |tenant| format!("limit=1000&tenant={}", escape(&tenant)));
    let all = pages(client, "/v1/databases", &query, "databases", None)?;
    if args.json {
        println!("{}", Value::from(all));
        return Ok(());
    }
    let columns = ["name", "state", "id", "plan", "tenant", "created_at"];
    print_table(&columns, all.iter().map(|row| columns.map(|c| row[c].as_str().unwrap_or_default().to_string())));
    Ok(())
}

fn print_one(value: &Value, json: bool) -> Result<(), CliError> {
    if json {
        println!("{value}");
        return Ok(());
    }
    for field in ["id", "name", "tenant", "state", "message", "plan", "pg_version", "image", "cool_down_ms", "packed_bytes", "created_at"] {
        match &value[field] {
            Value::Null => {}
            Value::String(text) => println!("{field:<13} {text}"),
            other => println!("{field:<13} {other}"),
        }
    }
    Ok(())
}

/// Prints rows under a head, each column as wide as it must be.
pub fn print_table<const N: usize>(head: &[&str; N], rows: impl Iterator<Item = [String; N]>) {
    let rows: Vec<_> = rows.collect();
    let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).chain([head[i].len()]).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let cells: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("{}", cells.join("  ").trim_end());
    };
    line(head.map(|h| h));
    for row in &rows {
        line(std::array::from_fn(|i| row[i].as_str()));
    }
}
