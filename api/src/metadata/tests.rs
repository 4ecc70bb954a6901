use super::*;
use crate::host::{EventKind, State};
use crate::identity::{DatabaseId, TenantId};

async fn fresh() -> (tempfile::TempDir, Metadata) {
    let dir = tempfile::tempdir().unwrap();
    let metadata = Metadata::open(&dir.path().join("dormouse.db")).await.unwrap();
    (dir, metadata)
}

async fn create(m: &Metadata, tenant: &TenantId, name: &str, limit: u64) -> Result<DatabaseRow, CreateError> {
    let id = DatabaseId::random().unwrap();
    let new = NewDatabase {
        id: &id,
        tenant,
        name,
        plan: "free",
        plan_databases: limit,
        pg_version: 17,
        image: "0123456789abcdef",
        cool_down_ms: None,
        role: "app",
        verifier: "SCRAM-SHA-256$4096:x$y:z",
    };
    m.create_database(&new).await
}

#[test]
fn every_migration_file_is_run() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations");
    let files = std::fs::read_dir(folder)
        .unwrap()
        .filter(|e| e.as_ref().unwrap().path().extension().is_some_and(|e| e == "sql"))
        .count();
    assert_eq!(files, MIGRATIONS.len());
}

#[tokio::test]
async fn names_are_unique_per_tenant_and_plans_are_counted() {
    let (_dir, m) = fresh().await;
    let one = TenantId::default_tenant();
    let two = m.create_tenant(&TenantId::random().unwrap(), "two", &[2; 32]).await.unwrap().id;
    create(&m, &one, "a", 2).await.unwrap();
    assert!(matches!(create(&m, &one, "a", 2).await, Err(CreateError::NameTaken)));
    create(&m, &two, "a", 2).await.unwrap();
    let b = create(&m, &one, "b", 2).await.unwrap();
    assert!(matches!(create(&m, &one, "c", 2).await, Err(CreateError::PlanFull)));
    m.remove_database(&b.id).await.unwrap();
    assert_eq!(m.role(&b.id, "app").await.unwrap(), None);
    create(&m, &one, "c", 2).await.unwrap();
}

#[tokio::test]
async fn a_role_opens_nothing_while_the_database_is_made_or_after_its_time() {
    let (_dir, m) = fresh().await;
    let db = create(&m, &TenantId::default_tenant(), "a", 9).await.unwrap();
    assert_eq!(m.role(&db.id, "app").await.unwrap(), None);
    m.set_state(&db.id, State::Suspended, None).await.unwrap();
    assert!(m.role(&db.id, "app").await.unwrap().is_some());
    assert_eq!(m.role(&db.id, "postgres").await.unwrap(), None);
    m.add_role(&db.id, "past", "v", false, now_ms() - 1).await.unwrap();
    m.add_role(&db.id, "soon", "v", false, now_ms() + 60_000).await.unwrap();
    assert_eq!(m.role(&db.id, "past").await.unwrap(), None);
    assert!(m.role(&db.id, "soon").await.unwrap().is_some());
    m.set_state(&db.id, State::Deleting, None).await.unwrap();
    assert_eq!(m.role(&db.id, "app").await.unwrap().unwrap().state, State::Deleting);
}

#[tokio::test]
async fn roles_of_sql_are_possible_once_a_password_was_set_in_sql() {
    let (_dir, m) = fresh().await;
    let db = create(&m, &TenantId::default_tenant(), "a", 9).await.unwrap();
    m.set_state(&db.id, State::Suspended, None).await.unwrap();
    let look = async |role: &str| m.role(&db.id, role).await.unwrap().map(|row| (row.verifier.is_some(), row.sql_owner));
    assert_eq!((look("app").await, look("other").await), (Some((true, false)), None));
    m.note_sql_passwords(&db.id, true, false).await.unwrap();
    assert_eq!((look("app").await, look("other").await), (Some((true, true)), None));
    for _ in 0..2 {
        m.note_sql_passwords(&db.id, false, true).await.unwrap();
        assert_eq!((look("app").await, look("other").await), (Some((true, true)), Some((false, true))));
    }
    m.add_role(&db.id, "past", "v", true, now_ms() - 1).await.unwrap();
    let past = m.role(&db.id, "past").await.unwrap().unwrap();
    assert_eq!((past.verifier, past.superuser), (None, false));
}

#[tokio::test]
async fn the_journal_writes_the_newest_state_and_leaves_deleting_alone() {
    let (_dir, m) = fresh().await;
    let db = create(&m, &TenantId::default_tenant(), "a", 9).await.unwrap();
    let gone = create(&m, &TenantId::default_tenant(), "b", 9).await.unwrap();
    m.set_state(&gone.id, State::Deleting, None).await.unwrap();
    let (journal, task) = StateJournal::start(m.clone(), 3);
    for state in [State::Resuming, State::Running, State::Suspending, State::Suspended] {
        journal.record(&db.id, state, None);
        journal.record(&gone.id, state, None);
    }
    assert_eq!(journal.pending(&db.id), Some((State::Suspended, None)));
    journal.close();
    task.await.unwrap();
    assert_eq!(journal.pending(&db.id), None);
    assert_eq!(m.database(&db.id).await.unwrap().unwrap().state, State::Suspended);
    assert_eq!(m.database(&gone.id).await.unwrap().unwrap().state, State::Deleting);
    let at_work = m.databases_at_work().await.unwrap();
    assert_eq!(at_work.iter().map(|d| &d.id).collect::<Vec<_>>(), [&gone.id]);
}

#[tokio::test]
async fn metadata_of_a_newer_server_is_refused() {
    let (dir, m) = fresh().await;
    sqlx::query("INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'x', 1, x'00', 0)")
        .execute(&m.writer)
        .await
        .unwrap();
    m.close().await;
    let error = Metadata::open(&dir.path().join("dormouse.db")).await.unwrap_err();
    assert!(matches!(error, MetadataError::Newer), "{error}");
}

/// A user saw databases that were answered for and gone after a restart, once the disk had been full.
#[tokio::test]
async fn what_is_written_after_the_disk_was_full_is_kept() {
    let (dir, m) = fresh().await;
    let tenant = TenantId::default_tenant();
    let before = create(&m, &tenant, "before", 99).await.unwrap();
    // Full at any of the pages a create needs.
    let mut full = 0;
    for spare in 0..40 {
        let pages: i64 = {
            use sqlx::Row;
            let mut connection = m.writer.acquire().await.unwrap();
            let row = sqlx::query("PRAGMA page_count").fetch_one(&mut *connection).await.unwrap();
            let pages = row.get::<i64, _>(0) + spare / 20;
            sqlx::query(&format!("PRAGMA max_page_count = {pages}")).execute(&mut *connection).await.unwrap();
            pages
        };
        let name = format!("{spare}-{}", "x".repeat(58));
        match create(&m, &tenant, &name, 99).await {
            Ok(row) => m.set_state(&row.id, State::Suspended, None).await.unwrap(),
            Err(CreateError::Metadata(MetadataError::Full)) => full += 1,
            Err(other) => panic!("{pages} pages: {other}"),
        }
    }
    assert!(full > 0);
    let after = create(&m, &tenant, "after", 99).await.unwrap();
    m.set_state(&after.id, State::Suspended, None).await.unwrap();
    m.close().await;
    let m = Metadata::open(&dir.path().join("dormouse.db")).await.unwrap();
    assert!(m.database(&before.id).await.unwrap().is_some());
    assert_eq!(m.database(&after.id).await.unwrap().unwrap().state, State::Suspended);
}

/// A client that goes away in the middle of a create leaves nothing open.
#[tokio::test]
async fn a_write_that_is_dropped_is_undone_and_blocks_nobody() {
    let (_dir, m) = fresh().await;
    let tenant = TenantId::default_tenant();
    for polls in 1..60 {
        let name = format!("n{polls}");
        let mut dropped = Box::pin(create(&m, &tenant, &name, 999));
        for _ in 0..polls {
            if std::future::poll_fn(|cx| std::task::Poll::Ready(dropped.as_mut().poll(cx).is_ready())).await {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(dropped);
        create(&m, &tenant, &format!("after-{polls}"), 999).await.unwrap();
    }
    let rows = m.list_databases(DatabaseFilter::default(), Page { after: 0, limit: 1000 }).await.unwrap();
    assert!(rows.iter().filter(|r| r.name.starts_with("after")).count() == 59);
}

#[tokio::test]
async fn the_newest_events_of_each_database_are_kept_and_go_with_it() {
    let (_dir, m) = fresh().await;
    let tenant = TenantId::default_tenant();
    let (a, b) = (create(&m, &tenant, "a", 9).await.unwrap(), create(&m, &tenant, "b", 9).await.unwrap());
    let (journal, task) = StateJournal::start(m.clone(), 3);
    for n in 0..5 {
        journal.event(&a.id, EventKind::Died, Some(n.to_string()));
        journal.events_written(&a.id).await;
    }
    journal.event(&b.id, EventKind::Created, None);
    // Of one that is gone, nothing, and nothing else fails for it.
    journal.event(&DatabaseId::random().unwrap(), EventKind::Hung, None);
    journal.events_written(&b.id).await;
    let page = Page { after: 0, limit: 10 };
    let kept: Vec<String> = m.list_events(&a.id, page).await.unwrap().into_iter().filter_map(|e| e.message).collect();
    assert_eq!(kept, ["4", "3", "2"]);
    assert_eq!(m.list_events(&b.id, page).await.unwrap().len(), 1);
    m.remove_database(&a.id).await.unwrap();
    assert_eq!(m.list_events(&a.id, page).await.unwrap(), []);
    journal.close();
    task.await.unwrap();
}

#[tokio::test]
async fn a_moved_database_keeps_its_template_and_is_counted_on_its_new_image() {
    let (_dir, m) = fresh().await;
    let tenant = TenantId::default_tenant();
    let (a, b) = (create(&m, &tenant, "a", 9).await.unwrap(), create(&m, &tenant, "b", 9).await.unwrap());
    m.set_state(&a.id, State::Suspended, None).await.unwrap();
    m.set_state(&b.id, State::Running, None).await.unwrap();
    let newest = [(17, "new".to_string()), (18, "0123456789abcdef".to_string())];
    let outdated = async || {
        let filter = DatabaseFilter { not_on: Some(&newest), ..DatabaseFilter::default() };
        let rows = m.list_databases(filter, Page { after: 0, limit: 10 }).await.unwrap();
        rows.into_iter().map(|row| row.name).collect::<Vec<_>>()
    };
    m.set_image(&b.id, "new", Some("old-template")).await.unwrap();
    m.set_image(&b.id, "new", Some("old-template")).await.unwrap();
    assert_eq!(m.templates_in_use().await.unwrap(), ["old-template"]);
    let on = |image: &str, asleep, awake| ImageUse { image: image.into(), pg_version: 17, asleep, stopped: 0, awake };
    assert_eq!(m.count_by_image().await.unwrap(), [on("0123456789abcdef", 1, 0), on("new", 0, 1)]);
    // The other version's newest image is none of this one's.
    assert_eq!(outdated().await, [] as [&str; 0]);
    m.set_image(&a.id, "older", None).await.unwrap();
    assert_eq!(outdated().await, ["a"]);
}
