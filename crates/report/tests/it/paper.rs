//! A paper's table beside a run's figures.

use crate::support::{Cell, answers, cell, info, write};
use crate::svg::Drawing;
use serde_json::json;
use skipbench_record::{Beside, Run};
use skipbench_report::{Report, Row};

/// A paper on a model of 16 layers, as the runs here have it.
fn beside(fine_tuning: Option<&str>) -> Beside {
    let paper = json!({
        "title": "Table 1 of a paper",
        "source": "read off its page",
        "metric": "bleu",
        "setting": {
            "model": {"name": "Tiny", "layers": 16},
            "fine-tuning": "for its schedule",
            "data": {"name": "Copies", "prompts": {"copying": 4}},
            "search": {"beams": 1, "no-repeat-ngram": 0, "max-new-tokens": 16},
            "dtype": "f32",
            "hardware": {"name": "a big GPU", "gpu": "Big"},
            "length": "as it comes",
        },
        "rows": [
            {"approach": "Full", "strategy": "full", "target": 1.0, "score": 40.0, "tokens-per-s": {"1": 50.0, "8": 200.0}},
            {"approach": "Exit", "strategy": "early-exit", "target": 2.0, "score": 30.0, "tokens-per-s": {"1": 70.0}},
            {"approach": "Unified", "strategy": "unified", "target": 2.0, "score": 36.0, "tokens-per-s": {"1": 90.0, "8": 320.0}},
            {"approach": "Unified", "strategy": "unified", "target": 5.0, "score": 20.0, "tokens-per-s": {"1": 150.0, "8": 400.0}},
        ],
    });
    Beside {
        paper: serde_json::from_value(paper).unwrap(),
        fine_tuning: fine_tuning.map(str::to_owned),
        full_of: None,
    }
}

fn run(cells: &[Cell], beside: Beside) -> (tempfile::TempDir, [Run; 1]) {
    let dir = tempfile::tempdir().unwrap();
    let mut info = info("by-hand", cells);
    info.paper = Some(beside);
    write(dir.path(), &info, cells);
    let run = Run::read(dir.path()).unwrap();
    (dir, [run])
}

/// Two batch sizes of three strategies, one of which the paper has not.
fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for batch in [1, 8] {
        cells.push(cell("full", None, batch, &answers(1, 2)));
        for label in [
            "early-exit:cosine@2",
            "early-exit:entropy@2",
            "unified@2",
            "top@2",
        ] {
            cells.push(cell(label, Some(2.0), batch, &answers(2, 3)));
        }
    }
    cells
}

/// From the table's heading to its last note.
fn section(text: &str) -> &str {
    let from = text.find("Paper against here").unwrap();
    let rest = &text[from..];
    &rest[..rest.find("\n\n").unwrap_or(rest.len())]
}

#[test]
fn the_table_has_the_papers_rows_with_the_runs_figures_beside_them() {
    let (_dir, runs) = run(&cells(), beside(None));
    let report = Report::of(&runs).unwrap();
    insta::assert_snapshot!(section(&report.terminal()));
}

/// The same cell with another model.
fn with_model(mut cell: Cell, name: &str) -> Cell {
    let id = cell.record.answers_from.clone().with("model", name).id();
    cell.record.model.name = name.to_owned();
    cell.record.content = id.clone();
    cell.record.id = id.clone();
    for answer in &mut cell.answers {
        answer.cell = id.clone();
    }
    cell
}

#[test]
fn a_checkpoint_for_each_approach_stands_in_one_table_against_the_named_full_network() {
    let unified = |wrong, spoilt| cell("unified@2", Some(2.0), 1, &answers(wrong, spoilt));
    let cells = [
        with_model(cell("full", None, 1, &answers(1, 2)), "plain"),
        with_model(unified(3, 1), "plain"),
        with_model(cell("full", None, 1, &answers(3, 1)), "adapted"),
        with_model(unified(2, 3), "adapted"),
    ];
    let mut beside = beside(None);
    beside.full_of = Some("plain".to_owned());
    let (_dir, runs) = run(&cells, beside);
    let report = Report::of(&runs).unwrap();
    let text = report.terminal();
    assert_eq!(text.matches("Paper against here").count(), 1, "{text}");
    let score = |model: &str, label: &str| {
        let mut rows = report.rows();
        let is_it = |row: &&Row<'_>| row.record.model.name == model && row.label() == label;
        rows.find(is_it).unwrap().scores[0].score
    };
    let full = score("plain", "full");
    assert_ne!(full, score("adapted", "full"));
    let table = section(&text);
    let full_row = table.lines().find(|line| line.contains("full, plain"));
    assert!(full_row.is_some(), "{table}");
    assert!(!table.contains("full, adapted"), "{table}");
    for model in ["plain", "adapted"] {
        let name = format!("unified@2, {model}");
        let row = table.lines().find(|line| line.contains(&name)).unwrap();
        let kept = format!("{:.0}%", 100.0 * score(model, "unified@2") / full);
        assert!(row.contains(&kept), "{kept}: {row}");
    }
    assert!(
        table.contains("here adapted (16 layers), plain (16 layers)"),
        "{table}"
    );
}

#[test]
fn what_is_the_same_is_not_said_to_differ() {
    let mut cells = cells();
    for cell in &mut cells {
        cell.record.task.prompts_available = Some(4);
    }
    let (_dir, runs) = run(&cells, beside(Some("for its schedule")));
    let text = Report::of(&runs).unwrap().terminal();
    let table = section(&text);
    assert!(
        table.contains("bleu: yes; speed: no, other hardware, length"),
        "{table}"
    );
    assert!(!table.contains("other model"), "{table}");
    assert!(!table.contains("fine-tuning: the paper"), "{table}");
    // Fewer prompts than the paper had are other data, under whatever name.
    cells[0].record.task.prompts_available = Some(50);
    let mut beside = beside(Some("for its schedule"));
    beside.paper.setting.data.prompts = [("copying".to_owned(), 50)].into();
    let (_dir, runs) = run(&cells, beside);
    let text = Report::of(&runs).unwrap().terminal();
    assert!(section(&text).contains("bleu: no, other data"), "{text}");
}

#[test]
fn the_plot_sets_share_of_quality_over_the_ratio_of_speeds() {
    let cells = cells();
    let (dir, runs) = run(&cells, beside(None));
    let report = Report::of(&runs).unwrap();
    report.write_archive(dir.path()).unwrap();
    let path = dir.path().join("plots/paper-by-hand-tiny-b8.svg");
    let svg = std::fs::read_to_string(path).unwrap();
    let drawing = Drawing::read(&svg);
    // Of both blocks the prompt takes 4 ms, the steps 8 ms and half of it; the first batch 0.96 of that, the last more.
    let score = |label: &str| {
        let row = report.rows().find(|row| row.label() == label).unwrap();
        row.scores[0].score
    };
    let kept = score("unified@2") / score("full");
    let seconds = |share: f64| 0.004 + 0.008 * share;
    let strategy: f64 = [0.96, 1.0, 1.0 / 0.96]
        .map(|noise| seconds(noise / 2.0))
        .iter()
        .sum();
    let speed = 3.0 * seconds(1.0) / strategy;
    let near = |found: (f64, f64), expected: (f64, f64)| {
        let is_near = (found.0 - expected.0).abs() < 0.02 && (found.1 - expected.1).abs() < 0.01;
        assert!(is_near, "{found:?} is not {expected:?}");
    };
    // From left to right; the paper has no early exit at batch 8.
    let unified = drawing.points("#D55E00");
    near(unified[0], (speed, kept));
    near(unified[1], (1.6, 0.9));
    near(unified[2], (2.0, 0.5));
    let texts = drawing.texts();
    for name in [
        "Unified, paper",
        "unified, here",
        "early-exit:cosine, here",
        "full network",
    ] {
        assert!(texts.iter().any(|text| text == name), "{name}: {texts:?}");
    }
    assert!(!texts.iter().any(|text| text.contains("top")), "{texts:?}");
}

#[test]
fn a_papers_figures_are_in_no_file_of_results() {
    let (dir, runs) = run(&cells(), beside(None));
    let without = {
        let mut runs = runs.clone();
        runs[0].info.paper = None;
        let dir = tempfile::tempdir().unwrap();
        Report::of(&runs)
            .unwrap()
            .write_archive(dir.path())
            .unwrap();
        std::fs::read_to_string(dir.path().join("results.csv")).unwrap()
    };
    Report::of(&runs).unwrap().write(dir.path()).unwrap();
    let with = std::fs::read_to_string(dir.path().join("results.csv")).unwrap();
    assert_eq!(with, without);
    for name in ["table.md", "report.html", "table.tex"] {
        let text = std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(text.contains("Paper against here"), "{name}");
    }
}
