//! Plans: named sets of limits, `[plans.NAME]` in the settings file.

use std::collections::BTreeMap;

use super::{DEFAULT_PLAN, Origin, Resolved, SettingsError};

/// The limits of a database and of the tenant that owns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Databases of this plan a tenant may have.
    pub databases: u64,
    /// RAM of the guest, in MiB.
    pub memory_mib: u64,
    /// Largest data layer, in MiB.
    pub storage_mib: u64,
    /// Client connections at once, per database.
    pub connections: u64,
    /// Idle time after which a database is suspended, in ms, unless the database sets its own.
    pub cool_down_ms: u64,
}

/// One limit: its key, its default, and the range it may have.
pub struct PlanField {
    pub key: &'static str,
    pub default: u64,
    pub least: u64,
    pub most: u64,
}

/// The fields of a plan, in order.
pub const FIELDS: &[PlanField] = &[
    PlanField { key: "databases", default: 100, least: 0, most: 10_000_000 },
    PlanField { key: "memory_mib", default: 512, least: 64, most: 32 << 10 },
    PlanField { key: "storage_mib", default: 1024, least: 128, most: 64 << 20 },
    PlanField { key: "connections", default: 50, least: 1, most: 10_000 },
    PlanField { key: "cool_down_ms", default: 1000, least: MIN_COOL_DOWN_MS, most: MAX_COOL_DOWN_MS },
];

/// Least and greatest cool-down, in ms: from "at once" to a day.
pub const MIN_COOL_DOWN_MS: u64 = 10;
pub const MAX_COOL_DOWN_MS: u64 = 24 * 3600 * 1000;

/// Plans as read from the file: name, then field, then value.
pub type RawPlans = BTreeMap<String, BTreeMap<String, Resolved>>;
/// The plans, and their values as rows for `config show`.
pub type BuiltPlans = (BTreeMap<String, Plan>, Vec<(String, Resolved)>);

/// Checks the plans and fills in what they leave out. The default plan is always there.
pub fn build(mut raw: RawPlans) -> Result<BuiltPlans, SettingsError> {
    raw.entry(DEFAULT_PLAN.into()).or_default();
    let mut plans = BTreeMap::new();
    let mut rows = Vec::new();
    for (name, given) in raw {
        let mut values = [0; FIELDS.len()];
        for (i, field) in FIELDS.iter().enumerate() {
            let key = format!("plans.{name}.{}", field.key);
            let value = given.get(field.key).cloned().unwrap_or(Resolved {
                text: field.default.to_string(),
                origin: Origin::Default,
            });
            values[i] = check(&key, &value, field)?;
            rows.push((key, value));
        }
        if let Some((field, value)) = given.iter().find(|(k, _)| FIELDS.iter().all(|f| f.key != **k)) {
            return Err(SettingsError::Unknown {
                key: format!("plans.{name}.{field}"),
                origin: value.origin.clone(),
            });
        }
        let [databases, memory_mib, storage_mib, connections, cool_down_ms] = values;
        plans.insert(name, Plan { databases, memory_mib, storage_mib, connections, cool_down_ms });
    }
    Ok((plans, rows))
}

fn check(key: &str, value: &Resolved, field: &PlanField) -> Result<u64, SettingsError> {
    let n: Option<u64> = value.text.trim().parse().ok();
    n.filter(|n| (field.least..=field.most).contains(n))
        .ok_or_else(|| SettingsError::Value {
            key: key.into(),
            value: value.text.clone(),
            origin: value.origin.clone(),
            wanted: format!("wanted a whole number from {} to {}", field.least, field.most),
        })
}
