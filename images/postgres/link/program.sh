#!/bin/sh
# Links the server and its modules into one static program at a fixed address, with the relocations that the pass after
# it (images/segment) reads.
#
# Usage: program.sh MUSL OUT KERNEL OBJECT... where KERNEL is guest or linux and OBJECT... everything but the C
# library and what belongs to KERNEL. Writes OUT, with its symbols.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
musl=$1
out=$2
kernel=$3
shift 3
dir=$(dirname "$out")
cc="$musl/bin/musl-gcc -O2 -fPIE -march=x86-64-v2 -fno-omit-frame-pointer -fno-asynchronous-unwind-tables -Wall -Wextra"
own=
# Those of memory/ stand in place of the C library's.
for source in fork.S process.c dlopen.c "spawn_$kernel.c" "kernel_$kernel.S" \
    memory/memcpy.s memory/memset.s memory/memcmp.s; do
    [ -f "$here/$source" ] || continue
    object=$dir/own_$(basename "$source").o
    $cc -c -o "$object" "$here/$source"
    own="$own $object"
done
gcc_file() { gcc -print-file-name="$1"; }
# shellcheck disable=SC2086 # lists of words
ld -no-pie -static --emit-relocs --no-relax -z text -z norelro -z noexecstack --gc-sections \
    -z max-page-size=4096 --build-id=none --fatal-warnings -T "$here/layout.ld" -Map="$out.map" \
    --wrap=fork_process --wrap=execv --wrap=find_other_exec \
    -o "$out" "$musl/lib/crt1.o" "$musl/lib/crti.o" \
    $own "$@" --start-group "$musl/lib/libc.a" "$(gcc_file libgcc.a)" "$(gcc_file libgcc_eh.a)" --end-group \
    "$musl/lib/crtn.o"
