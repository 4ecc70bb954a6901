# Sourced by the recipe: builds the libraries that PostgreSQL and its modules use, static, for our musl. Sets
# $libraries, the archives in the order in which they are linked; $libraries_includes and $libraries_folders, the
# options with which a compiler finds their headers and archives; $libraries_key.
#
# Each library is a step with its own cache. Its folder has include/ and lib/, as if installed there.

library_cflags="-O2 -fPIE -march=x86-64-v2 -fno-omit-frame-pointer -fno-unwind-tables -fno-asynchronous-unwind-tables \
-ffunction-sections -fdata-sections"

begin_library() { # name of the source package; whatever else the step depends on
    library_source=$(source_of "$1")
    shift
    begin "$library" "$(basename "$library_source")" "$musl_key" "$library_cflags" "$here/libraries/$library.sh" "$@" || return 1
    mkdir "$out/include" "$out/lib"
}

# Adds the step's result; call it whether the step ran or not.
add_library() { # name of the archive
    libraries="$libraries $out/lib/lib$1.a"
    libraries_includes="$libraries_includes -I$out/include"
    libraries_folders="$libraries_folders -L$out/lib"
    libraries_key="$libraries_key $key"
}

compile_objects() { # options, as one word; sources. Objects land in the current folder
    options=$1
    shift
    # shellcheck disable=SC2086 # lists of words
    printf '%s\n' "$@" | xargs -n 4 -P "$jobs" "$musl/bin/musl-gcc" $library_cflags $options -c
}

build_libraries() {
    libraries=
    libraries_includes=
    libraries_folders=
    libraries_key=
    for library in zlib lz4 zstd uuid openssl icu; do
        . "$here/libraries/$library.sh"
        "build_$library"
    done
}
