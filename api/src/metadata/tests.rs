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
        id,
        tenant: tenant.clone(),
        name: name.into(),
        state: State::Creating,
        plan: "free".into(),
        plan_databases: limit,
        pg_version: 17,
        image: "0123456789abcdef".into(),
        cool_down_ms: None,
        role: "app".into(),
        verifier: "SCRAM-SHA-256$4096:x$y:z".into(),
    };
    m.create_database(new).await
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
    assert!(m.add_role(&db.id, "past", "v", false, now_ms() - 1).await.unwrap());
    let gone = DatabaseId::random().unwrap();
    assert!(!m.add_role(&gone, "past", "v", false, now_ms() + 60_000).await.unwrap(), "of a database that is gone");
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
async fn the_journal_writes_what_comes_soon_after_the_first_with_it() {
    let (_dir, m) = fresh().await;
    let db = create(&m, &TenantId::default_tenant(), "a", 9).await.unwrap();
    let (journal, task) = StateJournal::start(m.clone(), 3);
    // The writer has its turn only here: it waits for the first, and then for more.
    tokio::task::yield_now().await;
    journal.record(&db.id, State::Resuming, None);
    tokio::task::yield_now().await;
    journal.record(&db.id, State::Running, None);
    assert_eq!(journal.pending(&db.id), Some((State::Running, None)));
    while journal.pending(&db.id).is_some() {
        assert_ne!(m.database(&db.id).await.unwrap().unwrap().state, State::Resuming, "it was written alone");
    }
    assert_eq!(m.database(&db.id).await.unwrap().unwrap().state, State::Running);
    // The end does not wait.
    journal.record(&db.id, State::Suspended, None);
    journal.close();
    task.await.unwrap();
    assert_eq!(m.database(&db.id).await.unwrap().unwrap().state, State::Suspended);
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
    journal.event(&b.id, EventKind::Restarted, None);
    // Of one that is gone, nothing, and nothing else fails for it.
    journal.event(&DatabaseId::random().unwrap(), EventKind::Hung, None);
    journal.events_written(&b.id).await;
    let page = Page { after: 0, limit: 10 };
    let kept: Vec<String> = m.list_events(&a.id, page).await.unwrap().into_iter().filter_map(|e| e.message).collect();
    assert_eq!(kept, ["4", "3", "2"]);
    // Its create was the first.
    assert_eq!(m.list_events(&b.id, page).await.unwrap().len(), 2);
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

/// Of creates that share a transaction, one that is refused is alone in that, and the plan's last place is given once.
#[tokio::test]
async fn of_many_creates_at_once_only_those_that_must_fail_do() {
    let (_dir, m) = fresh().await;
    let one = TenantId::default_tenant();
    let two = m.create_tenant(&TenantId::random().unwrap(), "two", &[2; 32]).await.unwrap().id;
    create(&m, &one, "taken", 50).await.unwrap();
    let names: Vec<String> = (0..60).map(|n| if n % 3 == 0 { "taken".into() } else { format!("n{n}") }).collect();
    // Forty names that are free, for thirty-nine places.
    let ones = futures_util::future::join_all(names.iter().map(|name| create(&m, &one, name, 40)));
    let twos = futures_util::future::join_all(names.iter().map(|name| create(&m, &two, name, 100)));
    let (ones, twos) = tokio::join!(ones, twos);
    let count = |made: &[Result<DatabaseRow, CreateError>], is: fn(&Result<DatabaseRow, CreateError>) -> bool| made.iter().filter(|r| is(r)).count();
    let taken = |made| count(made, |r| matches!(r, Err(CreateError::NameTaken)));
    let full = |made| count(made, |r| matches!(r, Err(CreateError::PlanFull)));
    let done = |made| count(made, Result::is_ok);
    assert_eq!((done(&ones), taken(&ones), full(&ones)), (39, 20, 1));
    assert_eq!((done(&twos), taken(&twos), full(&twos)), (41, 19, 0));
    let page = Page { after: 0, limit: 1000 };
    for (tenant, made) in [(&one, 40), (&two, 41)] {
        let filter = DatabaseFilter { tenant: Some(tenant), ..DatabaseFilter::default() };
        let rows = m.list_databases(filter, page).await.unwrap();
        assert_eq!(rows.len(), made);
        // Nothing is left of those that were refused, and the roles of the others are there.
        let sql = "SELECT count(*) FROM roles r JOIN databases d ON d.id = r.database_id WHERE d.tenant_id = ?";
        let roles = sqlx::query(sql).bind(tenant.as_str()).fetch_one(&m.readers).await.unwrap();
        let roles: i64 = sqlx::Row::get(&roles, 0);
        assert_eq!(roles, made as i64);
    }
}

/// Pages in the order of their making, each database once, whoever else is made and deleted meanwhile.
#[tokio::test]
async fn pages_follow_each_other_while_databases_come_and_go() {
    let (_dir, m) = fresh().await;
    let tenant = TenantId::default_tenant();
    let mut made = Vec::new();
    for n in 0..25 {
        made.push(create(&m, &tenant, &format!("n{n}"), 99).await.unwrap());
    }
    let older = |n: usize| if n.is_multiple_of(2) { "even" } else { "odd" };
    for (n, row) in made.iter().enumerate() {
        m.set_image(&row.id, older(n), None).await.unwrap();
    }
    let newest = [(17, "new".to_string())];
    for not_on in [None, Some(&newest[..])] {
        for tenant in [None, Some(&tenant)] {
            let filter = DatabaseFilter { tenant, not_on, ..DatabaseFilter::default() };
            let (mut after, mut seen) = (0, Vec::new());
            loop {
                let rows = m.list_databases(filter, Page { after, limit: 4 }).await.unwrap();
                let Some(last) = rows.last() else { break };
                after = last.seq;
                seen.extend(rows.into_iter().map(|row| row.id));
            }
            assert_eq!(seen, made.iter().map(|row| row.id.clone()).collect::<Vec<_>>());
        }
    }
    let filter = DatabaseFilter::default();
    let first = m.list_databases(filter, Page { after: 0, limit: 10 }).await.unwrap();
    m.remove_database(&made[3].id).await.unwrap();
    m.remove_database(&made[12].id).await.unwrap();
    let new = create(&m, &tenant, "late", 99).await.unwrap();
    let rest = m.list_databases(filter, Page { after: first[9].seq, limit: 100 }).await.unwrap();
    let expected = made[10..].iter().filter(|row| row.id != made[12].id).map(|row| &row.id).chain([&new.id]);
    assert_eq!(rest.iter().map(|row| &row.id).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
}

/// The sums are what a count of the rows says, whatever was done to them.
#[tokio::test]
async fn the_sums_agree_with_the_rows() {
    use sqlx::Row;
    let (dir, m) = fresh().await;
    let tenant = TenantId::default_tenant();
    let mut rows = Vec::new();
    for n in 0..6 {
        rows.push(create(&m, &tenant, &format!("n{n}"), 99).await.unwrap().id);
    }
    m.set_state(&rows[0], State::Running, None).await.unwrap();
    m.set_state(&rows[0], State::Running, Some("again")).await.unwrap();
    m.set_image(&rows[1], "new", Some("t")).await.unwrap();
    m.set_image(&rows[2], "new", None).await.unwrap();
    m.set_state(&rows[2], State::Error, None).await.unwrap();
    m.remove_database(&rows[1]).await.unwrap();
    m.remove_database(&rows[3]).await.unwrap();
    // No call does this yet; an operator may.
    let mut by_hand = <sqlx::SqliteConnection as sqlx::Connection>::connect(dir.path().join("dormouse.db").to_str().unwrap()).await.unwrap();
    sqlx::query("UPDATE databases SET plan = 'team' WHERE id = ?").bind(rows[4].as_str()).execute(&mut by_hand).await.unwrap();
    let read = async |sql: &str| {
        let rows = sqlx::query(sql).fetch_all(&m.readers).await.unwrap();
        rows.iter().map(|row| (0..4).map(|n| row.get::<String, _>(n)).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    let kept = read("SELECT image, template, state, CAST(databases AS TEXT) FROM image_use WHERE databases <> 0 ORDER BY 1, 2, 3").await;
    let counted = read("SELECT image, coalesce(template, ''), state, CAST(count(*) AS TEXT) FROM databases GROUP BY 1, 2, 3 ORDER BY 1, 2, 3").await;
    assert_eq!(kept, counted);
    let kept = read("SELECT tenant_id, plan, '', CAST(databases AS TEXT) FROM plan_use WHERE databases <> 0 ORDER BY 1, 2").await;
    assert_eq!(kept, read("SELECT tenant_id, plan, '', CAST(count(*) AS TEXT) FROM databases GROUP BY 1, 2 ORDER BY 1, 2").await);
    assert_eq!(m.templates_in_use().await.unwrap(), [] as [&str; 0]);
}

/// A server before this one made folders at a create: its databases have theirs, and the sums count them.
#[tokio::test]
async fn databases_of_an_older_server_have_files_and_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dormouse.db");
    let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
    let before = MIGRATIONS[..4].iter().map(|(number, name, sql)| {
        Migration::new(*number, (*name).into(), MigrationType::Simple, (*sql).into(), false)
    });
    Migrator { migrations: before.collect(), ..Migrator::DEFAULT }.run(&pool).await.unwrap();
    let id = DatabaseId::random().unwrap();
    let sql = "INSERT INTO databases (id, tenant_id, name, state, plan, image, created_at) VALUES (?, 'tn_default', 'a', 'suspended', 'free', 'i', 0)";
    sqlx::query(sql).bind(id.as_str()).execute(&pool).await.unwrap();
    pool.close().await;
    let m = Metadata::open(&path).await.unwrap();
    assert!(m.database(&id).await.unwrap().unwrap().has_files);
    assert_eq!(m.count_by_image().await.unwrap()[0].asleep, 1);
    assert!(matches!(create(&m, &TenantId::default_tenant(), "b", 1).await, Err(CreateError::PlanFull)));
}

/// Nobody's commit has to do it, and a WAL that has been brought home does not grow for ever.
#[tokio::test]
async fn the_wal_is_brought_home_beside_the_writer() {
    let (dir, m) = fresh().await;
    let tenant = TenantId::default_tenant();
    let length = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().len();
    let before = length("dormouse.db");
    // Fewer pages than the writer would wait for.
    for n in 0..100 {
        create(&m, &tenant, &format!("n{n}"), 9999).await.unwrap();
    }
    let pages: u64 = checkpoint::PAGES.parse().unwrap();
    assert!(length("dormouse.db-wal") < pages * 4096);
    let begun = std::time::Instant::now();
    while length("dormouse.db") == before {
        assert!(begun.elapsed().as_secs() < 30, "no checkpoint");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    for n in 100..1500 {
        create(&m, &tenant, &format!("n{n}"), 9999).await.unwrap();
    }
    assert!(length("dormouse.db-wal") <= checkpoint::KEPT.parse().unwrap());
}

/// Of creates that share a transaction which fails, with a statement or only at its commit, each is alone in its own failure.
#[tokio::test]
async fn where_a_shared_commit_fails_only_the_write_that_spoils_it_is_not_done() {
    let (dir, m) = fresh().await;
    let tenant = TenantId::default_tenant();
    let sql = "CREATE TABLE nobody (id INTEGER PRIMARY KEY); \
               CREATE TABLE spoilt (id INTEGER REFERENCES nobody DEFERRABLE INITIALLY DEFERRED); \
               CREATE TRIGGER commits AFTER INSERT ON databases WHEN NEW.name = 'commit' BEGIN INSERT INTO spoilt VALUES (1); END; \
               CREATE TRIGGER statements AFTER INSERT ON databases WHEN NEW.name = 'statement' BEGIN SELECT RAISE(ABORT, 'spoilt'); END";
    sqlx::raw_sql(sql).execute(&m.writer).await.unwrap();
    let mut expected = Vec::new();
    for (round, spoils) in ["commit", "statement", "disk"].into_iter().enumerate() {
        let names: Vec<String> = (0..9).map(|n| if n == 4 { spoils.into() } else { format!("{round}-{n}") }).collect();
        if spoils == "disk" {
            // Room for none of them, on this connection: the next one finds the disk as it is.
            let sql = "PRAGMA max_page_count = 1";
            sqlx::query(sql).execute(&m.writer).await.unwrap();
        }
        let long = |name: &str| if spoils == "disk" { format!("{name}-{}", "x".repeat(3000)) } else { name.to_owned() };
        let names: Vec<String> = names.iter().map(|name| long(name)).collect();
        let made = futures_util::future::join_all(names.iter().map(|name| create(&m, &tenant, name, 99))).await;
        for (name, made) in names.into_iter().zip(made) {
            let is_spoilt = name == "commit" || name == "statement";
            let as_expected = match &made {
                Ok(_) => !is_spoilt,
                Err(CreateError::Metadata(MetadataError::Sql(_))) => is_spoilt,
                Err(_) => false,
            };
            assert!(as_expected, "{name}: {made:?}");
            expected.extend((!is_spoilt).then_some(name));
        }
    }
    m.close().await;
    let m = Metadata::open(&dir.path().join("dormouse.db")).await.unwrap();
    let rows = m.list_databases(DatabaseFilter::default(), Page { after: 0, limit: 1000 }).await.unwrap();
    assert_eq!(rows.into_iter().map(|row| row.name).collect::<Vec<_>>(), expected);
}
