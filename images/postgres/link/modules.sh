#!/bin/sh
# Makes modules fit to be linked into one program, and the table by which dlopen.c finds them.
#
# Usage: modules.sh OUT MODULE.so... where each MODULE.so is a relocatable object made by module.sh. Writes
# OUT/MODULE.o, with every global symbol that it defines renamed to MODULE::SYMBOL so that no two modules (nor a
# module and the server) clash, and OUT/modules.S, the table: of functions alone, since a variable's distance differs from
# process to process.
set -eu
out=$1
shift
names=
for module in "$@"; do
    name=$(basename "$module" .so)
    names="$names $name"
    # Number Value Size Type Bind Visibility Section Name
    readelf -sW "$module" | awk '($5 == "GLOBAL" || $5 == "WEAK") && $7 != "UND" && $8 != "" { print $4 == "FUNC" ? $6 : "DATA", $8 }' |
        LC_ALL=C sort -k 2 > "$out/$name.symbols"
    awk -v module="$name" '{ print $2, module "::" $2 }' "$out/$name.symbols" > "$out/$name.renames"
    objcopy --redefine-syms="$out/$name.renames" "$module" "$out/$name.o"
done
# A module's labels in the table: its name may have a hyphen.
label() { echo "$1" | tr - _; }
{
    echo '	.section .rodata'
    echo '	.balign 4'
    echo '	.globl __dormouse_module_count, __dormouse_modules'
    echo '__dormouse_module_count:'
    echo "	.long $#"
    echo '__dormouse_modules:'
    for name in $names; do
        count=$(grep -c '^DEFAULT ' "$out/$name.symbols" || true)
        label=$(label "$name")
        echo "	.long .Lname_$label - ., .Lsymbols_$label - ., $count"
    done
    for name in $names; do
        label=$(label "$name")
        echo ".Lsymbols_$label:"
        awk -v label="$label" -v module="$name" '$1 == "DEFAULT" {
            printf "\t.long .Ls_%s_%s - ., \"%s::%s\" - .\n", label, $2, module, $2 }' "$out/$name.symbols"
    done
    for name in $names; do
        label=$(label "$name")
        echo ".Lname_$label: .asciz \"$name\""
        awk -v label="$label" '$1 == "DEFAULT" { printf ".Ls_%s_%s: .asciz \"%s\"\n", label, $2, $2 }' \
            "$out/$name.symbols"
    done
    echo '	.section .note.GNU-stack,"",@progbits'
} > "$out/modules.S"
