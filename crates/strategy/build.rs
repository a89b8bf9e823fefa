//! Tells the tests whether `shared/` lies beside the repository: a test that needs it is ignored where it does not.

use std::path::Path;

fn main() {
    let needed = "../../../shared/golden/unified_layers.json";
    println!("cargo::rustc-check-cfg=cfg(has_shared)");
    // A path that is not there is not watched: cargo would take it as changed and compile everything again each time.
    println!("cargo::rerun-if-changed=build.rs");
    if Path::new(needed).exists() {
        println!("cargo::rerun-if-changed={needed}");
        println!("cargo::rustc-cfg=has_shared");
    }
}
