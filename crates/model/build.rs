//! Tells the tests whether `shared/` lies beside the repository: a test that needs it is ignored where it does not.

use std::path::Path;

fn main() {
    let needed = "../../../shared/data/stories260k";
    println!("cargo::rustc-check-cfg=cfg(has_shared)");
    println!("cargo::rerun-if-changed={needed}");
    if Path::new(needed).exists() {
        println!("cargo::rustc-cfg=has_shared");
    }
}
