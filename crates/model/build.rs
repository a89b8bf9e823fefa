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
    for (path, cfg) in NEEDED {
        println!("cargo::rustc-check-cfg=cfg({cfg})");
        println!("cargo::rerun-if-changed={path}");
        if Path::new(path).exists() {
            println!("cargo::rustc-cfg={cfg}");
        }
    }
}
