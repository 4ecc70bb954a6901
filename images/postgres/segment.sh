# Sourced by the recipe: compiles the tools of images/segment. build_segment sets $segment, the folder where `gcc -B` finds
# the assembler; build_segment_finish sets $segment_finish, the pass after the linker, a step of its own since what is
# compiled does not depend on it.
#
# A stack protector's canary would be relative to %fs.
segment_source=$here/../segment/src
segment_cflags="-fno-stack-protector"

segment_tool() { # its source, its name
    logged rustc --edition 2024 -C opt-level=2 -o "$out/$2" "$segment_source/$1"
}

build_segment() {
    if begin segment "$segment_source/as.rs" "$segment_source/rewrite.rs"; then
        segment_tool as.rs as
        finish
    fi
    segment=$out
    segment_key=$key
}

build_segment_finish() {
    if begin segment-finish "$segment_source"; then
        segment_tool finish.rs finish
        finish
    fi
    segment_finish=$out/finish
    segment_finish_key=$key
}
