//! `skipbench report`: folders in, tables and plots out.

use crate::support::{assert_names, checkpoint, refused, repository, skipbench, stdout};
use std::path::{Path, PathBuf};

/// Runs a small experiment; gives its YAML and the folder of the run.
fn run(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
    let (yaml, out) = (dir.join(format!("{name}.yaml")), dir.join(name));
    let text = format!(
        "name: {name}\nmodels: [{{name: base, path: {:?}}}]\ntasks: [{{builtin: translation, prompts: 3, max-new-tokens: 6}}]\nstrategies: [unified, top]\nspeedups: [2]\ntiming: {{batches: 2, repeats: 1, warm-up: 0, new-tokens: 3}}\n",
        checkpoint().canonicalize().unwrap()
    );
    std::fs::write(&yaml, text).unwrap();
    stdout(skipbench().arg("run").arg(&yaml).arg("--out").arg(&out));
    (yaml, out)
}

fn report(dir: &Path) -> assert_cmd::Command {
    let mut command = skipbench();
    command.arg("report").arg(dir);
    command
}

fn edit_cells(out: &Path, edit: impl FnOnce(&mut Vec<String>)) {
    let path = out.join("cells.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut lines = text.lines().map(str::to_owned).collect();
    edit(&mut lines);
    std::fs::write(&path, lines.join("\n") + "\n").unwrap();
}

#[test]
fn a_run_is_drawn_again_and_what_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (_, out) = run(dir.path(), "small");
    let table = std::fs::read(out.join("table.md")).unwrap();
    std::fs::remove_file(out.join("table.md")).unwrap();
    let printed = stdout(&mut report(&out));
    assert!(!printed.contains("no result yet"), "{printed}");
    assert_eq!(std::fs::read(out.join("table.md")).unwrap(), table);

    // A broken line costs its own cell.
    edit_cells(&out, |lines| lines[1].truncate(40));
    let assert = report(&out).assert().success();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (printed, said) = (
        text(&assert.get_output().stdout),
        text(&assert.get_output().stderr),
    );
    assert_names(
        &printed,
        &["1 of 3 cells of small have no result yet: base translation batch 1 unified@2"],
    );
    assert_names(&said, &["cells.jsonl: line 2 cannot be read"]);
    // All of them are gone: there is nothing to draw, and that is said.
    edit_cells(&out, Vec::clear);
    assert_names(
        &stdout(&mut report(&out)),
        &["3 of 3 cells of small have no result yet"],
    );
}

#[test]
fn runs_stand_side_by_side_and_are_written_where_they_are_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let ((_, old), (_, new)) = (run(dir.path(), "old"), run(dir.path(), "new"));
    for out in [&old, &new] {
        std::fs::remove_file(out.join("table.md")).unwrap();
    }
    let printed = stdout(report(&old).arg(&new));
    assert_names(&printed, &["run", "old", "new", "unified@2"]);
    assert!(!old.join("table.md").exists() && !new.join("table.md").exists());
    let both = dir.path().join("both");
    stdout(report(&old).arg(&new).arg("--out").arg(&both));
    let csv = std::fs::read_to_string(both.join("results.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + 2 * 3);
    let error = refused(
        report(&old)
            .arg(&new)
            .arg("--archive")
            .arg(dir.path().join("archive")),
    );
    assert_names(&error, &["--archive takes one run"]);
}

#[test]
fn what_is_no_run_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let (yaml, out) = run(dir.path(), "small");
    assert_names(
        &refused(&mut report(&yaml)),
        &["small.yaml is a file", "runs/small"],
    );
    assert_names(
        &refused(&mut report(dir.path())),
        &["holds no run", "run.json", "skipbench run"],
    );
    assert_names(
        &refused(&mut report(&dir.path().join("nowhere"))),
        &["nowhere holds no run"],
    );
    let error = refused(report(&out).arg("--archive").arg(&out));
    assert_names(&error, &["something else than an archive", "empty folder"]);
    // As of the time before records had a version.
    std::fs::write(out.join("run.json"), "{\"experiment\": {}}").unwrap();
    assert_names(
        &refused(&mut report(&out)),
        &["run.json was written by an older skipbench"],
    );
}

/// Every archive of this repository draws its own tables again.
#[test]
fn archives_draw_their_own_tables_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut drawn = 0;
    for entry in std::fs::read_dir(repository().join("reports")).unwrap() {
        let archive = entry.unwrap().path();
        if !archive.join("run.json").is_file() {
            continue;
        }
        let out = dir.path().join(archive.file_name().unwrap());
        stdout(
            skipbench()
                .arg("report")
                .arg(&archive)
                .arg("--out")
                .arg(&out),
        );
        for name in ["table.md", "results.csv"] {
            let (kept, again) = (archive.join(name), out.join(name));
            let read = |path: &Path| std::fs::read_to_string(path).unwrap();
            // Its name stands in no file, so that it may be called anything.
            assert_eq!(read(&kept), read(&again), "{}", kept.display());
        }
        drawn += 1;
    }
    assert!(drawn > 0, "there are archives");
}
