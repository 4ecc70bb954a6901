//! What the owner of a database can do and what not (`docs/owner-role.md`), and that no setting of hers keeps the
//! database from starting.

#![allow(clippy::unwrap_used)]

mod harness;

use std::fs;

use dormouse_loadtest::client::Client;
use dormouse_loadtest::rest;

/// Runs a statement; `Err` has its SQLSTATE.
fn run(client: &mut Client, sql: &str) -> Result<(), String> {
    let outcome = client.query(sql);
    outcome.map(drop).map_err(|error| {
        let code = error.code().unwrap_or("no SQLSTATE").to_owned();
        println!("{code}: {sql}: {error}");
        code
    })
}

/// Each must be refused with the SQLSTATE beside it; all that are not are told.
fn refuses(client: &mut Client, list: &[(&str, &str)]) {
    let wrong: Vec<_> = list
        .iter()
        .filter(|(code, sql)| run(client, sql) != Err((*code).to_owned()))
        .collect();
    assert!(
        wrong.is_empty(),
        "not refused as they should be: {wrong:#?}"
    );
}

fn allows(client: &mut Client, list: &[&str]) {
    let wrong: Vec<_> = list
        .iter()
        .filter(|sql| run(client, sql).is_err())
        .collect();
    assert!(wrong.is_empty(), "refused: {wrong:#?}");
}

const ALLOWED: &[&str] = &[
    "create role maker login createdb createrole",
    "create role reader nologin in role pg_read_all_data",
    "create role copier login replication",
    "create role seer login bypassrls",
    "grant pg_monitor, pg_signal_backend, pg_checkpoint, pg_maintain to maker",
    "alter role maker set work_mem = '2MB'",
    "create database other",
    "create database bare template template0",
    "alter database other set statement_timeout = '1min'",
    "drop database bare",
    "grant maker to current_user",
    "create schema inside authorization maker",
    "create table mine (id int primary key, words text)",
    "create function counted() returns bigint language plpgsql as 'begin return (select count(*) from mine); end'",
    "create publication everything for all tables",
    "create publication part for tables in schema public",
    "alter publication part add tables in schema inside",
    "alter publication part owner to current_user",
    "drop publication everything, part",
    "select pg_create_logical_replication_slot('slot', 'pgoutput')",
    "select pg_drop_replication_slot('slot')",
    "checkpoint",
    "select pg_switch_wal()",
    "select count(*) from pg_stat_activity where backend_type = 'checkpointer' and wait_event is not null",
    "select * from pg_file_settings",
    "select pg_stat_reset(), pg_stat_reset_shared('io')",
    "select pg_ls_waldir()",
    "vacuum pg_catalog.pg_authid",
    "set session_replication_role = replica",
    "reset session_replication_role",
    "set log_min_duration_statement = '1s'",
    "alter system set work_mem = '8MB'",
    "alter system set autovacuum_naptime = '30s'",
    "alter system reset work_mem",
    "alter system reset autovacuum_naptime",
    "select pg_reload_conf()",
    "grant alter system on parameter work_mem to maker",
    "grant set on parameter log_statement to maker",
    "grant execute on function pg_reload_conf() to maker",
    "alter database app set session_preload_libraries = 'plpgsql'",
    "alter database app reset session_preload_libraries",
    "begin",
    "insert into mine values (1, 'one')",
    "prepare transaction 'later'",
    "commit prepared 'later'",
];

/// What would make a superuser of anyone, reach the server's files, or break the service. The owner's and everyone's.
const REFUSED: &[(&str, &str)] = &[
    ("42501", "alter role current_user superuser"),
    ("42501", "create role evil superuser"),
    ("42501", "alter role maker superuser"),
    ("42501", "set role postgres"),
    ("42501", "set session authorization postgres"),
    ("42501", "grant postgres to current_user"),
    ("42501", "alter role postgres nologin"),
    ("42501", "alter role postgres rename to other_name"),
    ("42501", "alter role postgres set work_mem = '1MB'"),
    ("42501", "alter role all set work_mem = '1MB'"),
    ("42501", "drop role postgres"),
    ("42501", "grant pg_read_server_files to current_user"),
    ("42501", "grant pg_write_server_files to maker"),
    ("42501", "grant pg_execute_server_program to maker"),
    ("42501", "grant pg_create_subscription to current_user"),
    ("42501", "grant pg_use_reserved_connections to maker"),
    ("42501", "update pg_authid set rolsuper = true"),
    (
        "42501",
        "update pg_proc set prosecdef = true where proname = 'pg_read_file'",
    ),
    ("42501", "delete from pg_parameter_acl"),
    ("42501", "create table pg_catalog.mine (n int)"),
    (
        "42501",
        "create or replace function pg_catalog.now() returns timestamptz language sql as 'select null::timestamptz'",
    ),
    (
        "42501",
        "alter function pg_catalog.pg_read_file(text) security definer",
    ),
    (
        "42501",
        "grant execute on function pg_catalog.pg_read_file(text) to public",
    ),
    ("42501", "copy mine from '/pgdata/PG_VERSION'"),
    ("42501", "copy mine to '/pgdata/mine'"),
    ("42501", "copy mine from program 'id'"),
    ("42501", "select pg_read_file('postgresql.conf')"),
    ("42501", "select pg_read_binary_file('/etc/passwd')"),
    ("42501", "select pg_ls_dir('.')"),
    ("42501", "select pg_stat_file('PG_VERSION')"),
    ("42501", "select lo_import('/etc/passwd')"),
    ("42501", "select lo_export(1, '/pgdata/out')"),
    ("42501", "create tablespace elsewhere location '/tmp'"),
    (
        "42501",
        "create function c() returns void language c as 'dormouse', '_PG_init'",
    ),
    (
        "42501",
        "create function i() returns void language internal as 'pg_promote'",
    ),
    (
        "42501",
        "create type base (input = int4in, output = int4out)",
    ),
    (
        "42501",
        "create access method heap2 type table handler heap_tableam_handler",
    ),
    ("42501", "create foreign data wrapper wrapper"),
    (
        "42501",
        "create event trigger watch on ddl_command_start execute function counted()",
    ),
    (
        "42501",
        "create subscription s connection 'host=/run user=postgres dbname=app' publication p",
    ),
    ("42501", "load '$libdir/dormouse'"),
    ("42501", "load '/pgdata/mine'"),
    (
        "42501",
        "alter extension plpgsql drop function plpgsql_call_handler()",
    ),
    ("42501", "drop extension plpgsql"),
    ("42501", "drop database postgres"),
    ("42501", "drop database template1"),
    ("42501", "alter database postgres set work_mem = '1MB'"),
    ("42501", "alter database template1 allow_connections false"),
    (
        "42501",
        "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'logical replication launcher'",
    ),
    ("42501", "select pg_promote()"),
    ("42501", "select pg_rotate_logfile()"),
    ("42501", "select pg_backup_start('b')"),
    ("42501", "set zero_damaged_pages = on"),
    ("42501", "set allow_system_table_mods = on"),
    ("42501", "set max_stack_depth = '100MB'"),
    ("42501", "set dynamic_library_path = '/pgdata'"),
    ("42501", "alter system set fsync = off"),
    ("42501", "alter system set full_page_writes = off"),
    ("42501", "alter system set shared_buffers = '10GB'"),
    ("42501", "alter system set max_connections = 1000"),
    ("42501", "alter system set max_wal_size = '100GB'"),
    ("42501", "alter system set wal_level = minimal"),
    ("42501", "alter system set shared_preload_libraries = 'x'"),
    ("42501", "alter system set archive_command = 'x'"),
    ("42501", "alter system set unix_socket_directories = '/tmp'"),
    ("42501", "alter system set log_destination = 'csvlog'"),
    ("42501", "alter system set hba_file = '/tmp/hba'"),
    ("42501", "alter system set max_stack_depth = '100MB'"),
    ("42501", "alter system set restore_command = 'x'"),
    (
        "22023",
        "alter role current_user set local_preload_libraries = 'missing'",
    ),
    (
        "0A000",
        "create role with_password password 'md5aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'",
    ),
];

/// What the owner may, but not just any role.
const OWNER_ONLY: &[(&str, &str)] = &[
    ("42501", "create publication everything for all tables"),
    (
        "42501",
        "create publication part for tables in schema inside",
    ),
    ("42501", "create role copier2 replication"),
    ("42501", "alter system set autovacuum = off"),
    ("42501", "set session_replication_role = replica"),
    ("42501", "grant pg_read_all_data to current_user"),
    ("42501", "drop database app"),
    ("42501", "select pg_stat_reset()"),
];

#[test]
fn the_owner_can_what_is_hers_and_no_more() {
    let Some((server, created)) = harness::database() else {
        return;
    };
    let mut owner = created.connect().unwrap();
    allows(&mut owner, ALLOWED);
    // A wrong name here would end every session to come.
    refuses(
        &mut owner,
        &[
            (
                "22023",
                "alter database app set session_preload_libraries = 'missing'",
            ),
            (
                "22023",
                "alter system set session_preload_libraries = 'auto_explain, missing'",
            ),
            (
                "22023",
                "set session_preload_libraries = '../../pgdata/mine'",
            ),
        ],
    );
    refuses(&mut owner, REFUSED);

    // A publication with a table that is another role's keeps PostgreSQL's rule.
    allows(
        &mut owner,
        &[
            "create table inside.theirs (n int)",
            "alter table inside.theirs owner to maker",
        ],
    );
    allows(
        &mut owner,
        &[
            "set role maker",
            "create database made",
            "create role made nologin",
        ],
    );
    refuses(&mut owner, REFUSED);
    refuses(&mut owner, OWNER_ONLY);
    allows(
        &mut owner,
        &[
            "alter system set work_mem = '8MB'",
            "set log_statement = 'all'",
            "select pg_reload_conf()",
            "reset role",
        ],
    );

    // Sessions of the tenant's own, whoever's they are.
    let mut victim = created.connect().unwrap();
    let pid = victim.value("select pg_backend_pid()").unwrap();
    assert_eq!(
        owner
            .value(&format!("select pg_terminate_backend({pid}, 10000)"))
            .unwrap(),
        "t"
    );
    assert_eq!(victim.query("select 1").unwrap_err().code(), Some("57P01"));
    // A process of the server's own is none that can be ended.
    let checkpointer = "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'checkpointer'";
    assert_eq!(owner.value(checkpointer).unwrap(), "f");
    let superusers = "select string_agg(rolname, ',') from pg_roles where rolsuper";
    assert_eq!(owner.value(superusers).unwrap(), "postgres");
    drop(server);
}

#[test]
fn trusted_extensions_are_the_owner_s_to_create_and_their_scripts_cannot_be_tricked() {
    let Some((_server, created)) = harness::database() else {
        return;
    };
    let mut owner = created.connect().unwrap();
    let mut list = |sql: &str| -> Vec<String> {
        owner
            .query(sql)
            .unwrap()
            .into_iter()
            .flatten()
            .flatten()
            .collect()
    };
    let default = "from pg_available_extensions e join pg_available_extension_versions v
                   on v.name = e.name and v.version = e.default_version";
    let trusted = list(&format!(
        "select e.name {default} where trusted and not installed"
    ));
    let untrusted = list(&format!("select e.name {default} where not trusted"));
    println!("trusted: {trusted:?}\nuntrusted: {untrusted:?}");
    assert!(!trusted.is_empty());
    for name in &untrusted {
        assert_eq!(
            run(&mut owner, &format!("create extension \"{name}\" cascade")),
            Err("42501".to_owned())
        );
    }
    // Each in a schema with traps: what a script calls without naming the schema, as whoever runs the script.
    allows(
        &mut owner,
        &[
            "create schema trap",
            "create table trap.sprung (by text)",
            "create function trap.spring() returns bool language plpgsql as
             $$begin insert into trap.sprung values (current_user); return true; end$$",
            "create function trap.format(text, regprocedure) returns text language sql as
             $$select trap.spring()::text$$",
            "create function trap.format(text, text) returns text language sql as $$select trap.spring()::text$$",
            "create function trap.eq(oid, oid) returns bool language sql as $$select trap.spring()$$",
            "create operator trap.= (leftarg = oid, rightarg = oid, function = trap.eq)",
            "create function trap.eq(name, text) returns bool language sql as $$select trap.spring()$$",
            "create operator trap.= (leftarg = name, rightarg = text, function = trap.eq)",
            "create function trap.current_setting(text) returns text language sql as $$select trap.spring()::text$$",
        ],
    );
    for name in &trusted {
        // Some say themselves where they go.
        let created = run(
            &mut owner,
            &format!("create extension \"{name}\" schema trap cascade"),
        )
        .or_else(|_| {
            run(
                &mut owner,
                &format!("create extension if not exists \"{name}\" cascade"),
            )
        });
        assert_eq!(created, Ok(()), "{name}");
    }
    assert_eq!(
        owner.value("select count(*) from trap.sprung").unwrap(),
        "0"
    );
    let foreign = "select count(*) from pg_extension where extname <> 'plpgsql' and extowner <> 'app'::regrole";
    assert_eq!(owner.value(foreign).unwrap(), "0");
    let has = |name: &str| trusted.iter().any(|other| other == name);
    if has("pageinspect") {
        assert_eq!(owner.value("select count(*) > 0 from trap.heap_page_items(trap.get_raw_page('pg_class', 0))").unwrap(), "t");
    }
    if has("amcheck") {
        owner
            .query("select trap.bt_index_check('pg_class_oid_index')")
            .unwrap();
    }
    if has("pg_buffercache") {
        assert_eq!(
            owner
                .value("select count(*) > 0 from trap.pg_buffercache")
                .unwrap(),
            "t"
        );
    }
    allows(
        &mut owner,
        &[
            "create role other",
            "grant other to current_user",
            "create role maker",
            "create table mine (n int)",
            "create function counted() returns bigint language sql as 'select 1::bigint'",
            "grant usage on schema trap to other",
            "set role other",
        ],
    );
    if has("pageinspect") {
        refuses(
            &mut owner,
            &[("42501", "select trap.get_raw_page('pg_class', 0)")],
        );
    }
    allows(&mut owner, &["reset role"]);
    refuses(&mut owner, REFUSED);
}

#[test]
fn a_setting_that_prevents_a_start_is_undone_and_said_so() {
    let Some((server, created)) = harness::database() else {
        return;
    };
    let id = created.database.id.as_str();
    let mut owner = created.connect().unwrap();
    allows(
        &mut owner,
        &[
            "create table kept as select 42 as answer",
            "alter system set work_mem = '7MB'",
            "alter system set max_locks_per_transaction = 100000000",
        ],
    );
    owner.close().unwrap();
    server.rest.suspend(id).unwrap();
    rest::remove_snapshot(&server.home, id).unwrap();
    let mut owner = created.connect().unwrap();
    assert_eq!(owner.value("select answer from kept").unwrap(), "42");
    assert_eq!(owner.value("show max_locks_per_transaction").unwrap(), "64");
    assert_eq!(owner.value("show work_mem").unwrap(), "4MB");
    let log = server.logs();
    assert!(
        log.contains("settings of ALTER SYSTEM: they are undone"),
        "{log}"
    );
    harness::until("the event is told", || {
        let events = server
            .rest
            .call("GET", &format!("/v1/databases/{id}/events"), "")
            .unwrap();
        String::from_utf8_lossy(&events.body).contains("settings_undone")
    });
    let console =
        fs::read_to_string(server.home.join("databases").join(id).join("console.log")).unwrap();
    assert!(
        console.contains("undone: max_locks_per_transaction = '100000000'"),
        "{console}"
    );

    // One that Postgres can start with stays, through a start that fails for another reason.
    allows(
        &mut owner,
        &["alter system set max_locks_per_transaction = 128"],
    );
    owner.close().unwrap();
    server.rest.suspend(id).unwrap();
    rest::remove_snapshot(&server.home, id).unwrap();
    let templates: Vec<_> = fs::read_dir(server.home.join("templates"))
        .unwrap()
        .map(|template| template.unwrap().path())
        .collect();
    for template in &templates {
        fs::rename(template.join("PG_VERSION"), template.join("away")).unwrap();
    }
    assert!(created.connect().is_err());
    for template in &templates {
        fs::rename(template.join("away"), template.join("PG_VERSION")).unwrap();
    }
    let mut owner = created.connect().unwrap();
    assert_eq!(
        owner.value("show max_locks_per_transaction").unwrap(),
        "128"
    );
    let console =
        fs::read_to_string(server.home.join("databases").join(id).join("console.log")).unwrap();
    assert!(
        console.contains("the settings of ALTER SYSTEM are put back"),
        "{console}"
    );
}
