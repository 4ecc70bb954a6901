//! Cargo does not know of the linker's script.

fn main() {
    println!("cargo::rerun-if-changed=kernel.ld");
}
