use std::collections::BTreeMap;

use super::*;

fn sources(toml: &str, env: &[(&str, &str)], flags: &[(&'static str, &str)]) -> (tempfile::TempDir, Sources) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("dormouse.toml"), toml).unwrap();
    let sources = Sources {
        flags: flags.iter().map(|(k, v)| (*k, v.to_string())).collect(),
        environment: env.iter().map(|(k, v)| (k.to_string(), v.into())).collect::<BTreeMap<_, _>>(),
        set: Vec::new(),
        file: None,
        folder: Some(dir.path().into()),
    };
    (dir, sources)
}

fn origin(settings: &Settings, key: &str) -> Origin {
    settings.resolved.iter().find(|(k, _)| k == key).unwrap().1.origin.clone()
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let toml = "[api]\nlisten = '127.0.0.1:1001'\nbody_limit_kib = 3\n[log]\nlevel = 'debug'\n";
    let env = [("DORMOUSE_API_LISTEN", "127.0.0.1:1002"), ("DORMOUSE_LOG_LEVEL", "warn")];
    let (dir, sources) = sources(toml, &env, &[("api.listen", "127.0.0.1:1003")]);
    let s = Settings::load(&sources).unwrap();
    assert_eq!(s.api_listen.port(), 1003);
    assert_eq!(s.log_level, tracing::level_filters::LevelFilter::WARN);
    assert_eq!(s.api_body_limit, 3 * 1024);
    assert_eq!(s.pooler_listen.to_string(), "127.0.0.1:5432");
    assert_eq!(origin(&s, "api.listen"), Origin::Flag("--api-listen".into()));
    assert_eq!(origin(&s, "log.level"), Origin::Environment("DORMOUSE_LOG_LEVEL".into()));
    assert_eq!(origin(&s, "api.body_limit_kib"), Origin::File(dir.path().join("dormouse.toml")));
    assert_eq!(origin(&s, "pooler.listen"), Origin::Default);
}

#[test]
fn plans_come_from_the_file_and_free_is_always_there() {
    let (_dir, sources) = sources("[plans.team]\nmemory_mib = 512\n[plans.free]\ndatabases = 2\n", &[], &[]);
    let s = Settings::load(&sources).unwrap();
    assert_eq!(s.plan("team").unwrap().memory_mib, 512);
    assert_eq!(s.plan("team").unwrap().connections, 50);
    let free = Plan { databases: 2, memory_mib: 512, storage_mib: 1024, connections: 50, cool_down_ms: 1000 };
    assert_eq!(s.plan("free").unwrap(), &free);
    assert!(s.plan("gold").is_none());
}

#[test]
fn plans_come_from_the_environment_and_from_set_too() {
    let (_dir, mut sources) = sources("[plans.big-one]\n", &[("DORMOUSE_PLANS_FREE_DATABASES", "7"), ("DORMOUSE_PLANS_BIG_ONE_MEMORY_MIB", "4096")], &[]);
    sources.set = vec![("plans.free.connections".into(), "9".into()), ("log.level".into(), "error".into())];
    let s = Settings::load(&sources).unwrap();
    assert_eq!((s.plan("free").unwrap().databases, s.plan("free").unwrap().connections), (7, 9));
    assert_eq!(s.plan("big-one").unwrap().memory_mib, 4096);
    assert_eq!(origin(&s, "log.level"), Origin::Flag("--set".into()));
    sources.set = vec![("log.colour".into(), "red".into())];
    assert!(Settings::load(&sources).unwrap_err().to_string().contains("log.colour"));
}

#[test]
fn every_complaint_names_the_key_and_where_it_came_from() {
    // File, environment, what the message has.
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);
    let cases: &[Case] = &[
        ("[api]\nlisten = 'here'\n", &[], &["api.listen", "here", "dormouse.toml"]),
        ("[api]\nlitsen = 'x'\n", &[], &["api.litsen", "dormouse.toml"]),
        ("", &[("DORMOUSE_HOST_WAKES_AT_ONCE", "0")], &["host.wakes_at_once", "DORMOUSE_HOST_WAKES_AT_ONCE", "1 to"]),
        ("[plans.free]\nmemory_mib = 1\n", &[], &["plans.free.memory_mib", "64 to"]),
        ("[plans.free]\nmemory = 256\n", &[], &["plans.free.memory"]),
        ("[api\n", &[], &["not valid TOML"]),
        ("[log]\nlevel = [1]\n", &[], &["log.level", "a string"]),
        ("[pooler]\ntls_key = 'k.pem'\n", &[], &["pooler.tls_certificate", "together"]),
    ];
    for (toml, env, wanted) in cases {
        let (_dir, sources) = sources(toml, env, &[]);
        let message = Settings::load(&sources).unwrap_err().to_string();
        for part in *wanted {
            assert!(message.contains(part), "{toml:?} {env:?}: {message:?} lacks {part:?}");
        }
    }
}

#[test]
fn a_named_settings_file_must_be_there() {
    let sources = Sources { file: Some("/nonexistent/dormouse.toml".into()), ..Sources::default() };
    assert!(Settings::load(&sources).unwrap_err().to_string().contains("/nonexistent/dormouse.toml"));
}

#[test]
fn the_settings_page_has_a_section_for_each_ending_in_its_default() {
    let page = include_str!("../../../docs/settings.md");
    let mut wanted: Vec<(String, String)> = SETTINGS.iter().map(|s| (s.key.into(), s.default.into())).collect();
    wanted.extend(plan::FIELDS.iter().map(|f| (format!("plans.NAME.{}", f.key), f.default.to_string())));
    for (key, default) in &wanted {
        let section = page
            .split("\n### ")
            .find(|s| s.starts_with(&format!("{key}\n")))
            .unwrap_or_else(|| panic!("docs/settings.md has no section for {key}"));
        let section = section.split("\n## ").next().unwrap().trim_end();
        let default = if default.is_empty() { "Default: none".into() } else { format!("Default: `{default}`") };
        assert!(section.ends_with(&default), "the section of {key} does not end in {default:?}");
    }
}
