//! What plots show, read back from their SVGs.

use crate::support::{answers, cell, cells, gpu, machine, run};
use crate::svg::Drawing;
use skipbench_report::{LossSeries, Report, heatmap, loss_plot};
use std::path::Path;

const FULL: &str = "#000000";
const FIRST: &str = "#0072B2";
const SECOND: &str = "#D55E00";
const FAINT: &str = "#B4B4B4";

/// Draws the plots of some cells and gives one.
fn plot(cells: &[crate::support::Cell], name: &str) -> String {
    let (_run, runs) = run(cells);
    let dir = tempfile::tempdir().unwrap();
    Report::of(&runs)
        .unwrap()
        .write_archive(dir.path())
        .unwrap();
    let path = dir.path().join("plots").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Within a hundredth of the largest of them: positions are rounded, and a marker's middle is not just its point.
#[track_caller]
fn assert_near(found: &[(f64, f64)], expected: &[(f64, f64)]) {
    assert_eq!(found.len(), expected.len(), "{found:?}");
    let largest = |of: fn(&(f64, f64)) -> f64| expected.iter().map(of).fold(0.0, f64::max);
    let (x, y) = (
        0.01 * largest(|point| point.0),
        0.01 * largest(|point| point.1),
    );
    for (found, expected) in found.iter().zip(expected) {
        let is_near = (found.0 - expected.0).abs() < x && (found.1 - expected.1).abs() < y;
        assert!(is_near, "{found:?} is not {expected:?}");
    }
}

#[test]
fn quality_stands_over_the_achieved_speedup() {
    let cells = cells();
    let (_run, runs) = run(&cells);
    let report = Report::of(&runs).unwrap();
    let point = |label: &str| {
        let row = report.rows().find(|row| row.label() == label).unwrap();
        (row.speedup.unwrap().ratio, row.scores[0].score)
    };
    let svg = plot(&cells, "quality-tiny-copying-b1.svg");
    let drawing = Drawing::read(&svg);
    assert_near(&drawing.points(FULL), &[point("full")]);
    assert_near(
        &drawing.points(FIRST),
        &[point("unified@2"), point("unified@3")],
    );
    // As fast as the other strategy, and worse.
    assert_near(&drawing.points(SECOND), &[]);
    assert_near(
        &drawing.points(FAINT),
        &[point("early-exit:cosine@2"), point("early-exit:cosine@3")],
    );
    let texts = drawing.texts();
    for text in [
        "achieved speedup (decode time, full network = 1)",
        "bleu (higher is better)",
        "unified@2",
        "unified",
        "grey: another is better in",
        "full",
    ] {
        assert!(
            texts.iter().any(|found| found == text),
            "{text} is not in {texts:?}"
        );
    }
}

#[test]
fn achieved_stands_over_target_beside_the_guide() {
    let svg = plot(&cells(), "achieved-tiny-copying-b8.svg");
    let drawing = Drawing::read(&svg);
    // The full network has no target, and what failed is not drawn.
    assert_near(&drawing.points(FULL), &[]);
    assert_near(&drawing.points(FIRST), &[(2.0, 2.0), (3.0, 3.0)]);
    assert_near(&drawing.points(SECOND), &[(2.0, 2.0)]);
    assert!(drawing.texts().contains(&"achieved = target".to_owned()));
}

#[test]
fn throughput_begins_at_zero() {
    let svg = plot(&cells(), "throughput-tiny-copying.svg");
    let drawing = Drawing::read(&svg);
    assert_eq!(
        (drawing.lowest_label(true), drawing.lowest_label(false)),
        (0.0, 0.0)
    );
    // Four steps of 2 ms on average, in each of which every row gets a token.
    assert_near(&drawing.points(FULL), &[(1.0, 500.0), (8.0, 4000.0)]);
    assert_near(&drawing.points(FIRST), &[(1.0, 1000.0), (8.0, 8000.0)]);
    assert!(
        drawing
            .texts()
            .contains(&"decoded tokens per second".to_owned())
    );
}

#[test]
fn series_of_two_machines_are_told_apart() {
    let cells =
        [machine(2), gpu()].map(|machine| cell("full", None, 1, &answers(1, 1)).on(&machine));
    let svg = plot(&cells, "quality-tiny-copying-b1.svg");
    let drawing = Drawing::read(&svg);
    assert_eq!(
        (drawing.points(FULL).len(), drawing.points(FIRST).len()),
        (1, 1)
    );
    let texts = drawing.texts().join("\n");
    assert!(
        texts.contains("full {machine 1}") && texts.contains("full {machine 2}"),
        "{texts}"
    );
}

#[test]
fn a_band_is_drawn_as_one() {
    let mut cells = vec![cell("full", None, 1, &answers(0, 0))];
    for seed in 0..3usize {
        let set = cell(
            &format!("random@2 {{seed: {seed}}}"),
            Some(2.0),
            1,
            &answers(3, 2 + seed),
        );
        cells.push(if seed == 0 { set } else { set.untimed() });
    }
    let svg = plot(&cells, "quality-tiny-copying-b1.svg");
    let drawing = Drawing::read(&svg);
    assert_eq!(drawing.points("#E2E2E2").len(), 1);
    assert_eq!(drawing.points(FIRST).len(), 0);
    assert!(drawing.texts().contains(&"95% of random sets".to_owned()));
}

#[test]
fn an_oracle_stands_hollow_at_its_bound() {
    let mut cells = cells();
    cells.push(cell("oracle-exit", None, 1, &answers(0, 0)).untimed());
    let svg = plot(&cells, "quality-tiny-copying-b1.svg");
    let texts = Drawing::read(&svg).texts();
    assert!(texts.contains(&"oracle-exit".to_owned()), "{texts:?}");
    // The point, and its key in the legend.
    assert_eq!(
        svg.matches("<polygon class=\"hollow\" fill=\"none\"")
            .count(),
        2
    );
    assert!(
        svg.contains("<title>oracle-exit: not timed, bound 1.00x, bleu 100.0"),
        "{svg}"
    );
}

#[test]
fn rows_without_timing_have_a_table_and_no_plot() {
    let (_run, runs) = run(&[cell("full", None, 1, &answers(1, 1)).untimed()]);
    let dir = tempfile::tempdir().unwrap();
    let report = Report::of(&runs).unwrap();
    report.write(dir.path()).unwrap();
    assert_eq!(
        std::fs::read_dir(dir.path().join("plots")).unwrap().count(),
        0
    );
    assert!(report.terminal().contains("full"));
}

#[test]
fn names_are_made_safe_for_a_file_system() {
    let mut cells = cells();
    for cell in &mut cells {
        cell.record.task.name = "de/en <1>".to_owned();
        cell.record.model.name = "../up".to_owned();
    }
    plot(&cells, "quality-___up-de_en__1_-b1.svg");
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn loss_curves_of_any_length() {
    let dir = tempfile::tempdir().unwrap();
    let curve = |n: usize, loss: fn(f64) -> f64| LossSeries {
        name: "loss".to_owned(),
        points: (0..n).map(|i| (i as f64, loss(i as f64))).collect(),
    };
    let curves = [
        curve(0, |_| 1.0),
        curve(1, |_| 2.0),
        curve(300, |_| 3.0),
        curve(300, |step| 5.0 * (-step / 90.0).exp()),
    ];
    for (index, curve) in curves.into_iter().enumerate() {
        let path = dir.path().join(format!("loss-{index}.svg"));
        let paths = loss_plot(&path, &[curve]).unwrap();
        assert_eq!(paths[0], path);
        let svg = read(&path);
        assert!(svg.contains("cross-entropy") && !svg.contains("NaN"));
    }
}

#[test]
fn a_loss_curve_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["training loss", "validation unified@1.25"];
    let curves = names.map(|name| LossSeries {
        name: name.to_owned(),
        points: vec![(1.0, 2.0), (2.0, 1.0)],
    });
    let path = dir.path().join("loss.svg");
    loss_plot(&path, &curves).unwrap();
    let svg = read(&path);
    assert!(names.iter().all(|name| svg.contains(name)), "{svg}");
}

#[test]
fn a_heatmap_shades_what_ran() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("which layers.svg");
    let written = heatmap(&path, "Layers", &[vec![1.0, 0.5, 0.0], vec![1.0, 0.0, 0.0]]).unwrap();
    assert_eq!(written.len(), 2);
    let svg = read(&path);
    assert!(
        svg.contains("generated token") && svg.contains("#005A96"),
        "the full shade"
    );
    // No token, no layer: an empty plot, not a panic.
    heatmap(&path, "Layers", &[]).unwrap();
}
