# Sourced by the recipe: learns what PostgreSQL does most, for the compiler to lay out and inline the server by
# (-fprofile-use). The server is compiled for this machine's own C library with counters in it, and works through
# profile/: a shop that sells, is looked at, and asks for reports.
# Sets $profile, a folder with the counts (*.gcda) where their objects are in a build tree; empty for a major version
# that is built without.

# Of the version that databases get unless they ask for another: it takes longer than to compile the server itself.
profile_major=17
# How many transactions each of four clients makes, in each of the three ways to send a query. Counted, not timed: a
# slow machine learns the same.
profile_transactions=1500

# Sources with #ifdef for a library have other control flow without it, and no use of these counts; of those that
# matter here it has LZ4 and Zstandard. ICU's are few.
profile_switches="--without-readline --without-llvm --without-openssl --without-icu --without-zlib --with-lz4 --with-zstd"

build_profile() {
    profile=
    profile_key=
    [ "$pg_major" = $profile_major ] || return 0
    # shellcheck disable=SC2086 # a list of words
    if begin profile "$(basename "$pg_source")" "$(gcc -dumpfullversion)" "$server_cflags" "$server_answers" "$profile_switches" \
        "$profile_transactions" "$cluster_switches" "$here/profile.sh" "$here/profile" $settings "$here/link/returns_twice.h"; then
        mkdir "$out/build"
        cd "$out/build"
        # shellcheck disable=SC2086 # lists of words
        logged env $server_answers "$pg_source/configure" --prefix=/pg $profile_switches CFLAGS="$server_cflags"
        say "$step_name: configured"
        logged make -j "$jobs" -C src/backend generated-headers
        # Clients as they are (libpq's makefile allows no counters), then the server's own halves of common and port.
        clients="src/interfaces/libpq src/bin/initdb src/bin/pg_ctl src/bin/psql src/bin/pgbench"
        for part in src/common src/port src/fe_utils $clients; do
            logged make -j "$jobs" -C "$part" all
        done
        find src/common src/port -name '*_srv.*' -delete
        counted="src/timezone src/backend src/pl/plpgsql/src src/backend/snowball"
        set -- COPT="-fprofile-generate -include $here/link/returns_twice.h"
        for part in src/common src/port $counted; do
            logged make -j "$jobs" -C "$part" all "$@"
        done
        for part in src/include $counted $clients; do
            logged make -C "$part" install DESTDIR="$out/root" "$@"
        done
        say "$step_name: compiled"
        cd - > /dev/null
        work=$(mktemp -d "${TMPDIR:-/tmp}/dormouse-profile.XXXXXX")
        # The server is in a session of its own, where no Ctrl-C reaches it.
        trap 'stop_training || true; rm -rf "$work"' EXIT
        trap 'exit 130' INT TERM
        train
        trap - EXIT INT TERM
        rm -rf "$work"
        rm -r "$out/build" "$out/root"
        finish
    fi
    profile=$out/profile
    profile_key=$key
}

# With its own libraries, and its counts kept below $work, where it may write.
trained() {
    unprivileged env LD_LIBRARY_PATH="$work/pg/lib" PGHOST="$work" PGUSER=postgres PGDATABASE=postgres \
        GCOV_PREFIX="$work/counts" GCOV_PREFIX_STRIP="$(cd "$out/build" && pwd -P | tr -cd / | wc -c)" "$@"
}

stop_training() {
    [ ! -f "$work/data/postmaster.pid" ] || trained "$work/pg/bin/pg_ctl" stop -w -m fast -D "$work/data"
}

train() {
    cp -r "$out/root/pg" "$here/profile" "$work/"
    mkdir "$work/counts"
    chmod 755 "$work"
    [ "$(id -u)" != 0 ] || chown -R 65534:65534 "$work"
    # shellcheck disable=SC2086 # a list of words
    logged trained "$work/pg/bin/initdb" -D "$work/data" $cluster_switches
    # A data directory is not made often.
    rm -r "$work/counts/"*
    # shellcheck disable=SC2086 # a list of words
    cat $settings > "$work/data/postgresql.conf"
    trained "$work/pg/bin/pg_ctl" start -w -D "$work/data" -o "-F -k $work" -l "$work/data/log" >> "$log" 2>&1 || {
        tail "$work/data/log" >&2
        say "$step_name: the server does not start"
        exit 1
    }
    set -- -v ON_ERROR_STOP=1 -q
    logged trained "$work/pg/bin/psql" "$@" -f "$work/profile/shop.sql"
    for mode in simple extended prepared; do
        logged trained "$work/pg/bin/pgbench" -n -M $mode -c 4 -t "$profile_transactions" \
            -f "$work/profile/look.sql@3" -f "$work/profile/buy.sql@2"
    done
    logged trained "$work/pg/bin/pgbench" -n -C -t 30 -f "$work/profile/look.sql"
    logged trained "$work/pg/bin/psql" "$@" -f "$work/profile/reports.sql"
    trained "$work/pg/bin/psql" "$@" -c "COPY item TO STDOUT" > "$work/items"
    logged trained "$work/pg/bin/psql" "$@" -c "COPY copied FROM STDIN" < "$work/items"
    logged stop_training
    mkdir "$out/profile"
    for part in backend common port timezone pl; do
        (cd "$work/counts" && find src/$part -name '*.gcda' | cpio -pdm --quiet "$out/profile")
    done
    if [ ! -s "$out/profile/src/backend/executor/execMain.gcda" ]; then
        say "$step_name: the server counted nothing"
        exit 1
    fi
}
