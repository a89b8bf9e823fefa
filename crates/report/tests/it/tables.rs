//! Tables: what they show, and how rows are compared.

use crate::support::{Cell, answers, cell, cells, gpu, info, machine, planned, run, write};
use skipbench_record::Run;
use skipbench_report::{Report, Row};

fn find<'r, 'a>(report: &'r Report<'a>, label: &str) -> &'r Row<'a> {
    report.rows().find(|row| row.label() == label).unwrap()
}

/// The line of a table that begins with this.
fn line(text: &str, start: &str) -> String {
    let mut lines = text.lines().filter(|line| line.starts_with(start));
    lines
        .next()
        .unwrap_or_else(|| panic!("{start} in\n{text}"))
        .to_owned()
}

#[test]
fn every_form() {
    let (_dir, runs) = run(&cells());
    let report = Report::of(&runs).unwrap();
    insta::assert_snapshot!("terminal", report.terminal());
    insta::assert_snapshot!("markdown", report.markdown());
    insta::assert_snapshot!("latex", report.latex());
}

#[test]
fn latex_has_as_many_cells_in_a_row_as_columns() {
    let (_dir, runs) = run(&cells());
    let text = Report::of(&runs).unwrap().latex();
    let mut columns = 0;
    let mut rows = 0;
    for line in text.lines() {
        if let Some(spec) = line.strip_prefix("\\begin{tabular}{") {
            columns = spec.trim_end_matches('}').len();
        } else if line.ends_with("\\\\") {
            let separators = line.matches('&').count() - line.matches("\\&").count();
            assert_eq!(separators + 1, columns, "{line}");
            rows += 1;
        }
    }
    // The cells, each with its costs too, and four headings.
    assert_eq!(rows, 2 * cells().len() + 4);
    for (open, close) in [
        ("\\begin{", "\\end{"),
        ("{", "}"),
        ("\\toprule", "\\bottomrule"),
    ] {
        assert_eq!(
            text.matches(open).count(),
            text.matches(close).count(),
            "{open}"
        );
    }
}

#[test]
fn scores_are_of_answers_and_references_by_id() {
    let mut swapped = cells();
    for cell in &mut swapped {
        cell.answers.reverse();
    }
    let (_a, straight) = run(&cells());
    let (_b, reversed) = run(&swapped);
    let (straight, reversed) = (
        Report::of(&straight).unwrap(),
        Report::of(&reversed).unwrap(),
    );
    assert_eq!(straight.markdown(), reversed.markdown());
    let full = find(&straight, "full").score("bleu").unwrap();
    assert!(full.score > 60.0 && full.score < 100.0 && full.p_value.is_none());
    assert!(
        find(&straight, "unified@3")
            .score("bleu")
            .unwrap()
            .p_value
            .is_some()
    );
}

#[test]
fn the_share_of_same_answers_is_the_full_networks() {
    let same = |label: &str, wrong: usize| {
        let cells = [
            cell("full", None, 1, &answers(0, 0)),
            cell(label, Some(2.0), 1, &answers(wrong, 1)),
        ];
        let (_dir, runs) = run(&cells);
        let report = Report::of(&runs).unwrap();
        let row = find(&report, label);
        (row.same_as_full.unwrap(), row.notes.join("; "))
    };
    assert_eq!(same("unified@2", 1), (0.75, String::new()));
    assert_eq!(same("self-speculative@2", 0), (1.0, String::new()));
    let (share, note) = same("self-speculative@2", 2);
    assert_eq!(share, 0.5);
    assert!(
        note.starts_with("2 of 4 answers differ from the full network's"),
        "{note}"
    );
}

#[test]
fn a_failed_cell_stands_in_its_table_with_its_reason() {
    let (_dir, runs) = run(&cells());
    let report = Report::of(&runs).unwrap();
    for text in [report.markdown(), report.terminal(), report.latex()] {
        assert!(text.contains("early-exit:cosine@3 (failed)"), "{text}");
        let reason = "early-exit:cosine@3: failed: out of memory: 8 rows";
        assert!(text.contains(reason), "{text}");
    }
}

#[test]
fn missing_cells_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let all = cells();
    write(dir.path(), &info("by-hand", &all), &all[..8]);
    let runs = [Run::read(dir.path()).unwrap()];
    let text = Report::of(&runs).unwrap().terminal();
    assert_eq!(
        line(&text, "Note: 2 of"),
        "Note: 2 of 10 cells of by-hand have no result yet: tiny copying batch 8 unified@3; tiny copying batch 8 \
         early-exit:cosine@3."
    );
}

#[test]
fn failed_prompts_are_counted_and_their_reason_is_given() {
    let mut cells = vec![cell("full", None, 1, &answers(0, 0))];
    let answer = &mut cells[0].answers[2];
    (answer.text, answer.error) = (String::new(), Some("too long".to_owned()));
    cells[0].record.quality.as_mut().unwrap().failed = 1;
    let (_dir, runs) = run(&cells);
    let text = Report::of(&runs).unwrap().markdown();
    let note =
        "- full: 1 of 4 prompts failed and count as empty answers; the first is p2: too long";
    assert_eq!(line(&text, "- full:"), note);
}

#[test]
fn where_nothing_was_decoded_nothing_is_invented() {
    let mut cells = vec![
        cell("full", None, 1, &answers(0, 0)),
        cell("unified@2", Some(2.0), 1, &answers(0, 0)),
    ];
    let quality = cells[1].record.quality.as_mut().unwrap();
    (quality.decoded_tokens, quality.layers_per_token) = (0, None);
    quality.ledger = Default::default();
    let (_dir, runs) = run(&cells);
    let text = Report::of(&runs).unwrap().markdown();
    let cells: Vec<String> = line(&text, "| unified@2 ")
        .split('|')
        .map(|cell| cell.trim().to_owned())
        .collect();
    assert_eq!(cells[2..6], ["2x", "-", "-", "2.00x [1.81, 2.21]"]);
}

#[test]
fn a_random_band_is_one_row_and_marks_what_is_no_better() {
    let mut cells = vec![
        cell("full", None, 1, &answers(0, 0)),
        cell("unified@2", Some(2.0), 1, &answers(3, 3)),
        cell("top@2", Some(2.0), 1, &answers(1, 1)),
    ];
    for seed in 0..5usize {
        let set = cell(
            &format!("random@2 {{seed: {seed}}}"),
            Some(2.0),
            1,
            &answers(3, 2 + seed / 2),
        );
        cells.push(if seed == 0 { set } else { set.untimed() });
    }
    let (_dir, runs) = run(&cells);
    let report = Report::of(&runs).unwrap();
    let text = report.markdown();
    assert!(
        line(&text, "| random@2 (5 sets) | 2x |").contains("2.00x ["),
        "{text}"
    );
    let mut scores: Vec<f64> = report
        .rows()
        .filter(|row| row.band.is_some())
        .map(|row| row.scores[0].score)
        .collect();
    scores.sort_by(f64::total_cmp);
    let median = format!(" {:.1} [", scores[2]);
    assert!(
        line(&text, "| random@2 (5").contains(&median),
        "{median} in {text}"
    );
    assert!(
        line(&text, "| unified@2").contains("°"),
        "within the band: {text}"
    );
    assert!(!line(&text, "| top@2").contains("°"), "above it: {text}");
    assert!(!text.contains("{seed"), "{text}");
    assert!(text.contains("`°`: no better than random sets"));

    cells.truncate(5);
    let (_dir, runs) = run(&cells);
    let text = Report::of(&runs).unwrap().markdown();
    assert!(
        text.contains("random@2 {seed: 1}") && !text.contains('°'),
        "two sets are no band: {text}"
    );
}

#[test]
fn a_full_row_that_is_not_once_itself_is_a_warning() {
    let steady = cell("full", None, 1, &answers(0, 0));
    let mut unsteady = cell("full", None, 8, &answers(0, 0));
    for block in &mut unsteady.record.timing.as_mut().unwrap().blocks {
        block
            .strategy
            .step_s
            .iter_mut()
            .for_each(|seconds| *seconds *= 2.0);
    }
    let (_dir, runs) = run(&[steady, unsteady]);
    let report = Report::of(&runs).unwrap();
    let notes: Vec<usize> = report.rows().map(|row| row.notes.len()).collect();
    assert_eq!(notes, [0, 1]);
    assert!(
        report
            .markdown()
            .contains("- full: its speedup over itself is not 1")
    );
}

#[test]
fn rows_of_two_machines_stand_in_one_table_with_their_machine() {
    let mut cells: Vec<Cell> = Vec::new();
    // Both strategies answer in the same way on each machine, and in another one on the other.
    for (machine, wrong) in [(machine(2), 0), (gpu(), 2)] {
        let answers = answers(wrong, 2);
        cells.push(cell("full", None, 1, &answers).on(&machine));
        cells.push(cell("unified@2", Some(2.0), 1, &answers).on(&machine));
    }
    let (_dir, runs) = run(&cells);
    let report = Report::of(&runs).unwrap();
    let text = report.markdown();
    assert!(
        text.contains("- machine 1: Abacus 3000, 4 cores, 2 threads"),
        "{text}"
    );
    assert!(
        text.contains("- machine 2: Abacus GPU, 16 GiB, driver 1.2; host Abacus 3000"),
        "{text}"
    );
    for row in [
        "| strategy | machine |",
        "| full | 1 |",
        "| full | 2 |",
        "| unified@2 | 1 |",
        "| unified@2 | 2 |",
    ] {
        line(&text, row);
    }
    // Each is compared with the full network of its own machine.
    for row in report.rows() {
        assert_eq!(row.same_as_full, Some(1.0));
        assert_eq!(
            row.scores[0].p_value,
            (!row.record.strategy.is_full).then_some(1.0)
        );
    }
    let (_dir, runs) = run(&cells[..2]);
    let text = Report::of(&runs).unwrap().markdown();
    assert!(text.contains("- machine: Abacus 3000, 4 cores, 2 threads"));
    line(&text, "| full | - |");
}

#[test]
fn runs_stand_side_by_side_and_each_is_compared_with_its_own_full_network() {
    let old = [
        cell("full", None, 1, &answers(0, 0)),
        cell("unified@2", Some(2.0), 1, &answers(2, 2)),
    ];
    let new = [
        cell("full", None, 1, &answers(0, 0)),
        cell("unified@2", Some(2.0), 1, &answers(2, 3)),
        cell("top@2", Some(2.0), 1, &answers(4, 4)),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (name, cells) in [("old", &old[..]), ("new", &new[..])] {
        write(&dir.path().join(name), &info(name, cells), cells);
    }
    let runs = ["old", "new"].map(|name| Run::read(&dir.path().join(name)).unwrap());
    let report = Report::of(&runs).unwrap();
    let text = report.markdown();
    for row in [
        "| strategy | run |",
        "| full | old |",
        "| full | new |",
        "| unified@2 | old |",
        "| unified@2 | new |",
        "| top@2 | new |",
    ] {
        line(&text, row);
    }
    let tested: Vec<bool> = report
        .rows()
        .map(|row| row.scores[0].p_value.is_some())
        .collect();
    assert_eq!(tested, [false, true, false, true, true]);
    assert_eq!(text.matches("## copying").count(), 1);
}

#[test]
fn shards_of_one_experiment_are_one_run() {
    let all = cells();
    let dir = tempfile::tempdir().unwrap();
    for (shard, name) in ["a", "b"].into_iter().enumerate() {
        let part: Vec<Cell> = cells().into_iter().skip(shard).step_by(2).collect();
        write(&dir.path().join(name), &info("by-hand", &all), &part);
    }
    let shards = ["a", "b"].map(|name| Run::read(&dir.path().join(name)).unwrap());
    assert!(Report::of(&shards).unwrap().markdown().contains("| run |"));
    let joined = Run::join_shards(shards.to_vec());
    assert_eq!(joined.len(), 1);
    let (_dir, whole) = run(&all);
    assert_eq!(
        Report::of(&joined).unwrap().markdown(),
        Report::of(&whole).unwrap().markdown()
    );
    assert_eq!(joined[0].info.cells, planned(&all));
    // The same cells twice are two runs.
    assert_eq!(
        Run::join_shards(vec![whole[0].clone(), whole[0].clone()]).len(),
        2
    );
}
