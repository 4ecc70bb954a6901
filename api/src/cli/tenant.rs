//! `dormouse tenant …`

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::client::{Client, escape, text};
use super::{CliError, ServerArgs, db::print_table};

#[derive(Subcommand)]
pub enum Command {
    /// Create a tenant and print its key, which is shown only now
    Create { name: String },
    /// List tenants
    List,
}

pub fn run(client: &Client, args: &ServerArgs, command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Create { name } => {
            let created = client.post("/v1/tenants", Some(json!({ "name": name })))?;
            if args.json {
                println!("{created}");
            } else {
                eprintln!("tenant {name}; its key is shown only here:");
                println!("{}", text(&created, "key")?);
            }
        }
        Command::List => {
            let mut all = Vec::new();
            let mut path = "/v1/tenants?limit=1000".to_string();
            loop {
                let mut page = client.get(&path)?;
                if let Some(rows) = page["tenants"].as_array_mut() {
                    all.append(rows);
                }
                match page["next_cursor"].as_str() {
                    Some(cursor) => path = format!("/v1/tenants?limit=1000&cursor={}", escape(cursor)),
                    None => break,
                }
            }
            if args.json {
                println!("{}", Value::from(all));
            } else {
                let columns = ["name", "id", "created_at"];
                print_table(&columns, all.iter().map(|row| columns.map(|c| row[c].as_str().unwrap_or_default().to_string())));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
