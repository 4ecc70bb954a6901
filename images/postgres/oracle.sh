#!/bin/sh
# Builds the yardstick: the same PostgreSQL from the same source as anyone would, with glibc, shared modules and its
# own process model, and all of its client programs. Also where tests take psql, pgbench and pg_regress from.
#
# Usage: oracle.sh CACHE [MAJOR]. Installs into CACHE/oracle-MAJOR (bin, lib, share), with the regression tests' runner
# and files in its folder regress; CACHE/oracle is the one of PostgreSQL 17. Progress goes to stderr.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=$(mkdir -p "$1" && cd "$1" && pwd)
pg_major=${2:-17}
jobs=${JOBS:-$(nproc)}
unset MAKEFLAGS MAKELEVEL MFLAGS || true
export LC_ALL=C
. "$here/steps.sh"

fetch "postgresql-$pg_major"
pg_source=$(source_of "postgresql-$pg_major")
switches="--without-readline --without-zlib --without-icu --without-llvm --without-openssl"

if begin oracle "$(basename "$pg_source")" "$switches" "$here/oracle.sh"; then
    mkdir "$out/build"
    cd "$out/build"
    # shellcheck disable=SC2086 # a list of words
    logged "$pg_source/configure" --prefix="$out/install" $switches CFLAGS="-O2"
    say "$step_name: configured"
    logged make -j "$jobs"
    logged make -j "$jobs" -C src/test/regress
    logged make -j "$jobs" -C src/test/isolation
    say "$step_name: compiled"
    logged make install
    logged make -C contrib/amcheck install
    logged make -C src/test/regress install
    mkdir "$out/install/regress"
    logged cp -r "$pg_source/src/test/regress/sql" "$pg_source/src/test/regress/expected" \
        "$pg_source/src/test/regress/data" "$pg_source/src/test/regress/parallel_schedule" \
        "$pg_source/src/test/regress/resultmap" "$out/install/regress/"
    logged cp src/test/regress/pg_regress src/test/regress/regress.so src/test/isolation/isolationtester \
        src/test/isolation/pg_isolation_regress "$out/install/regress/"
    logged make -C src/test/regress clean
    finish
fi
ln -sfn "oracle-$key/install" "$cache/oracle-$pg_major"
[ "$pg_major" != 17 ] || ln -sfn "oracle-17" "$cache/oracle"
say "oracle: $("$cache/oracle-$pg_major/bin/postgres" --version) in $cache/oracle-$pg_major"
