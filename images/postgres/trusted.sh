# Sourced by the recipe: marks the extensions of trusted.list as trusted, PostgreSQL's own way to let the owner of a
# database create them, with their scripts run by the superuser.

trust_extensions() { # folder with control files and scripts
    for name in $(grep -v '^#' "$here/trusted.list"); do
        control=$1/$name.control
        # Some are not part of every version.
        [ -f "$control" ] || continue
        grep -q '^trusted' "$control" || echo 'trusted = true' >> "$control"
        version=$(sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" "$control")
        [ -n "$version" ] || { say "$control: no default_version"; return 1; }
        # Whichever script is the last on the way to the default version.
        for script in "$1/$name--$version.sql" "$1/$name--"*"--$version.sql"; do
            [ ! -f "$script" ] || sed "s/@extname@/$name/g" "$here/trusted.sql" >> "$script"
        done
    done
}
