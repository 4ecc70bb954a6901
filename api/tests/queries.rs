//! No query of the service looks at every database: what it costs does not grow with how many there are.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use dormouse_api::host::{EventKind, State};
use dormouse_api::identity::{DatabaseId, TenantId};
use dormouse_api::metadata::{DatabaseFilter, Metadata, NewDatabase, Page, StateJournal};
use sqlx::{Connection, Row, SqliteConnection};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// The text of every statement that sqlx carries out.
#[derive(Clone, Default)]
struct Statements(Arc<Mutex<BTreeSet<String>>>);

struct Text(Option<String>);

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        // The statement is given where its summary, the first words, is not the whole.
        if field.name() == "db.statement" && !value.is_empty() || field.name() == "summary" && self.0.is_none() {
            self.0 = Some(value.trim().to_owned());
        }
    }
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

impl<S: tracing::Subscriber> Layer<S> for Statements {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "sqlx::query" {
            let mut text = Text(None);
            event.record(&mut text);
            self.0.lock().unwrap().extend(text.0);
        }
    }
}

/// Everything that is ever asked of the metadata.
async fn all_of_it(m: &Metadata) {
    let tenant = TenantId::default_tenant();
    let id = DatabaseId::random().unwrap();
    let new = NewDatabase {
        id: id.clone(),
        tenant: tenant.clone(),
        name: "a".into(),
        state: State::Suspended,
        plan: "free".into(),
        plan_databases: 9,
        pg_version: 17,
        image: support::IMAGE.into(),
        cool_down_ms: None,
        role: "app".into(),
        verifier: "x".into(),
    };
    m.create_database(new).await.unwrap();
    m.ping().await.unwrap();
    assert!(m.database(&id).await.unwrap().is_some());
    assert_eq!(m.known(std::slice::from_ref(&id)).await.unwrap().len(), 1);
    m.set_image(&id, "older", Some("template")).await.unwrap();
    let newest = [(17, support::IMAGE.to_owned())];
    for tenant in [None, Some(&tenant)] {
        for name in [None, Some("a")] {
            for not_on in [None, Some(&newest[..])] {
                let filter = DatabaseFilter { tenant, name, not_on };
                let rows = m.list_databases(filter, Page { after: 0, limit: 10 }).await.unwrap();
                assert_eq!(rows.len(), 1, "{filter:?}");
            }
        }
    }
    assert_eq!(m.templates_in_use().await.unwrap(), ["template"]);
    assert_eq!(m.count_by_image().await.unwrap().len(), 1);
    m.set_state(&id, State::Running, None).await.unwrap();
    assert_eq!(m.databases_at_work().await.unwrap().len(), 1);
    m.set_cool_down(&id, Some(1000)).await.unwrap();
    m.set_has_files(&id).await.unwrap();
    m.note_sql_passwords(&id, true, true).await.unwrap();
    m.set_verifier(&id, "app", "y").await.unwrap();
    m.add_role(&id, "login", "z", false, i64::MAX).await.unwrap();
    assert!(m.role(&id, "app").await.unwrap().is_some());
    let row = m.create_tenant(&TenantId::random().unwrap(), "two", &[2; 32]).await.unwrap();
    assert!(m.tenant_by_key(&[2; 32]).await.unwrap().is_some());
    assert!(m.tenant_by_id(&row.id).await.unwrap().is_some());
    assert!(m.tenant_by_name("two").await.unwrap().is_some());
    m.list_tenants(Page { after: 0, limit: 10 }).await.unwrap();
    let (journal, task) = StateJournal::start(m.clone(), 2);
    journal.record(&id, State::Suspended, None);
    journal.event(&id, EventKind::Died, None);
    journal.close();
    task.await.unwrap();
    assert_eq!(m.list_events(&id, Page { after: 0, limit: 10 }).await.unwrap().len(), 2);
    let (asleep, since) = m.longest_asleep().await.unwrap().unwrap();
    assert_eq!(asleep, id);
    m.set_asleep(&id, None, since - 1).await.unwrap();
    assert!(m.longest_asleep().await.unwrap().is_some(), "it fell asleep later than that");
    m.set_asleep(&id, Some(since + 1), since).await.unwrap();
    assert_eq!(m.longest_asleep().await.unwrap(), Some((id.clone(), since + 1)));
    m.set_state(&id, State::Running, None).await.unwrap();
    assert_eq!(m.longest_asleep().await.unwrap(), None, "one that is awake is not packed");
    m.remove_database(&id).await.unwrap();
}

#[tokio::test]
async fn every_query_finds_what_it_wants_by_an_index() {
    let statements = Statements::default();
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(statements.clone())).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dormouse.db");
    let m = Metadata::open(&path).await.unwrap();
    statements.0.lock().unwrap().clear();
    all_of_it(&m).await;
    m.close().await;
    let statements = statements.0.lock().unwrap().clone();
    let mut db = SqliteConnection::connect(path.to_str().unwrap()).await.unwrap();
    let mut looked_at = 0;
    for sql in &statements {
        if !["SELECT", "INSERT", "UPDATE", "DELETE"].iter().any(|word| sql.starts_with(word)) {
            continue;
        }
        looked_at += 1;
        let rows = sqlx::query(&format!("EXPLAIN QUERY PLAN {sql}")).fetch_all(&mut db).await.unwrap();
        let plan: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
        for step in plan.iter().filter(|step| step.starts_with("SCAN")) {
            // It does not grow with databases; and those at work have an index of their own.
            let small = step.contains("image_use") || step.contains("databases_at_work") || step.contains("CONSTANT ROW");
            assert!(small, "{sql}\n{plan:#?}");
        }
        // A list that is filtered goes by the filter's index: by rowid alone it would look at all to find few.
        for (filter, column) in [("d.tenant_id = ?", "tenant_id=?"), ("d.name = ?", "name=?"), ("d.image = ?", "image=?")] {
            let by = |column: &str| plan.iter().any(|step| step.starts_with("SEARCH d ") && step.contains(column));
            let narrowed = by(column) || sql.contains("d.name = ?") && by("name=?") || sql.contains("d.tenant_id = ?") && by("tenant_id=?");
            assert!(!sql.contains(filter) || narrowed, "{sql}\n{plan:#?}");
        }
        // Nor are pages sorted, but those of a name, which few databases have.
        let sorted = plan.iter().any(|step| step.contains("TEMP B-TREE FOR ORDER BY"));
        assert!(!sorted || sql.contains("NOT IN ('suspended'") || sql.contains("d.name = ?") || sql.contains("image_use"), "{sql}\n{plan:#?}");
    }
    assert!(looked_at >= 30, "{looked_at} statements were seen: {statements:#?}");
}
