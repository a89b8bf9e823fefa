//! The files that a report leaves.

use crate::support::{answers, cell, cells, info, run, write};
use polars_core::prelude::AnyValue;
use polars_io::prelude::{CsvWriter, ParquetReader, SerReader, SerWriter};
use skipbench_record::{RecordError, Run};
use skipbench_report::Report;
use std::fs::read_to_string;
use std::path::Path;

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.unwrap().file_name().into_string().unwrap()
    };
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    names
}

#[test]
fn every_file_is_written_and_no_temporary_one_stays() {
    let (_run, runs) = run(&cells());
    let dir = tempfile::tempdir().unwrap();
    let mut paths = Report::of(&runs).unwrap().write(dir.path()).unwrap();
    insta::assert_snapshot!(
        "files",
        [names(dir.path()), names(&dir.path().join("plots"))]
            .concat()
            .join("\n")
    );
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), 5 + 2 * 5);
    assert!(paths.iter().all(|path| path.is_file()));
    insta::assert_snapshot!(
        "csv",
        read_to_string(dir.path().join("results.csv")).unwrap()
    );
    assert_eq!(
        read_to_string(dir.path().join("table.md")).unwrap(),
        Report::of(&runs).unwrap().markdown()
    );
    for name in names(&dir.path().join("plots"))
        .iter()
        .filter(|name| name.ends_with(".png"))
    {
        let png = std::fs::read(dir.path().join("plots").join(name)).unwrap();
        // Signature, then width and height in the header.
        assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n", "{name}");
        assert_eq!(&png[16..24], [0, 0, 6, 184, 0, 0, 3, 192], "{name}");
    }
}

#[test]
fn parquet_holds_what_the_csv_holds() {
    let mut cells = cells();
    cells.push(cell("top@2", Some(2.0), 1, &answers(1, 1)).untimed());
    let (_run, runs) = run(&cells);
    let dir = tempfile::tempdir().unwrap();
    Report::of(&runs).unwrap().write(dir.path()).unwrap();
    let file = std::fs::File::open(dir.path().join("results.parquet")).unwrap();
    let mut parquet = ParquetReader::new(file).finish().unwrap();
    assert_eq!(parquet.height(), cells.len());
    let mut again = Vec::new();
    CsvWriter::new(&mut again).finish(&mut parquet).unwrap();
    assert_eq!(
        String::from_utf8(again).unwrap(),
        read_to_string(dir.path().join("results.csv")).unwrap()
    );
    // The cell that was not timed, and the one that failed.
    assert_eq!(parquet.column("achieved_speedup").unwrap().null_count(), 2);
    let beams = parquet.column("beams").unwrap();
    assert_eq!(beams.get(0).unwrap(), AnyValue::UInt64(1));
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let (_run, runs) = run(&cells()[..2]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("taken");
    std::fs::write(&file, "").unwrap();
    let error = Report::of(&runs)
        .unwrap()
        .write(&file)
        .unwrap_err()
        .to_string();
    assert!(error.contains("taken"), "{error}");
}

#[test]
fn a_run_without_any_result_says_so() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &info("by-hand", &cells()), &[]);
    let runs = [Run::read(dir.path()).unwrap()];
    let report = Report::of(&runs).unwrap();
    report.write(dir.path()).unwrap();
    assert!(
        report
            .terminal()
            .contains("10 of 10 cells of by-hand have no result yet")
    );
    let csv = read_to_string(dir.path().join("results.csv")).unwrap();
    assert!(csv.starts_with("experiment,model,") && csv.lines().count() == 1);
}

fn archive(runs: &[Run; 1], dir: &Path) {
    runs[0].archive(dir).unwrap();
    Report::of(runs).unwrap().write_archive(dir).unwrap();
}

#[test]
fn an_archive_stands_alone_and_is_drawn_again_to_the_byte() {
    let mut all = cells();
    // What does not count is not archived: an earlier result of a cell.
    all.insert(0, cell("full", None, 1, &answers(2, 2)));
    let (run_dir, runs) = run(&all);
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    archive(&runs, &first);
    insta::assert_snapshot!(
        "archive",
        [names(&first), names(&first.join("plots"))]
            .concat()
            .join("\n")
    );
    drop(run_dir);

    let again = [Run::read(&first).unwrap()];
    assert!(again[0].is_archive() && again[0].warnings.is_empty());
    assert_eq!(again[0].records.len(), all.len() - 1);
    archive(&again, &second);
    let plots = names(&first.join("plots"))
        .into_iter()
        .map(|name| format!("plots/{name}"));
    let files = names(&first).into_iter().filter(|name| name != "plots");
    for name in files.chain(plots) {
        let bytes = |dir: &Path| std::fs::read(dir.join(&name)).unwrap();
        assert!(bytes(&first) == bytes(&second), "{name}");
    }
    // Over itself too: an archive can be drawn in its place.
    archive(&again, &first);
}

#[test]
fn an_archive_overwrites_nothing_else() {
    let (run_dir, runs) = run(&cells()[..2]);
    let error = runs[0].archive(run_dir.path()).unwrap_err();
    assert!(matches!(error, RecordError::Taken { .. }), "{error}");
    let dir = tempfile::tempdir().unwrap();
    archive(&runs, dir.path());
    let other = tempfile::tempdir().unwrap();
    write(other.path(), &info("other", &cells()[..1]), &cells()[..1]);
    let error = Run::read(other.path())
        .unwrap()
        .archive(dir.path())
        .unwrap_err();
    assert!(
        error.to_string().contains("holds something else"),
        "{error}"
    );
}
