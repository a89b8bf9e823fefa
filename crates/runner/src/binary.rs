//! What the running program says of itself.

use sha2::{Digest, Sha256};
use skipbench_record::Binary;
use std::sync::OnceLock;

/// The running program. Version, commit and features were fixed when it was built; the digest is that of the executable,
/// so that two builds of one commit, or a program with strategies of its own, are told apart.
pub(crate) fn this() -> &'static Binary {
    static THIS: OnceLock<Binary> = OnceLock::new();
    THIS.get_or_init(|| Binary {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: Some(env!("SKIPBENCH_COMMIT"))
            .filter(|commit| !commit.is_empty())
            .map(str::to_owned),
        features: env!("SKIPBENCH_FEATURES")
            .split(',')
            .filter(|feature| !feature.is_empty())
            .map(str::to_owned)
            .collect(),
        digest: executable_digest().unwrap_or_default(),
    })
}

/// The first 16 hexadecimal digits of the executable's SHA-256; `None` where it cannot be read any more.
fn executable_digest() -> Option<String> {
    // The link stays readable where the file was replaced while it ran.
    let running = std::fs::read("/proc/self/exe");
    let bytes = running
        .or_else(|_| std::fs::read(std::env::current_exe()?))
        .ok()?;
    Some(format!("{:x}", Sha256::digest(bytes))[..16].to_owned())
}
