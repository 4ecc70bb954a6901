#!/bin/sh
# Stands where PostgreSQL's makefiles call the compiler to link a shared module: joins the module's objects into one
# relocatable object of that name instead, which the program is later linked with. Libraries are left to that link.
set -eu
out=
objects=
while [ $# -gt 0 ]; do
    case $1 in
        -o) out=$2; shift ;;
        *.o) objects="$objects $1" ;;
    esac
    shift
done
# shellcheck disable=SC2086 # object names hold no spaces
exec ld -r -o "$out" $objects
