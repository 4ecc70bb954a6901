# Sourced by libraries.sh: LZ4, for TOAST, WAL and base backups.
build_lz4() {
    if begin_library lz4; then
        mkdir "$out/objects"
        cd "$out/objects"
        logged compile_objects "-DXXH_NAMESPACE=LZ4_" "$library_source"/lib/*.c
        logged ar rcs "$out/lib/liblz4.a" ./*.o
        cp "$library_source"/lib/lz4*.h "$out/include/"
        cd - > /dev/null
        finish
    fi
    add_library lz4
}
