# Sourced by the recipe: compiles the extensions of modules.list, apart from the server, so that another extension
# does not compile the server again. Sets $extensions, the folder with modules/ (what module.sh made) and root/ (their
# control and SQL files, as installed).
build_extensions() {
    list=$(modules_below contrib)
    if begin extensions "$server_key" "$list" "$here/extensions.sh" "$here/link/module.sh"; then
        # The server's build tree, with a place of its own for what is made here.
        cp -rs "$server/build" "$out/build"
        mkdir "$out/modules"
        for part in $list; do
            logged make -j "$jobs" -C "$out/build/$part" all LDFLAGS_EX_BE=
            logged make -C "$out/build/$part" install DESTDIR="$out/root" LDFLAGS_EX_BE=
            find "$out/build/$part" -name '*.so' -exec cp {} "$out/modules/" \;
        done
        finish
    fi
    extensions=$out
    extensions_key=$key
}
