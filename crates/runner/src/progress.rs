//! Progress on stderr, hidden off a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar of `len` steps.
pub(crate) fn bar(len: u64, name: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {eta} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(len).with_style(style).with_prefix(name)
}
