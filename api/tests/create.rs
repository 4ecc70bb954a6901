//! Creates whose clients do not wait for the answer.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use dormouse_api::host::{Create, EventKind};
use dormouse_api::identity::TenantId;
use dormouse_api::metadata::{DatabaseFilter, Page};
use sqlx::Connection;
use support::World;

/// A database was on disk, and took a place of its plan, of which the console was never told.
#[tokio::test]
async fn a_create_that_is_committed_is_announced_though_its_client_has_gone() {
    let dir = tempfile::tempdir().unwrap();
    let w = World::new(dir.path(), &[]).await;
    let tenant = TenantId::default_tenant();
    let file = dir.path().join("dormouse.db");
    // Long enough for the password, so that the create is with the writer when the client goes: how long, no event tells.
    for patience in [50, 100, 200, 400, 800, 1600, 3200] {
        let mut changes = w.host.changes();
        // Somebody else has the file meanwhile: none is answered.
        let mut other = sqlx::SqliteConnection::connect(file.to_str().unwrap()).await.unwrap();
        sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
        let create = Create { tenant: &tenant, name: "left", plan: "free", pg_version: None, cool_down_ms: None };
        let left = tokio::time::timeout(Duration::from_millis(patience), w.host.create(create)).await;
        assert!(left.is_err(), "it was answered");
        sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
        // Behind it in the queue.
        w.create(&format!("after-{patience}")).await;
        let filter = DatabaseFilter { name: Some("left"), ..DatabaseFilter::default() };
        let rows = w.metadata.list_databases(filter, Page { after: 0, limit: 1 }).await.unwrap();
        let Some(row) = rows.first() else { continue };
        let told = async {
            loop {
                let change = changes.recv().await.unwrap();
                if change.id == row.id {
                    return change;
                }
            }
        };
        let told = tokio::time::timeout(Duration::from_secs(10), told).await.expect("it was not announced");
        assert_eq!((told.name.as_str(), told.state), ("left", Some(row.state)));
        let events = w.host.events(&row.id, Page { after: 0, limit: 10 }).await.unwrap();
        assert_eq!(events.iter().map(|event| event.kind.as_str()).collect::<Vec<_>>(), [EventKind::Created.as_str()]);
        return;
    }
    panic!("no create had come to the writer");
}
