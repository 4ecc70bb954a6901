# Sourced by the recipe: makes the template data directory, with the guest's own program as linked for Linux.
# Sets $template, the folder with data/.

# How a data directory of ours is made, the template and the one that is trained on, beside `initdb -D FOLDER`.
cluster_switches="--username=postgres --auth=trust --encoding=UTF8 --locale=C --locale-provider=builtin --builtin-locale=C.UTF-8 \
--wal-segsize=1 --no-sync --no-instructions"

# PostgreSQL refuses to run as root. Root runs it as nobody, in a folder that nobody can reach.
unprivileged() {
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
    else
        "$@"
    fi
}

# A tree as installed with the program in its place, at $1.
runnable_root() {
    cp -r "$server/root/." "$1/"
    cp "$program/postgres-linux" "$1/pg/bin/postgres"
    for module in "$program/modules/"*.so; do
        : > "$1/pg/lib/postgresql/$(basename "$module")"
    done
}

single_user() { # database; SQL on stdin
    unprivileged "$work/pg/bin/postgres" --single -j -D "$work/data" "$1" > "$work/single.log" 2>&1 || { cat "$work/single.log" >&2; return 1; }
    cat "$work/single.log"
    # In this mode an error does not change the exit status.
    ! grep -E 'ERROR|FATAL|PANIC' "$work/single.log" >&2
}

make_template() {
    # shellcheck disable=SC2086 # a list of words
    if begin "template$kind" "$server_key" "$program_key" "$here/template.sh" "$here/template.sql" "$here/each_database.sql" \
        $settings "$here/pg_hba.conf"; then
        work=$(mktemp -d "${TMPDIR:-/tmp}/dormouse-template.XXXXXX")
        trap 'rm -rf "$work"' EXIT
        runnable_root "$work"
        chmod 755 "$work"
        [ "$(id -u)" != 0 ] || chown -R 65534:65534 "$work"
        # shellcheck disable=SC2086 # a list of words
        logged unprivileged env TZ=UTC "$work/pg/bin/initdb" -D "$work/data" $cluster_switches
        # shellcheck disable=SC2086 # a list of words
        cat $settings > "$work/data/postgresql.conf"
        cp "$here/pg_hba.conf" "$work/data/"
        # In single-user mode with -j, a statement ends at a semicolon and an empty line.
        for part in template each_database; do
            sed 's/;$/;\n/' "$here/$part.sql" > "$work/$part.sql"
        done
        logged single_user postgres < "$work/template.sql"
        for database in template0 template1 postgres; do
            logged single_user "$database" < "$work/each_database.sql"
        done
        printf 'CREATE DATABASE app OWNER app;\n\n' > "$work/app.sql"
        logged single_user postgres < "$work/app.sql"
        # All rows frozen and all pages marked so: a fresh database has nothing to vacuum, so nothing to write. The
        # last run leaves only the shutdown checkpoint in a WAL segment of its own.
        for database in template0 template1 app; do
            printf 'VACUUM (FREEZE, ANALYZE);\n\n' > "$work/vacuum.sql"
            logged single_user "$database" < "$work/vacuum.sql"
        done
        # With small segments the log begins at 1 MiB; PostgreSQL's own tests take every server to be past 16.
        printf "SELECT pg_logical_emit_message(false, '', ''), pg_switch_wal() FROM generate_series(1, 16);\n\n" > "$work/wal.sql"
        logged single_user postgres < "$work/wal.sql"
        printf 'VACUUM (FREEZE, ANALYZE);\n\n' > "$work/vacuum.sql"
        logged single_user postgres < "$work/vacuum.sql"
        # Writing the statistics leaves dead rows among them, which are counted when a session ends: so in one of its own. Autovacuum
        # would find them in every database of every tenant.
        printf 'VACUUM (FREEZE) pg_statistic;\n\n' > "$work/vacuum.sql"
        for database in template0 template1 app; do
            logged single_user "$database" < "$work/vacuum.sql"
        done
        printf 'VACUUM (FREEZE) pg_statistic;\n\nCHECKPOINT;\n\nSELECT pg_switch_wal();\n\n' > "$work/vacuum.sql"
        logged single_user postgres < "$work/vacuum.sql"
        rm -f "$work/data/postmaster.opts" "$work/data/postmaster.pid"
        # Autovacuum goes to the databases that there are statistics of: to those that a tenant uses, and not, each minute that
        # she is awake, to postgres and template1 as well.
        rm -f "$work/data/pg_stat/pgstat.stat"
        mkdir "$out/data"
        cp -r --sparse=always --preserve=mode,timestamps "$work/data/." "$out/data/"
        chmod 700 "$out/data"
        rm -rf "$work"
        trap - EXIT
        finish
    fi
    template=$out
    template_key=$key
}
