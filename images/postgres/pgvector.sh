# Sourced by the recipe, where build_pgvector adds to $extensions as build_contrib does, and by oracle.sh. pgvector is
# built from Debian's source package by its own makefile. Debian 13's, 0.8.0, is older than PostgreSQL 18: what it lacks
# for that is here and in link/pgvector.h, of no effect on 17. It is older than 0.8.2 too, which mended CVE-2026-3172: with
# less than 1 MiB of shared memory for the graph of a parallel HNSW build, the limit wrapped around, and the build wrote past
# its end. Here such a limit is 0, and the build goes on disk at once.

copy_pgvector() { # to a new folder
    cp -r "$pgvector_source" "$1"
    sed -i 's/\([a-z>-]*\)->attrs\[0\]\.atttypid/TupleDescAttr(\1, 0)->atttypid/' "$1/src/ivfbuild.c"
    sed -i 's/hnswarea, esthnswarea - 1024 \* 1024)/hnswarea, esthnswarea > 1024 * 1024 ? esthnswarea - 1024 * 1024 : 0)/' \
        "$1/src/hnswbuild.c"
}

make_pgvector() { # its folder, pg_config, make's words
    folder=$1
    config=$2
    shift 2
    logged make -C "$folder" PG_CONFIG="$config" OPTFLAGS= COPT="-include $here/link/pgvector.h" "$@"
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
    if begin pgvector "$server_key" "$(basename "$pgvector_source")" "$here/pgvector.sh" "$here/link/module.sh" \
        "$here/link/pgvector.h"; then
        config=$out/pgxs/pg/bin/pg_config
        install_pgxs "$out/pgxs"
        copy_pgvector "$out/source"
        mkdir -p "$out/modules" "$out/root"
        make_pgvector "$out/source" "$config" all -j "$jobs"
        # To where pg_config says, which is below this folder.
        make_pgvector "$out/source" "$config" install DESTDIR="$out/staged"
        cp "$out/source/vector.so" "$out/modules/"
        mv "$out/staged$out/pgxs/pg" "$out/root/"
        finish
    fi
    extensions="$extensions $out"
    extensions_key="$extensions_key $key"
}
