# Sourced by the recipe: compiles PostgreSQL's server, its modules, initdb, and the files it reads at run time.
# Sets $server, the folder with build/ (the build tree) and root/ (what was installed, at its compiled-in prefix /pg).

# -DEXEC_BACKEND: a backend is a program started afresh, never a fork's copy.
# -march=x86-64-v2: CRC-32C and popcount are chosen when compiling, not by cpuid, which would leave the guest. Where
# PostgreSQL 18 asks for CRC-32C nevertheless, link/pg_crc32c_sse42_choose.c answers.
server_cflags="-O2 -fPIE -march=x86-64-v2 -fno-omit-frame-pointer -fno-unwind-tables -fno-asynchronous-unwind-tables \
-ffunction-sections -fdata-sections -DEXEC_BACKEND"
# The same for what configure would detect: run-time dispatch on cpuid, and AVX-512 behind it.
server_answers="pgac_cv__get_cpuid=no pgac_cv__cpuid=no pgac_cv__get_cpuid_count=no pgac_cv__cpuidex=no \
pgac_cv_xsave_intrinsics_=no pgac_cv_xsave_intrinsics__mxsave=no pgac_cv_xsave_intrinsics=no \
pgac_cv_avx512_popcnt_intrinsics=no pgac_cv_avx512_pclmul_intrinsics=no"
server_switches="--prefix=/pg --without-readline --without-llvm --without-openssl --with-icu --with-lz4 --with-zstd \
--with-uuid=e2fs"

# libpq with all that it takes from the common libraries, which has the same names as the server's own but other
# code: one object that shows nothing but libpq's interface, without the few names that the server has too (lo_read):
# to a module those mean the server's, as they do when libpq is a shared library.
libpq_object() {
    libpq=$out/build/src/interfaces/libpq
    ld -r -o "$out/libpq_all.o" --whole-archive "$libpq/libpq.a" --no-whole-archive \
        --start-group "$out/build/src/common/libpgcommon_shlib.a" "$out/build/src/port/libpgport_shlib.a" --end-group
    awk '/^[^#]/ { print $1 }' "$pg_source/src/interfaces/libpq/exports.txt" | sort > "$out/libpq.interface"
    (cd "$out/build/src/backend" && nm --defined-only --extern-only $(server_objects "$out")) | awk 'NF == 3 { print $3 }' | sort -u |
        comm -13 - "$out/libpq.interface" > "$out/libpq.exports"
    objcopy --keep-global-symbols="$out/libpq.exports" "$out/libpq_all.o" "$out/libpq.o"
}

# The objects that PostgreSQL's makefile would link the server from.
server_objects() { # the server step's folder
    printf 'include Makefile\nprint-objects:\n\t@echo $(call expand_subsys,$(OBJS))\n' |
        make -s --no-print-directory -C "$1/build/src/backend" -f - print-objects
}

build_server() {
    modules=$(modules_below src)
    if begin server "$(basename "$pg_source")" "$(gcc -dumpfullversion)" "$musl_key" "$libraries_key" "$server_cflags" "$server_answers" "$server_switches" \
        "$modules" "$profile_key" "$here/server.sh" "$here/link/module.sh" "$here/link/returns_twice.h" \
        "$here/link/pg_crc32c_sse42_choose.c"; then
        mkdir "$out/build"
        # The compiler, but where a makefile links a shared module: that becomes a relocatable object (module.sh).
        cat > "$out/cc" <<END
#!/bin/sh
for word; do
    [ "\$word" != -shared ] || exec "$here/link/module.sh" "\$@"
done
exec "$musl/bin/musl-gcc" "\$@"
END
        chmod 755 "$out/cc"
        cd "$out/build"
        # Found before the source's own file of that name.
        mkdir -p src/port
        cp "$here/link/pg_crc32c_sse42_choose.c" src/port/
        # shellcheck disable=SC2086 # lists of words
        logged env $server_answers "$pg_source/configure" $server_switches CC="$out/cc" \
            CFLAGS="$server_cflags" CPPFLAGS="$libraries_includes" LDFLAGS="-static $libraries_folders" \
            ICU_CFLAGS=" " ICU_LIBS="-licu $(g++ -print-file-name=libsupc++.a)" LZ4_CFLAGS=" " LZ4_LIBS=-llz4 ZSTD_CFLAGS=" " ZSTD_LIBS=-lzstd
        say "$step_name: configured"
        # What the server does most (profile.sh). Counts of a file with other #ifdefs are left out, with a warning in the log.
        counts=
        if [ -n "$profile" ]; then
            cp -r "$profile/." .
            counts="-fprofile-use -fprofile-correction -fprofile-partial-training -Wno-error=coverage-mismatch"
        fi
        # The server as its makefile links it is not used (link/program.sh does that), but must not fail.
        set -- LDFLAGS_EX_BE=
        include="-include $here/link/returns_twice.h"
        logged make -j "$jobs" -C src/backend generated-headers
        for part in src/common src/port src/timezone; do
            logged make -j "$jobs" -C "$part" all COPT="$counts" "$@"
        done
        logged make -j "$jobs" -C src/backend all COPT="$include $counts" "$@"
        if grep -E 'execMain\.gcda.*(not found|expected version)' "$log" >&2; then
            say "$step_name: the compiler did not take the counts"
            exit 1
        fi
        say "$step_name: server compiled"
        for part in src/interfaces/libpq $modules src/fe_utils; do
            logged make -j "$jobs" -C "$part" all COPT="$counts" "$@"
        done
        logged libpq_object
        logged make -C src/bin/initdb all "$@" libpq_pgport="$out/libpq.o"
        for part in src/include src/timezone src/backend $modules; do
            logged make -C "$part" install DESTDIR="$out/root" "$@"
        done
        logged cp src/bin/initdb/initdb "$out/root/pg/bin/"
        cd - > /dev/null
        finish
    fi
    server=$out
    server_key=$key
}
