//! The modules of this crate stand in a line: each uses only those below it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

#[test]
fn no_modules_use_each_other_in_a_circle() {
    let mut uses = BTreeMap::new();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in fs::read_dir(src).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        read(&path, uses.entry(name).or_default());
    }
    assert!(uses["decode"].contains("run"), "{uses:?}");
    for (name, used) in &mut uses {
        used.remove(name);
    }
    // Take away what stands on nothing that is left, until nothing is.
    loop {
        let left: BTreeSet<String> = uses.keys().cloned().collect();
        uses.retain(|_, used| !used.is_disjoint(&left));
        if uses.len() == left.len() {
            break;
        }
    }
    assert!(uses.is_empty(), "in or above a circle: {uses:?}");
}

/// The modules that a file, or the files of a folder, use.
fn read(path: &Path, uses: &mut BTreeSet<String>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            read(&entry.unwrap().path(), uses);
        }
        return;
    }
    let text = fs::read_to_string(path).unwrap();
    let used = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("use crate::"));
    let modules = used.filter_map(|used| used.split([':', ';']).next());
    uses.extend(modules.map(str::to_owned));
}
