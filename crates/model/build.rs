//! Tells the tests what lies beside the repository or was downloaded into it: a test is ignored where what it needs is not
//! there.

use std::path::Path;

/// Path and the `cfg` that says it is there.
const NEEDED: [(&str, &str); 3] = [
    ("../../../shared/data/stories260k", "has_shared"),
    (
        "../../data/downloads/SmolLM2-135M-Instruct.Q4_1.gguf",
        "has_smollm2",
    ),
    (
        "../../data/downloads/gemma-3-270m.Q4_K_M.gguf",
        "has_gemma3",
    ),
];

fn main() {
    // A path that is not there is not watched: cargo would take it as changed and compile everything again each time.
    // `scripts/fetch_models.sh` touches this file instead.
    println!("cargo::rerun-if-changed=build.rs");
    for (path, cfg) in NEEDED {
        println!("cargo::rustc-check-cfg=cfg({cfg})");
        if Path::new(path).exists() {
            println!("cargo::rerun-if-changed={path}");
            println!("cargo::rustc-cfg={cfg}");
        }
    }
}
