#!/bin/sh
# Builds everything of an image that comes from PostgreSQL's and musl's sources. README.md tells what and why.
#
# Usage: recipe.sh CACHE [MAJOR [--tests]]. MAJOR is PostgreSQL's, 17 unless given. The results are linked from
# CACHE/out-MAJOR; progress goes to stderr. With --tests, the module that PostgreSQL's own tests load is linked in too,
# and the results are linked from CACHE/out-MAJOR-tests.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=$(mkdir -p "$1" && cd "$1" && pwd)
case $cache in *[[:space:]]*) echo "recipe: PostgreSQL's makefiles cannot be run below $cache: no spaces" >&2; exit 1 ;; esac
pg_major=${2:-17}
kind=
[ "${3:-}" != --tests ] || kind=-tests
# What databases are configured with, and what of it only this major version knows.
settings=$here/postgresql.conf
[ ! -f "$here/postgresql-$pg_major.conf" ] || settings="$settings $here/postgresql-$pg_major.conf"
jobs=${JOBS:-$(nproc)}
unset MAKEFLAGS MAKELEVEL MFLAGS || true
export LC_ALL=C

. "$here/steps.sh"
. "$here/segment.sh"
. "$here/musl.sh"
. "$here/libraries.sh"
. "$here/server.sh"
. "$here/profile.sh"
. "$here/contrib.sh"
. "$here/pgvector.sh"
. "$here/link.sh"
. "$here/template.sh"
. "$here/trusted.sh"
. "$here/boot.sh"

fetch "postgresql-$pg_major" musl pgvector zlib lz4 libzstd util-linux openssl icu
pg_source=$(source_of "postgresql-$pg_major")
musl_source=$(source_of musl)
pgvector_source=$(source_of pgvector)

build_segment
build_musl
build_libraries
build_profile
build_server
extensions=
extensions_key=
build_contrib
build_pgvector
build_segment_finish
link_program
make_template
make_boot

# What the image builder reads.
new=$cache/new.$$
rm -rf "$new"
mkdir "$new"
ln -s "$program/postgres.elf" "$program/postgres-linux" "$program/layout" \
    "$boot/boot.cpio" "$new/"
ln -s "$template/data" "$new/template"
ln -s "$server/root" "$new/root"
rm -rf "$cache/out-$pg_major$kind"
mv "$new" "$cache/out-$pg_major$kind"
say "results in $cache/out-$pg_major$kind"

# What no run has used for a week.
find "$cache" -mindepth 2 -maxdepth 2 -name .done -mtime +7 -printf '%h\n' | while read -r old; do
    say "removing $(basename "$old"), unused for a week"
    rm -rf "$old"
done
