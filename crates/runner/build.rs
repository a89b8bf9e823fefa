//! Fixes at build time what the binary says of itself: the commit of its source and the features built in.

use std::path::Path;
use std::process::Command;

fn main() {
    let root = Path::new("../..");
    for watched in ["crates", "Cargo.lock", "Cargo.toml"] {
        println!("cargo:rerun-if-changed={}", root.join(watched).display());
    }
    // A commit moves the log of HEAD, a checkout HEAD itself; a worktree has a git folder of its own.
    if let Some(git) = git(&["rev-parse", "--git-dir"]) {
        for watched in ["HEAD", "logs/HEAD"] {
            let watched = Path::new(&git).join(watched);
            // One that is not there would count as changed at every build.
            if watched.exists() {
                println!("cargo:rerun-if-changed={}", watched.display());
            }
        }
    }
    let dirty = git(&[
        "status",
        "--porcelain",
        "--",
        "../../crates",
        "../../Cargo.lock",
    ]);
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).map(|commit| match dirty {
        Some(_) => commit + "-dirty",
        None => commit,
    });
    println!(
        "cargo:rustc-env=SKIPBENCH_COMMIT={}",
        commit.unwrap_or_default()
    );
    let features = ["cuda"].into_iter().filter(|feature| {
        std::env::var_os(format!("CARGO_FEATURE_{}", feature.to_uppercase())).is_some()
    });
    let features: Vec<&str> = features.collect();
    println!("cargo:rustc-env=SKIPBENCH_FEATURES={}", features.join(","));
}

/// What git says, if it says anything.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
