# Sourced by libraries.sh: ICU as far as PostgreSQL uses it, its data among the constants. icu/ has the makefile, the
# choice of data, and what stands for a C++ library. There are no exceptions, and no locks around what is made once,
# since there is one thread.
build_icu() {
    if begin_library icu "$(g++ --version | head -n 1)" "$here/libraries/icu"; then
        mkdir "$out/objects" "$out/include/unicode"
        cd "$out/objects"
        data=$(basename "$library_source"/source/data/in/icudt*l.dat l.dat)
        logged "$here/libraries/icu/data.pl" "$library_source/source/data/in/${data}l.dat" "$data.dat"
        cat > data.S <<END
	.section .rodata.icu, "a"
	.balign 16
	.globl ${data}_dat
${data}_dat:
	.incbin "$data.dat"
	.section .note.GNU-stack, "", @progbits
END
        # The C++ library's headers over musl's, after ours that replace some.
        headers=$(g++ -x c++ -E -v /dev/null 2>&1 | sed -n 's/^ \(.*\/c++\/.*\)/-isystem \1/p' | tr '\n' ' ')
        cxx="g++ -B$segment $segment_cflags -std=c++17 -nostdinc -isystem $here/libraries/icu/c++ $headers-isystem $musl/include \
-isystem $(g++ -print-file-name=include)"
        logged make -j "$jobs" -f "$here/libraries/icu/icu.mk" SOURCE="$library_source/source" HERE="$here/libraries/icu" CXX="$cxx" \
            CC="$musl/bin/musl-gcc" CXXFLAGS="$library_cflags -fno-exceptions -fno-threadsafe-statics"
        cp libicu.a "$out/lib/"
        cp "$library_source"/source/common/unicode/*.h "$library_source"/source/i18n/unicode/*.h "$out/include/unicode/"
        cd - > /dev/null
        finish
    fi
    add_library icu
    # What a dynamic_cast needs.
    libraries="$libraries $(g++ -print-file-name=libsupc++.a)"
}
