//! `dormouse up`: the all-in-one server in the foreground.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::CliError;
use crate::server::Server;
use crate::settings::Settings;

pub fn run(settings: Settings) -> Result<ExitCode, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|source| CliError::Io { what: "cannot start".into(), source })?;
    runtime.block_on(serve(settings))
}

/// Ctrl-C, or the service manager's TERM.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn new() -> std::io::Result<Stop> {
        Ok(Stop { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

async fn serve(settings: Settings) -> Result<ExitCode, CliError> {
    let mut stop = Stop::new().map_err(|source| CliError::Io { what: "signals".into(), source })?;
    let server = Server::start(settings).await?;
    ready(&server);
    stop.asked().await;
    let host = server.host().clone();
    say(&format!("putting {} to sleep, then ending", databases(host.at_work())));
    let down = server.shut_down();
    tokio::pin!(down);
    let mut asked = 1;
    loop {
        tokio::select! {
            () = &mut down => break,
            () = stop.asked() => {
                asked += 1;
                let left = databases(host.at_work());
                if asked == 2 {
                    say(&format!(
                        "{left} still going to sleep. Once more cuts: they are killed, their sessions end and they start \
                         cold; nothing committed is lost"
                    ));
                } else {
                    say(&format!("cutting {left}"));
                    host.cut();
                }
            }
        }
    }
    Ok(if asked > 2 { ExitCode::from(130) } else { ExitCode::SUCCESS })
}

fn databases(n: usize) -> String {
    if n == 1 { "1 database".into() } else { format!("{n} databases") }
}

/// A line for whoever watches. That nobody reads any more is no reason to stop.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn ready(server: &Server) {
    let url = server.api_url();
    let key = near(&server.home().admin_key());
    say(&format!("API      {url}"));
    say(&format!("pooler   {}", server.pooler_address()));
    let console = if server.has_console() { format!("{url}/") } else { "not part of this build (make console)".into() };
    say(&format!("console  {console}"));
    say(&format!("key      {key} (the operator's)"));
    say("try:");
    say(&format!(
        "  curl -s -X POST {url}/v1/databases -H \"Authorization: Bearer $(cat {key})\" \
         -H 'content-type: application/json' -d '{{\"name\":\"hello\"}}'"
    ));
    say("  psql \"<connection_uri from the answer>\" -c 'select version()'");
}

/// A path as one would type it here.
fn near(path: &Path) -> String {
    let here = std::env::current_dir().ok();
    let near = here.and_then(|here| path.strip_prefix(here).ok().map(Path::to_path_buf));
    near.unwrap_or_else(|| path.to_path_buf()).display().to_string()
}
