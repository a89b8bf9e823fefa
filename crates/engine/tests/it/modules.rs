//! The modules of this crate stand in a line: each uses only those below it.

use std::collections::BTreeMap;
use std::path::Path;

#[test]
fn no_modules_use_each_other_in_a_circle() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut uses: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in std::fs::read_dir(src).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let used = text
            .lines()
            .filter_map(|line| line.strip_prefix("use crate::"));
        let module = |used: &str| used.split([':', ';']).next().unwrap().to_owned();
        uses.insert(name, used.map(module).collect());
    }
    assert!(uses["decode"].contains(&"run".to_owned()), "{uses:?}");
    // Take away what stands on nothing that is left, until nothing is.
    loop {
        let bottom: Vec<String> = uses
            .iter()
            .filter(|(_, used)| !used.iter().any(|module| uses.contains_key(module)))
            .map(|(name, _)| name.clone())
            .collect();
        if bottom.is_empty() {
            break;
        }
        uses.retain(|name, _| !bottom.contains(name));
    }
    assert!(uses.is_empty(), "in or above a circle: {uses:?}");
}
