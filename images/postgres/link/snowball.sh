#!/bin/sh
# Makes the stemmers' tables constants that all processes share. As compiled, they are 330 KB of pointers: two fifths
# of what every process would have as its own, and of what it relocates when it starts.
#
# Usage: snowball.sh COMPILER SOURCE OBJECT where COMPILER is the command that compiles a module's file, SOURCE
# PostgreSQL's source and OBJECT dict_snowball.so, as module.sh made it; changed in place.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
compiler=$1
utilities=$2/src/backend/snowball/libstemmer/utilities.c
object=$3
sed -e 's/w->s\[/among_string(w)[/g' -e 's/w->function(z)/among_function(w)(z)/g' "$utilities" > "$object.c"
[ "$(grep -c 'among_string(w)\|among_function(w)' "$object.c")" = 4 ] ||
    { echo "snowball: $utilities reads its tables in another way than this recipe knows" >&2; exit 1; }
$compiler -include "$here/snowball.h" -I "$2/src/include/snowball" -I "$2/src/include/snowball/libstemmer" \
    -c -o "$object.o" "$object.c"
"$here/snowball.pl" "$object"
objcopy --weaken-symbol=find_among --weaken-symbol=find_among_b "$object" "$object.weak"
objcopy --keep-global-symbol=find_among --keep-global-symbol=find_among_b "$object.o"
ld -r -o "$object" "$object.weak" "$object.o"
rm "$object.c" "$object.o" "$object.weak"
