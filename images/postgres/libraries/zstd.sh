# Sourced by libraries.sh: Zstandard, for WAL and base backups. zstd/ has what stands in place of its own files.
build_zstd() {
    if begin_library libzstd "$here/libraries/zstd"; then
        mkdir "$out/objects"
        cp -r "$library_source/lib" "$out/source"
        cp -r "$here/libraries/zstd/." "$out/source/"
        cd "$out/objects"
        # Neither assembly nor code for other CPUs.
        logged compile_objects "-DZSTD_DISABLE_ASM -DDYNAMIC_BMI2=0 -DXXH_NAMESPACE=ZSTD_ -DZSTD_LEGACY_SUPPORT=0" \
            "$out"/source/common/*.c "$out"/source/compress/*.c "$out"/source/decompress/*.c
        logged ar rcs "$out/lib/libzstd.a" ./*.o
        cp "$out"/source/zstd*.h "$out/include/"
        cd - > /dev/null
        rm -r "$out/source"
        finish
    fi
    add_library zstd
}
