//! Puts the built console and the build's name into the binary.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    let top = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("..");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    console(&top, &out);
    build_name(&top);
    println!("cargo::rerun-if-changed=build.rs");
}

/// A table of the files of `web/dist`, empty if the console was not built.
fn console(top: &Path, out: &Path) {
    let dist = top.join("web/dist");
    // A missing path would be "changed" at every build, so the folder above stands in for it.
    let watched = if dist.exists() { &dist } else { &top.join("web") };
    println!("cargo::rerun-if-changed={}", watched.display());
    let mut files = Vec::new();
    collect(&dist, &dist, &mut files);
    files.sort();
    let mut text = String::from("/// The console's files: path from its root, content.\nstatic FILES: &[(&str, &[u8])] = &[\n");
    for (name, path) in files {
        let _ = writeln!(text, "    ({name:?}, include_bytes!({path:?})),");
    }
    text.push_str("];\n");
    if let Err(error) = fs::write(out.join("console.rs"), text) {
        panic!("the console's table cannot be written: {error}");
    }
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<(String, PathBuf)>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|e| e.path()) {
        if path.is_dir() {
            collect(root, &path, files);
        } else if let (Ok(name), Ok(whole)) = (path.strip_prefix(root), path.canonicalize()) {
            files.push((name.to_string_lossy().into_owned(), whole));
        }
    }
}

/// `DORMOUSE_BUILD`: the commit, with a mark if the tree differs from it.
fn build_name(top: &Path) {
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(top).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let name = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=DORMOUSE_BUILD={name}");
    // Its log changes with every commit; HEAD itself names a branch and does not.
    let head = top.join(".git/logs/HEAD");
    if head.exists() {
        println!("cargo::rerun-if-changed={}", head.display());
    }
}
