# Sourced by the recipe: builds musl with the system call out of line, and musl-gcc over it, which makes whatever it
# compiles find its data relative to %fs. Sets $musl.
build_musl() {
    cflags="-O2 -fPIE -march=x86-64-v2 -fno-omit-frame-pointer -fno-unwind-tables -fno-asynchronous-unwind-tables"
    if begin musl "$(basename "$musl_source")" "$cflags" "$segment_cflags" "$segment_key" "$here/musl" "$here/musl.sh"; then
        cp -r "$musl_source" "$out/source"
        cp -r "$here/musl/." "$out/source/"
        # What is written through stdio in small pieces, as Postgres' relation caches are, is an exit of the guest each time the
        # buffer is full.
        sed -i 's/^#define BUFSIZ 1024$/#define BUFSIZ 8192/' "$out/source/include/stdio.h"
        grep -q '^#define BUFSIZ 8192$' "$out/source/include/stdio.h"
        # oldmalloc grows by brk and maps only what is larger than 224 KiB, so a backend's memory stays dense in the
        # page that it already has; mallocng maps every group of 16 KiB and more by itself.
        (
            cd "$out/source"
            logged ./configure --prefix="$out" --syslibdir="$out/lib" --disable-shared --enable-wrapper=gcc \
                --with-malloc=oldmalloc CC="gcc -B$segment $segment_cflags" CFLAGS="$cflags"
            logged make -j "$jobs"
            logged make install
        )
        # Its compiler is two words.
        sed -i 's|"${REALGCC:-\(.*\)}"|\1|' "$out/bin/musl-gcc"
        finish
    fi
    musl=$out
    musl_key=$key
}
