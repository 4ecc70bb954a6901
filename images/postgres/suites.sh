#!/bin/sh
# Lays PostgreSQL's own test suites out for running against a server elsewhere: what upstream's makefiles would give
# pg_regress and pg_isolation_regress, and the files these read. Nothing in them is changed. Run oracle.sh before.
#
# Usage: suites.sh CACHE [MAJOR]. The result is CACHE/suites-MAJOR: a folder for `core`, one for `isolation`, one for
# pgvector, and one for each module of modules.list that has tests; in it `regress` or `isolation`, the runner's words a line each, and
# `settings`, what the server must be started with besides.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=$(cd "$1" && pwd)
pg_major=${2:-17}
unset MAKEFLAGS MAKELEVEL MFLAGS || true
export LC_ALL=C
. "$here/steps.sh"
oracle=$(dirname "$(realpath "$cache/oracle-$pg_major")")
fetch "postgresql-$pg_major" pgvector
pg_source=$(source_of "postgresql-$pg_major")
pgvector_source=$(source_of pgvector)
folders=$(modules_below src/pl; modules_below contrib)

# The value of a variable of an upstream makefile.
variable() { # folder, name
    printf 'include Makefile\nprint-it:\n\t@echo $(%s)\n' "$2" |
        make -s --no-print-directory -C "$oracle/build/$1" -f - print-it
}

# The lines of a configuration file as NAME=VALUE.
settings() {
    sed -e 's/#.*//' -e 's/[[:space:]]*=[[:space:]]*/=/' -e "s/'//g" -e 's/[[:space:]]*$//' -e '/^$/d' "$1"
}

# The runner's words: options and tests. A temporary server's configuration becomes `settings`.
words() { # folder, REGRESS or ISOLATION, its options
    option=
    for word in $(variable "$1" "$3"); do
        case $option$word in
            --temp-config) option=--temp-config= ;;
            --temp-config=*) settings "${word#--temp-config=}" > "$suite/settings"; option= ;;
            *) echo "$word" ;;
        esac
    done
    variable "$1" "$2" | tr ' ' '\n'
}

if begin suites "$(basename "$pg_source")" "$(basename "$pgvector_source")" "$(basename "$oracle")" "$folders" "$here/suites.sh"; then
    for part in core:src/test/regress isolation:src/test/isolation; do
        suite=$out/${part%%:*}
        mkdir "$suite"
        cp -r "$pg_source/${part#*:}/." "$suite/"
    done
    printf '%s\n' --schedule=parallel_schedule --max-concurrent-tests=20 > "$out/core/regress"
    printf '%s\n' --schedule=isolation_schedule > "$out/isolation/isolation"
    for folder in $folders; do
        # src/pl/NAME/src, contrib/NAME
        suite=$out/$(basename "${folder%/src}")
        [ -n "$(variable "$folder" REGRESS)$(variable "$folder" ISOLATION)" ] || continue
        mkdir "$suite"
        cp -r "$pg_source/$folder/." "$suite/"
        [ -z "$(variable "$folder" REGRESS)" ] || words "$folder" REGRESS REGRESS_OPTS > "$suite/regress"
        [ -z "$(variable "$folder" ISOLATION)" ] || words "$folder" ISOLATION ISOLATION_OPTS > "$suite/isolation"
    done
    # What its makefile says needs an installed server to be asked.
    cp -r "$pgvector_source/test" "$out/pgvector"
    (echo --load-extension=vector && cd "$out/pgvector/sql" && ls | sed 's/\.sql$//') > "$out/pgvector/regress"
    finish
fi
ln -sfn "$(basename "$out")" "$cache/suites-$pg_major"
say "suites: $(ls "$out" | wc -l) in $cache/suites-$pg_major"
