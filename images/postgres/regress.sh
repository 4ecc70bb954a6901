#!/bin/sh
# Runs PostgreSQL's own regression tests against the program as linked for Linux: the same objects as the guest's,
# with start, modules and processes as in the guest, on another kernel. What fails here is not the guest kernel's
# fault. Run recipe.sh with --tests, and oracle.sh, before.
#
# Usage: regress.sh CACHE MAJOR [TEST...]; without tests, the whole parallel schedule.
#        regress.sh CACHE MAJOR --isolation
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=$(cd "$1" && pwd)
pg_major=$2
shift 2
export LC_ALL=C
. "$here/steps.sh"
. "$here/template.sh"
oracle=$(realpath "$cache/oracle-$pg_major")
regress=$oracle/regress
out_now=$cache/out-$pg_major-tests
server=$(dirname "$(realpath "$out_now/root")")
program=$(dirname "$(realpath "$out_now/postgres.elf")")

work=$(mktemp -d "${TMPDIR:-/tmp}/dormouse-regress.XXXXXX")
postmaster=
stop() {
    # The server itself is asked to stop, by the id it wrote down: $postmaster is a shell around it.
    if [ -n "$postmaster" ] && server_id=$(head -n 1 "$work/data/postmaster.pid" 2> /dev/null); then
        kill -INT "$server_id" || true
        wait "$postmaster" || true
    fi
    rm -rf "$work"
}
trap stop EXIT
runnable_root "$work"
cp -r "$(realpath "$out_now/template")" "$work/data"
cp -r "$regress" "$work/regress"
mkdir "$work/run" "$work/output" "$work/tablespace"
chmod 755 "$work"
[ "$(id -u)" != 0 ] || chown -R 65534:65534 "$work"
unprivileged "$work/pg/bin/postgres" -D "$work/data" -c unix_socket_directories="$work/run" \
    -c max_prepared_transactions=2 -c max_connections=100 -c fsync=off > "$work/log" 2>&1 &
postmaster=$!
until "$oracle/bin/pg_isready" -q -h "$work/run"; do
    kill -0 "$postmaster" || { cat "$work/log" >&2; exit 1; }
done
runner=pg_regress
list="--schedule=$work/regress/parallel_schedule --max-concurrent-tests=20"
input=$work/regress
if [ "${1:-}" = --isolation ]; then
    runner=pg_isolation_regress
    input=$work/isolation
    cp -r "$(cat "$program/parts/source")/src/test/isolation" "$input"
    list="--schedule=$input/isolation_schedule"
elif [ $# -gt 0 ]; then
    list="test_setup $*"
fi
cd "$work/output"
status=0
# shellcheck disable=SC2086 # a list of words
unprivileged "$work/regress/$runner" --inputdir="$input" --outputdir="$work/output" --dlpath="$work/pg/lib/postgresql" \
    --bindir="$oracle/bin" --host="$work/run" --user=postgres $list || status=$?
if [ $status != 0 ]; then
    mkdir -p "$cache/log"
    cp "$work/output/regression.diffs" "$work/log" "$cache/log/" 2> /dev/null || true
    say "differences in $cache/log/regression.diffs, the server's log in $cache/log/log"
fi
exit $status
