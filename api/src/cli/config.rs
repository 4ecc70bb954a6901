//! `dormouse config show`

use std::process::ExitCode;

use clap::Subcommand;

use super::CliError;
use crate::settings::Settings;

#[derive(Subcommand)]
pub enum Command {
    /// Print each setting's value and where it came from
    Show,
}

pub fn show(settings: &Settings) -> Result<ExitCode, CliError> {
    let wide = |f: fn(&(String, crate::settings::Resolved)) -> usize| settings.resolved.iter().map(f).max().unwrap_or(0);
    let (keys, values) = (wide(|(key, _)| key.len()), wide(|(_, value)| value.text.chars().count()).min(32));
    for (key, value) in &settings.resolved {
        println!("{key:<keys$} = {:<values$}  # {}", value.text, value.origin);
    }
    Ok(ExitCode::SUCCESS)
}
