//! The extensions of the image: the owner makes them by CREATE EXTENSION, and they do what they are for.

#![allow(clippy::unwrap_used)]

mod harness;

use dormouse_loadtest::client::Client;

/// Those that PostgreSQL and pgvector call safe in an owner's hands. What looks at pages and at the server is more.
const OWNERS: &[&str] = &[
    "btree_gin",
    "btree_gist",
    "citext",
    "cube",
    "dict_int",
    "fuzzystrmatch",
    "hstore",
    "intarray",
    "isn",
    "lo",
    "ltree",
    "pg_trgm",
    "seg",
    "tablefunc",
    "tcn",
    "tsm_system_rows",
    "tsm_system_time",
    "unaccent",
    "vector",
];

fn list(client: &mut Client, sql: &str) -> Vec<String> {
    let joined = client.value(&format!(
        "select string_agg(n, ',' order by n) from ({sql}) as t(n)"
    ));
    joined.unwrap().split(',').map(str::to_owned).collect()
}

#[test]
fn every_extension_of_the_image_can_be_made_or_is_kept_from_the_owner() {
    let Some((_server, _created, mut client)) = harness::session() else {
        return;
    };
    let available = list(&mut client, "select name from pg_available_extensions");
    for name in &available {
        let made = client.query(&format!(
            "create extension if not exists \"{name}\" cascade"
        ));
        if let Err(error) = made {
            // Refused by name, not for a module or a file that is missing.
            assert_eq!(error.code(), Some("42501"), "{name}: {error}");
        }
    }
    let there = list(&mut client, "select extname from pg_extension");
    for name in OWNERS {
        assert!(
            there.iter().any(|extension| extension == name),
            "{name} was refused: {there:?}"
        );
    }
    let lacking: Vec<_> = [
        "dblink",
        "pageinspect",
        "pg_stat_statements",
        "postgres_fdw",
    ]
    .iter()
    .filter(|name| !available.iter().any(|extension| extension == *name))
    .collect();
    assert!(lacking.is_empty(), "not in the image: {lacking:?}");
}

#[test]
fn extensions_do_what_they_are_for() {
    let Some((_server, _created, mut client)) = harness::session() else {
        return;
    };
    client
        .query(
            "create extension vector; create extension pg_trgm; create extension hstore; create extension ltree;
             create extension unaccent; create extension fuzzystrmatch; create extension citext; create extension seg;
             create extension btree_gist; create extension intarray; create extension cube; create extension tablefunc",
        )
        .unwrap();
    for (sql, expected) in [
        ("similarity('word', 'world')", "0.375"),
        ("'a=>1, b=>2'::hstore -> 'b'", "2"),
        ("'Top.Science.Astronomy'::ltree <@ 'Top.Science'", "t"),
        ("unaccent('Hôtel')", "Hotel"),
        ("levenshtein('dormouse', 'dormice')", "3"),
        ("'Abc'::citext = 'aBC'", "t"),
        ("'[1,2,3]'::vector <-> '[1,2,7]'", "4"),
        ("'[1,2,3]'::halfvec <#> '[1,2,3]'", "-14"),
        ("'{1:2,3:1}/5'::sparsevec <-> '{1:2}/5'", "1"),
        ("'1.5 .. 2'::seg @> '1.7'", "t"),
        ("sort('{3,1,2}'::int[])", "{1,2,3}"),
        ("cube_distance('(0,0)', '(3,4)')", "5"),
        ("count(*) from normal_rand(10, 5, 3)", "10"),
    ] {
        assert_eq!(
            client.value(&format!("select {sql}")).unwrap(),
            expected,
            "{sql}"
        );
    }
    client
        .query("create table item (id int, near vector(3))")
        .unwrap();
    client
        .query("insert into item select n, array[n, n % 7, n % 11] from generate_series(1, 2000) n")
        .unwrap();
    let nearest = "select string_agg(id::text, ',') from
        (select id from item order by near <-> '[100.2,2,1]' limit 3) as t";
    let exact = client.value(nearest).unwrap();
    for index in [
        "hnsw (near vector_l2_ops)",
        "ivfflat (near vector_l2_ops) with (lists = 4)",
    ] {
        client
            .query(&format!("create index nearest on item using {index}"))
            .unwrap();
        client
            .query("set enable_seqscan = off; set ivfflat.probes = 4")
            .unwrap();
        let plan = client
            .value(
                "explain (format json) select id from item order by near <-> '[100.2,2,1]' limit 3",
            )
            .unwrap();
        assert!(plan.contains("nearest"), "{plan}");
        assert_eq!(client.value(nearest).unwrap(), exact, "{index}");
        client.query("drop index nearest; reset all").unwrap();
    }
}
