//! `dormouse logs NAME`: what a guest wrote on its console.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use clap::Args;

use super::client::{Client, ClientError};
use super::{CliError, ServerArgs};
use crate::host::layout::Home;
use crate::identity::DatabaseId;
use crate::metadata::{DatabaseFilter, Metadata, Page};
use crate::settings::Settings;

#[derive(Args)]
pub struct LogsArgs {
    /// Name or id
    name: String,
    /// Whose it is, where several tenants have one of this name
    #[arg(long)]
    tenant: Option<String>,
    /// Go on as the guest writes
    #[arg(short, long)]
    follow: bool,
    /// The log of the virtual machine monitor instead
    #[arg(long)]
    vmm: bool,
}

pub fn run(settings: &Settings, server: &ServerArgs, args: LogsArgs) -> Result<ExitCode, CliError> {
    let home = Home::new(settings.home.clone());
    let id = match Client::new(settings, server).and_then(|c| c.resolve(&args.name, args.tenant.as_deref())) {
        // Logs are wanted most when the server is down.
        Err(ClientError::Unreachable { .. }) => offline(&home, &args.name)?,
        other => other?,
    };
    let none = || CliError::Said(format!("there is no database {id} in {}", home.root().display()));
    let id = DatabaseId::parse(&id).ok_or_else(none)?;
    let path = if args.vmm { home.vmm_log(&id) } else { home.console_log(&id) };
    if args.follow {
        let error = std::process::Command::new("tail").args(["-n", "+1", "-F", "--"]).arg(&path).exec();
        return Err(CliError::Io { what: "tail".into(), source: error });
    }
    match std::fs::File::open(&path) {
        Ok(mut file) => {
            // A reader that has seen enough is no error.
            let _ = std::io::copy(&mut file, &mut std::io::stdout().lock());
            let _ = std::io::stdout().flush();
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("{} has not been awake yet: it has no log", args.name);
        }
        Err(source) => return Err(CliError::Io { what: path.display().to_string(), source }),
    }
    Ok(ExitCode::SUCCESS)
}

fn offline(home: &Home, name: &str) -> Result<String, CliError> {
    let none = || CliError::Said(format!("there is no database named {name}"));
    if !home.metadata().exists() {
        return Err(none());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| CliError::Io { what: "runtime".into(), source })?;
    runtime.block_on(async {
        let metadata = Metadata::open(&home.metadata()).await?;
        if let Some(id) = DatabaseId::parse(name) {
            return metadata.database(&id).await?.map(|row| row.id.to_string()).ok_or_else(none);
        }
        let filter = DatabaseFilter { name: Some(name), ..DatabaseFilter::default() };
        let rows = metadata.list_databases(filter, Page { after: 0, limit: 2 }).await?;
        match rows.as_slice() {
            [] => Err(none()),
            [row] => Ok(row.id.to_string()),
            _ => Err(CliError::Said(format!("several tenants have a database named {name}: give its id"))),
        }
    })
}
