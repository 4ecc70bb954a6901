#!/bin/sh
# Builds everything of an image that comes from PostgreSQL's and musl's sources. README.md tells what and why.
#
# Usage: recipe.sh CACHE. The results are linked from CACHE/out; progress goes to stderr.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=$(mkdir -p "$1" && cd "$1" && pwd)
case $cache in *[[:space:]]*) echo "recipe: PostgreSQL's makefiles cannot be run below $cache: no spaces" >&2; exit 1 ;; esac
jobs=${JOBS:-$(nproc)}
unset MAKEFLAGS MAKELEVEL MFLAGS || true
export LC_ALL=C

. "$here/steps.sh"
. "$here/musl.sh"
. "$here/server.sh"
. "$here/link.sh"
. "$here/template.sh"
. "$here/boot.sh"

sources=$("$here/fetch.sh" "$cache" 2> "$cache/fetch.log") || { cat "$cache/fetch.log" >&2; exit 1; }
pg_source=$(echo "$sources" | grep /postgresql-)
musl_source=$(echo "$sources" | grep /musl-)

build_musl
build_server
link_program
make_template
make_boot

# What the image builder reads.
new=$cache/out.$$
rm -rf "$new"
mkdir "$new"
ln -s "$program/postgres.elf" "$program/postgres-linux" "$program/layout" \
    "$boot/boot.cpio" "$new/"
ln -s "$template/data" "$new/template"
ln -s "$server/root" "$new/root"
rm -rf "$cache/out"
mv "$new" "$cache/out"
say "results in $cache/out"

# What no run has used for a week.
find "$cache" -mindepth 2 -maxdepth 2 -name .done -mtime +7 -printf '%h\n' | while read -r old; do
    say "removing $(basename "$old"), unused for a week"
    rm -rf "$old"
done
