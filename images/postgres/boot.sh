# Sourced by the recipe: packs the guest's read-only files into boot.cpio. Sets $boot, the folder with boot.cpio.
make_boot() {
    if begin "boot$kind" "$server_key" "$extensions_key" "$program_key" "$here/boot.sh" "$here/trusted.sh" \
        "$here/trusted.list" "$here/trusted.sql"; then
        tree=$out/tree
        mkdir -p "$tree/pg/bin" "$tree/pg/lib/postgresql" "$tree/pg/share/postgresql" "$tree/etc" "$tree/run" \
            "$tree/dev/shm" "$tree/tmp" "$tree/pgdata"
        # What the program looks for but the guest never reads: the program itself and its modules are loaded
        # already. One file each, since PostgreSQL tells modules apart by inode.
        : > "$tree/pg/bin/postgres"
        chmod 755 "$tree/pg/bin/postgres"
        for module in "$program/modules/"*.so; do
            : > "$tree/pg/lib/postgresql/$(basename "$module")"
        done
        # Those that any session may load.
        mkdir "$tree/pg/lib/postgresql/plugins"
        for module in auto_explain; do
            [ ! -f "$tree/pg/lib/postgresql/$module.so" ] ||
                ln -s "../$module.so" "$tree/pg/lib/postgresql/plugins/$module.so"
        done
        # Of the shared files only what a running server reads; the rest is initdb's.
        for part in extension timezone timezonesets tsearch_data; do
            for from in "$server" $extensions; do
                from=$from/root/pg/share/postgresql/$part
                [ ! -d "$from" ] || cp -r "$from" "$tree/pg/share/postgresql/"
            done
        done
        logged trust_extensions "$tree/pg/share/postgresql/extension"
        # The kernel's one user.
        cat > "$tree/etc/passwd" <<'END'
root:x:0:0:root:/:/sbin/nologin
postgres:x:1000:1000:PostgreSQL:/pgdata:/sbin/nologin
END
        cat > "$tree/etc/group" <<'END'
root:x:0:
postgres:x:1000:
END
        # Same bytes for the same content.
        find "$tree" -exec touch -h -d @0 {} +
        (cd "$tree" && find . -mindepth 1 | LC_ALL=C sort |
            cpio --quiet --reproducible -o -H newc -R 0:0 > "$out/boot.cpio")
        finish
    fi
    boot=$out
}
