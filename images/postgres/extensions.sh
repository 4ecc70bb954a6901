# Sourced by the recipe: compiles extensions, apart from the server, so that another does not compile the server again.
# Sets $extensions, a list of folders, each with modules/ (what module.sh made) and root/ (control and SQL files, as
# installed), and $extensions_key.

# Those of modules.list that come with PostgreSQL.
build_contrib() {
    list=$(modules_below contrib)
    if begin contrib "$server_key" "$list" "$here/extensions.sh" "$here/link/module.sh"; then
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
    extensions="$extensions $out"
    extensions_key="$extensions_key $key"
}

# What makefiles of other extensions ask pg_config for (PGXS), at $1.
install_pgxs() {
    cp -rs "$server/build" "$out/build"
    for part in src/include src/makefiles config src/bin/pg_config; do
        logged make -C "$out/build/$part" install DESTDIR="$1" LDFLAGS_EX_BE=
    done
    logged make -C "$out/build/src" install-local DESTDIR="$1"
    rm -r "$out/build"
}

build_pgvector() {
    if begin pgvector "$server_key" "$(basename "$pgvector_source")" "$here/extensions.sh" "$here/link/module.sh" \
        "$here/link/pgvector.h"; then
        install_pgxs "$out/pgxs"
        cp -r "$pgvector_source" "$out/source"
        mkdir -p "$out/modules" "$out/root"
        set -- PG_CONFIG="$out/pgxs/pg/bin/pg_config" OPTFLAGS= COPT="-include $here/link/pgvector.h"
        logged make -j "$jobs" -C "$out/source" all "$@"
        # To where pg_config says, which is below this folder.
        logged make -C "$out/source" install DESTDIR="$out/staged" "$@"
        cp "$out/source/vector.so" "$out/modules/"
        mv "$out/staged$out/pgxs/pg" "$out/root/"
        finish
    fi
    extensions="$extensions $out"
    extensions_key="$extensions_key $key"
}

build_extensions() {
    extensions=
    extensions_key=
    build_contrib
    build_pgvector
}
