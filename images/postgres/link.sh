# Sourced by the recipe: links the server, its modules and our own into the program, for the guest and for Linux.
# Sets $program, the folder with postgres.elf, postgres-linux, layout and modules/.

# Where the shared part is (abi::TEXT).
text=0x800000

# A symbol's distance from the start of the program.
symbol() { printf '0x%x' $((0x$(nm "$out/postgres.elf" | awk -v name="$1" '$3 == name { print $1 }') - text)); }

check_program() {
    if readelf -lW "$1" | grep -q INTERP; then
        say "$1: asks for a dynamic loader"
        exit 1
    fi
}

link_program() {
    if begin "program$kind" "$server_key" "$musl_key" "$here/link.sh" "$extensions_key" "$segment_finish_key" "$here/link" \
        "$here/dormouse.c"; then
        mkdir "$out/parts" "$out/modules"
        # For who tests it (regress.sh).
        echo "$pg_source" > "$out/parts/source"
        # shellcheck disable=SC2086 # lists of words
        logged "$musl/bin/musl-gcc" $server_cflags -fvisibility=default -Wall -Werror=implicit -I "$server/build/src/include" \
            -I "$pg_source/src/include" -D_GNU_SOURCE -c -o "$out/parts/dormouse.o" "$here/dormouse.c"
        cp "$out/parts/dormouse.o" "$out/modules/dormouse.so"
        for module in $modules; do
            find "$server/build/$module" -name '*.so' -exec cp {} "$out/modules/" \;
        done
        for extension in $extensions; do
            cp "$extension/modules/"*.so "$out/modules/"
        done
        logged "$here/link/snowball.sh" "$musl/bin/musl-gcc $server_cflags -D_GNU_SOURCE -I $server/build/src/include \
-I $pg_source/src/include" "$pg_source" "$out/modules/dict_snowball.so"
        if [ -n "$kind" ]; then
            logged make -C "$server/build/src/test/regress" regress.so
            cp "$server/build/src/test/regress/regress.so" "$out/modules/"
        fi
        objects=$(server_objects "$server")
        mkdir "$out/parts/modules"
        logged "$here/link/modules.sh" "$out/parts/modules" "$out/modules/"*.so
        logged "$musl/bin/musl-gcc" -c -o "$out/parts/modules.o" "$out/parts/modules/modules.S"
        cd "$server/build/src/backend"
        for kernel in guest linux; do
            # shellcheck disable=SC2086 # lists of words
            logged "$here/link/program.sh" "$musl" "$out/parts/postgres-$kernel" $kernel $objects \
                "$out/parts/modules.o" "$out/parts/modules/"*.o "$server/libpq.o" $libraries
            logged check_program "$out/parts/postgres-$kernel"
        done
        cd - > /dev/null
        cp "$out/parts/postgres-guest" "$out/parts/postgres-finished"
        logged disassemble
        logged "$segment_finish" "$out/parts/postgres-finished" "$out/parts/disassembly" "$out/parts/words"
        logged check_guest
        # Symbols stay: the VMM reads some, and a backtrace is worth 1.4 MB that no guest loads.
        logged objcopy --strip-debug --remove-relocations='*' --add-section .dormouse.words="$out/parts/words" \
            "$out/parts/postgres-finished" "$out/postgres.elf"
        logged objcopy --strip-debug --remove-relocations='*' "$out/parts/postgres-linux" "$out/postgres-linux"
        rm "$out/parts/postgres-finished"
        # What the image's manifest says of the program; numbers are distances from the start of the program.
        cat > "$out/layout" <<END
postgres_version=$("$out/postgres-linux" --version)
wal_segment_bytes=0x100000
shared_end=$(symbol __shared_end)
hot=$(symbol __hot)
data=$(symbol __own_start)
data_end=$(symbol __own_end)
prng_state=$(symbol pg_global_prng_state)
END
        finish
    fi
    program=$out
    program_key=$key
}

disassemble() { objdump -d --no-show-raw-insn "$out/parts/postgres-guest" > "$out/parts/disassembly"; }

# Nothing in the guest answers the `syscall` instruction, and cpuid leaves the guest.
check_guest() {
    if grep -wE 'syscall|sysenter' "$out/parts/disassembly" | grep -v '<'; then
        say "$step_name: the guest's program still has system call instructions"
        return 1
    fi
    if grep -E '[[:space:]]cpuid[[:space:]]*$' "$out/parts/disassembly"; then
        say "$step_name: the guest's program has cpuid instructions"
        return 1
    fi
}
