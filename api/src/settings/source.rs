//! The layers: flags, environment, file, defaults.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use super::plan::RawPlans;
use super::{Origin, Resolved, SETTINGS, SettingsError};

/// The settings file looked for in the current folder when none is named.
pub const FILE_NAME: &str = "dormouse.toml";

/// What the layers are read from. Tests build their own instead of changing the process' environment.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Values given as flags, by key.
    pub flags: BTreeMap<&'static str, String>,
    /// Values given by `--set KEY=VALUE`: any key, plans' too. They come after the flags of their own.
    pub set: Vec<(String, String)>,
    /// The environment.
    pub environment: BTreeMap<String, OsString>,
    /// The settings file asked for by `--config`.
    pub file: Option<PathBuf>,
    /// Folder in which `dormouse.toml` is looked for otherwise; none looks nowhere.
    pub folder: Option<PathBuf>,
}

impl Sources {
    /// This process' environment and current folder, with these flags.
    pub fn process(flags: BTreeMap<&'static str, String>, set: Vec<(String, String)>, file: Option<PathBuf>) -> Sources {
        Sources {
            flags,
            set,
            environment: std::env::vars_os()
                .filter_map(|(k, v)| Some((k.into_string().ok()?, v)))
                .filter(|(k, _)| k.starts_with("DORMOUSE_"))
                .collect(),
            file,
            folder: Some(PathBuf::from(".")),
        }
    }
}

type Values = BTreeMap<&'static str, Resolved>;

/// Every setting's value and origin, and the plans as written.
pub fn resolve(sources: &Sources) -> Result<(Values, RawPlans), SettingsError> {
    let mut values: Values = SETTINGS
        .iter()
        .map(|s| {
            let value = Resolved { text: s.default.into(), origin: Origin::Default };
            (s.key, value)
        })
        .collect();
    let mut plans = RawPlans::new();
    if let Some((path, text)) = read_file(sources)? {
        parse_file(&path, &text, &mut values, &mut plans)?;
    }
    for setting in SETTINGS {
        let name = setting.variable();
        if let Some(value) = sources.environment.get(&name) {
            let text = value.to_str().ok_or_else(|| SettingsError::Value {
                key: setting.key.into(),
                value: value.to_string_lossy().into_owned(),
                origin: Origin::Environment(name.clone()),
                wanted: "wanted UTF-8".into(),
            })?;
            let value = Resolved { text: text.into(), origin: Origin::Environment(name) };
            values.insert(setting.key, value);
        }
        if let Some(text) = sources.flags.get(setting.key) {
            let origin = Origin::Flag(format!("--{}", setting.flag()));
            values.insert(setting.key, Resolved { text: text.clone(), origin });
        }
    }
    // Fields of the plans that there are: DORMOUSE_PLANS_FREE_DATABASES.
    plans.entry(super::DEFAULT_PLAN.into()).or_default();
    for (name, fields) in &mut plans {
        for field in super::plan::FIELDS {
            let variable = format!("DORMOUSE_PLANS_{}_{}", name.replace('-', "_"), field.key).to_uppercase();
            if let Some(text) = sources.environment.get(&variable) {
                let text = text.to_string_lossy().into_owned();
                fields.insert(field.key.into(), Resolved { text, origin: Origin::Environment(variable) });
            }
        }
    }
    for (key, text) in &sources.set {
        let value = Resolved { text: text.clone(), origin: Origin::Flag("--set".into()) };
        put(key, value, &mut values, &mut plans)?;
    }
    Ok((values, plans))
}

/// Puts a value where its key belongs.
fn put(key: &str, value: Resolved, values: &mut Values, plans: &mut RawPlans) -> Result<(), SettingsError> {
    let unknown = |value: &Resolved| SettingsError::Unknown { key: key.into(), origin: value.origin.clone() };
    if let Some(rest) = key.strip_prefix("plans.") {
        let (name, field) = rest.split_once('.').ok_or_else(|| unknown(&value))?;
        plans.entry(name.into()).or_default().insert(field.into(), value);
    } else {
        let setting = SETTINGS.iter().find(|s| s.key == key).ok_or_else(|| unknown(&value))?;
        values.insert(setting.key, value);
    }
    Ok(())
}

/// The settings file: the one named by flag or `DORMOUSE_CONFIG` must be there, the one in the folder may.
fn read_file(sources: &Sources) -> Result<Option<(PathBuf, String)>, SettingsError> {
    let named = sources
        .file
        .clone()
        .or_else(|| sources.environment.get("DORMOUSE_CONFIG").map(PathBuf::from));
    let (path, must) = match (named, &sources.folder) {
        (Some(path), _) => (path, true),
        (None, Some(folder)) => (folder.join(FILE_NAME), false),
        (None, None) => return Ok(None),
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some((path, text))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !must => Ok(None),
        Err(source) => Err(SettingsError::Read { path, source }),
    }
}

fn parse_file(path: &std::path::Path, text: &str, values: &mut Values, plans: &mut RawPlans) -> Result<(), SettingsError> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| SettingsError::Syntax {
        path: path.into(),
        message: e.to_string(),
    })?;
    let origin = Origin::File(path.into());
    let mut flat = Vec::new();
    flatten("", &table, &mut flat);
    for (key, value) in flat {
        let text = scalar(&value).ok_or_else(|| SettingsError::Value {
            key: key.clone(),
            value: format!("{value:?}"),
            origin: origin.clone(),
            wanted: "wanted a string, a number or a boolean".into(),
        })?;
        put(&key, Resolved { text, origin: origin.clone() }, values, plans)?;
    }
    // A plan without a single field is still a plan.
    if let Some(toml::Value::Table(given)) = table.get("plans") {
        for name in given.keys() {
            plans.entry(name.clone()).or_default();
        }
    }
    Ok(())
}

fn flatten(prefix: &str, table: &toml::Table, out: &mut Vec<(String, toml::Value)>) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            toml::Value::Table(inner) => flatten(&key, inner, out),
            other => out.push((key, other.clone())),
        }
    }
}

fn scalar(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(s) => Some(s.clone()),
        toml::Value::Integer(n) => Some(n.to_string()),
        toml::Value::Boolean(b) => Some(b.to_string()),
        _ => None,
    }
}
