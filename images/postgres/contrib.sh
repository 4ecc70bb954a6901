# Sourced by the recipe: compiles the extensions of modules.list that come with PostgreSQL, apart from the server, so
# that another does not compile the server again. Adds to $extensions, a list of folders, each with modules/ (what
# module.sh made) and root/ (control and SQL files, as installed), and to $extensions_key.
build_contrib() {
    list=$(modules_below contrib)
    if begin contrib "$server_key" "$list" "$here/contrib.sh" "$here/link/module.sh"; then
        # The server's build tree, with a place of its own for what is made here.
        cp -rs "$server/build" "$out/build"
        mkdir "$out/modules"
        for part in $list; do
            logged make -j "$jobs" -C "$out/build/$part" all LDFLAGS_EX_BE=
            logged make -C "$out/build/$part" install DESTDIR="$out/root" LDFLAGS_EX_BE=
            find "$out/build/$part" -name '*.so' -exec cp {} "$out/modules/" \;
        done
        rm -r "$out/build"
        finish
    fi
    extensions="$extensions $out"
    extensions_key="$extensions_key $key"
}
