//! The page that documents the columns.

use skipbench_report::COLUMNS;
use std::collections::HashSet;
use std::path::Path;

const HEAD: &str = "# Columns of `results.csv` and `results.parquet`

A row is the result of one cell. A field is empty where there is nothing to say: nothing was timed, nothing was decoded, the
machine does not count it. `{metric}` stands for the name of each metric; those of `bleu`, `chrf`, `rouge1`, `rouge2`, `rougeL`
and `rougeLsum` are always there, so that files of different experiments can be stacked.

| column | unit | meaning |
| --- | --- | --- |
";

/// `SKIPBENCH_UPDATE_DOCS=1` writes the page again.
#[test]
fn every_column_is_documented() {
    let mut page = HEAD.to_owned();
    for column in COLUMNS {
        page.push_str(&format!(
            "| `{}` | {} | {} |\n",
            column.name, column.unit, column.doc
        ));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/columns.md");
    if std::env::var_os("SKIPBENCH_UPDATE_DOCS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/columns.md is not up to date: run this test with SKIPBENCH_UPDATE_DOCS=1"
    );
}

#[test]
fn names_are_unique_and_docs_are_one_line() {
    let mut names = HashSet::new();
    for column in COLUMNS {
        assert!(names.insert(column.name), "{} stands twice", column.name);
        let doc = column.doc;
        assert!(!doc.is_empty() && !doc.contains(['\n', '|']), "{doc}");
        assert!(!doc.ends_with('.'), "the legend adds it: {doc}");
    }
}
