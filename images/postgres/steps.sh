# Sourced by the recipe: steps whose result lies in CACHE/NAME-KEY, where KEY is a hash of everything that goes in.
#
#   begin NAME INPUT...   sets $out to the step's folder; true if the step must run. An INPUT that is a file or a
#                         folder counts with its content, anything else as itself. The key of the result is $key.
#   finish                marks the result complete.
#
# A folder without its `.done` is the rest of a run that was cut short, and is removed. Results are built in place,
# not renamed, since some of them know their own path.

say() { printf 'images: %s\n' "$*" >&2; }

# Fetches source packages, of which source_of then tells the folders.
fetch() {
    sources=$("$here/fetch.sh" "$cache" "$@" 2> "$cache/fetch.log") || { cat "$cache/fetch.log" >&2; exit 1; }
}

source_of() { printf '%s\n' "$sources" | grep "/$1-[^/]*$"; }

key_of() {
    for input in "$@"; do
        if [ -d "$input" ]; then
            (cd "$input" && find . -type f | LC_ALL=C sort | xargs sha256sum)
        elif [ -f "$input" ]; then
            sha256sum < "$input"
        else
            printf '%s\n' "$input"
        fi
    done | sha256sum | cut -c 1-16
}

begin() {
    step_name=$1
    shift
    key=$(key_of "$@")
    out=$cache/$step_name-$key
    if [ -f "$out/.done" ]; then
        touch "$out/.done"
        say "$step_name: as before"
        return 1
    fi
    say "$step_name: starting"
    rm -rf "$out"
    mkdir -p "$out"
    step_start=$(date +%s)
    log=$cache/log/$step_name
    mkdir -p "$cache/log"
    : > "$log"
}

# Runs a command with its output in the step's log, of which the end is shown if it fails.
logged() {
    if ! "$@" >> "$log" 2>&1; then
        tail -n 40 "$log" >&2
        say "$step_name: failed in: $(printf '%s' "$*" | cut -c 1-200)"
        exit 1
    fi
}

# The folders of modules.list below one folder of PostgreSQL's source, of which this major version has a copy.
modules_below() {
    awk -v below="$1/" -v major="$pg_major" '
        /^[^#]/ && index($1, below) == 1 && ($2 == "" || $2 <= major) { print $1 }' "$here/modules.list"
}

finish() {
    touch "$out/.done"
    say "$step_name: done in $(($(date +%s) - step_start)) s"
}
