#!/bin/sh
# Builds the yardstick: the same PostgreSQL from the same source as anyone would, with glibc, shared modules and its
# own process model, and all of its client programs. Also where tests take psql, pgbench and pg_regress from.
#
# Usage: oracle.sh CACHE [MAJOR]. Installs into CACHE/oracle-MAJOR (bin, lib, share), with the regression tests' runner
# and files in its folder regress, and with the image's extensions; CACHE/oracle is the one of PostgreSQL 17. Progress goes to stderr.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=$(mkdir -p "$1" && cd "$1" && pwd)
pg_major=${2:-17}
jobs=${JOBS:-$(nproc)}
unset MAKEFLAGS MAKELEVEL MFLAGS || true
export LC_ALL=C
. "$here/steps.sh"
. "$here/pgvector.sh"

fetch "postgresql-$pg_major" pgvector
pg_source=$(source_of "postgresql-$pg_major")
pgvector_source=$(source_of pgvector)
extensions=$(modules_below contrib)
switches="--without-readline --without-zlib --with-icu --without-llvm --without-openssl --with-lz4"

if begin oracle "$(basename "$pg_source")" "$switches" "$extensions" "$(basename "$pgvector_source")" "$here/oracle.sh" \
    "$here/link/pgvector.h" "$here/pgvector.sh"; then
    mkdir "$out/build"
    cd "$out/build"
    # shellcheck disable=SC2086 # a list of words
    logged "$pg_source/configure" --prefix="$out/install" $switches CFLAGS="-O2" \
        ICU_CFLAGS=" " ICU_LIBS="-licui18n -licuuc -licudata"
    say "$step_name: configured"
    logged make -j "$jobs"
    logged make -j "$jobs" -C src/test/regress
    logged make -j "$jobs" -C src/test/isolation
    say "$step_name: compiled"
    logged make install
    logged make -C src/test/regress install
    mkdir -p "$out/install/regress/contrib"
    logged cp -r "$pg_source/src/test/regress/sql" "$pg_source/src/test/regress/expected" \
        "$pg_source/src/test/regress/data" "$pg_source/src/test/regress/parallel_schedule" \
        "$pg_source/src/test/regress/resultmap" "$out/install/regress/"
    logged cp src/test/regress/pg_regress src/test/regress/regress.so src/test/isolation/isolationtester \
        src/test/isolation/pg_isolation_regress "$out/install/regress/"
    logged make -C src/test/regress clean
    # The image's extensions, with their tests in regress/contrib/NAME and regress/pgvector.
    for part in $extensions; do
        # Those that need a library come with the image alone.
        case $part in */pgcrypto | */uuid-ossp) ;; *) logged make -j "$jobs" -C "$part" install ;; esac
        logged cp -r "$pg_source/$part" "$out/install/regress/$part"
    done
    copy_pgvector "$out/pgvector"
    make_pgvector "$out/pgvector" "$out/install/bin/pg_config" install -j "$jobs"
    logged cp -r "$pgvector_source/test" "$out/install/regress/pgvector"
    finish
fi
ln -sfn "oracle-$key/install" "$cache/oracle-$pg_major"
[ "$pg_major" != 17 ] || ln -sfn "oracle-17" "$cache/oracle"
say "oracle: $("$cache/oracle-$pg_major/bin/postgres" --version) in $cache/oracle-$pg_major"
