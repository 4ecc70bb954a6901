# Sourced by libraries.sh: zlib, for contrib/pgcrypto's compression and compressed base backups.
build_zlib() {
    if begin_library zlib; then
        mkdir "$out/objects"
        cd "$out/objects"
        logged compile_objects "-DHAVE_UNISTD_H -DHAVE_STDARG_H -D_LARGEFILE64_SOURCE=1 -DHAVE_HIDDEN" "$library_source"/*.c
        logged ar rcs "$out/lib/libz.a" ./*.o
        cp "$library_source/zlib.h" "$library_source/zconf.h" "$out/include/"
        cd - > /dev/null
        finish
    fi
    add_library z
}
