//! What a run leaves for people and programs, written from rows made by hand.
#![allow(clippy::unwrap_used)]

use polars::prelude::*;
use skipbench_report::{
    LossSeries, MetricValue, ReportMeta, ResultRow, TokenCost, heatmap, loss_plot, markdown_table,
    terminal_table, write,
};
use std::path::Path;

fn row(label: &str, target: Option<f64>, batch_size: usize, bleu: f64) -> ResultRow {
    let achieved = target.unwrap_or(1.0) * 0.95;
    let name = label.split(['@', ':']).next().unwrap();
    ResultRow {
        experiment: "by hand".to_owned(),
        model: "tiny".to_owned(),
        task: "translation".to_owned(),
        strategy: name.to_owned(),
        variant: label
            .split('@')
            .next()
            .and_then(|series| series.split_once(':'))
            .map_or(String::new(), |(_, variant)| variant.to_owned()),
        label: label.to_owned(),
        executed: label.to_owned(),
        kv_fill: "none".to_owned(),
        batch_size,
        beams: 1,
        target_speedup: target,
        n_layers: 16,
        layers_per_token: 16.0 / target.unwrap_or(1.0),
        bound_speedup: target.unwrap_or(1.0) * 0.97,
        achieved_speedup: Some(achieved),
        achieved_lo: Some(achieved - 0.05),
        achieved_hi: Some(achieved + 0.05),
        target_error: target.map(|target| achieved / target - 1.0),
        ttft_ms: Some(3.25),
        tpot_ms: Some(0.5),
        tokens_per_s: Some(2000.0 * achieved * batch_size as f64),
        paper_tokens_per_s: Some(2500.0),
        cost: TokenCost {
            mflops: 12.5,
            mbytes: 25.0,
            layers_mbytes: 18.0,
            kv_read_mbytes: 2.0,
            head_mbytes: 5.0,
            ..TokenCost::default()
        },
        unexplained: Some(0.02),
        wasted_row_layers: 0.0,
        holes_read_per_token: 0.0,
        kv_distance: None,
        acceptance: None,
        tokens_per_verification: None,
        draft_time: None,
        same_as_full: Some(bleu / 92.0),
        band: None,
        peak_kv_bytes: 4096,
        n_prompts: 10,
        n_failed: 0,
        metrics: vec![
            (
                "bleu".to_owned(),
                MetricValue {
                    score: bleu,
                    lo: bleu - 1.5,
                    hi: bleu + 1.5,
                    p_value: target.map(|target| if target > 2.0 { 0.004 } else { 0.4 }),
                    higher_is_better: true,
                },
            ),
            (
                "rougeL".to_owned(),
                MetricValue {
                    score: bleu / 100.0,
                    lo: bleu / 100.0 - 0.01,
                    hi: bleu / 100.0 + 0.01,
                    p_value: None,
                    higher_is_better: true,
                },
            ),
        ],
        note: None,
    }
}

fn rows() -> Vec<ResultRow> {
    let mut rows = Vec::new();
    for batch_size in [1, 8] {
        rows.push(row("full", None, batch_size, 92.0));
        for (speedup, lost) in [(2.0, 1.0), (3.0, 8.5)] {
            rows.push(row(
                &format!("unified@{speedup}"),
                Some(speedup),
                batch_size,
                92.0 - lost,
            ));
            rows.push(row(
                &format!("early-exit:cosine@{speedup}"),
                Some(speedup),
                batch_size,
                91.0 - 2.0 * lost,
            ));
        }
    }
    rows[2].note = Some("reaches 1.4x at most | on this text".to_owned());
    rows
}

/// A row of a strategy that was not timed.
fn untimed(label: &str) -> ResultRow {
    ResultRow {
        achieved_speedup: None,
        achieved_lo: None,
        achieved_hi: None,
        target_error: None,
        ttft_ms: None,
        tpot_ms: None,
        tokens_per_s: None,
        paper_tokens_per_s: None,
        ..row(label, None, 1, 50.0)
    }
}

fn meta() -> ReportMeta {
    ReportMeta {
        experiment: "by hand".to_owned(),
        title: "Rows <made> by hand & typed".to_owned(),
        models: vec!["tiny: 16 layers".to_owned()],
        device: "no machine".to_owned(),
        date: "2026-01-02 03:04 UTC".to_owned(),
        git_commit: Some("0123456".to_owned()),
        version: "0.1.0".to_owned(),
        seed: 1,
        notes: vec!["<script>alert(1)</script>".to_owned()],
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn tables() {
    insta::assert_snapshot!("terminal", terminal_table(&rows()));
    insta::assert_snapshot!("markdown", markdown_table(&rows()));
}

#[test]
fn every_file_is_written_and_no_temporary_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut paths = write(dir.path(), &meta(), &rows()).unwrap();
    insta::assert_snapshot!(
        "files",
        [names(dir.path()), names(&dir.path().join("plots"))]
            .concat()
            .join("\n")
    );
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), 4 + 2 * 5);
    assert!(paths.iter().all(|path| path.is_file()));
    insta::assert_snapshot!(
        "csv",
        std::fs::read_to_string(dir.path().join("results.csv")).unwrap()
    );
    insta::assert_snapshot!(
        "document",
        std::fs::read_to_string(dir.path().join("table.md")).unwrap()
    );
}

#[test]
fn parquet_holds_what_the_csv_holds() {
    let dir = tempfile::tempdir().unwrap();
    let mut rows = rows();
    rows.push(untimed("top@2"));
    write(dir.path(), &meta(), &rows).unwrap();
    let open = |name: &str| std::fs::File::open(dir.path().join(name)).unwrap();
    let parquet = ParquetReader::new(open("results.parquet"))
        .finish()
        .unwrap();
    assert_eq!(parquet.height(), rows.len());
    let mut again = Vec::new();
    CsvWriter::new(&mut again)
        .finish(&mut parquet.clone())
        .unwrap();
    assert_eq!(
        String::from_utf8(again).unwrap(),
        std::fs::read_to_string(dir.path().join("results.csv")).unwrap()
    );
    let achieved = parquet.column("achieved_speedup").unwrap();
    assert_eq!(achieved.null_count(), 1);
    assert_eq!(achieved.get(1).unwrap(), AnyValue::Float64(1.9));
}

#[test]
fn html_is_one_file_and_escapes_what_it_is_given() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &meta(), &rows()).unwrap();
    let html = std::fs::read_to_string(dir.path().join("report.html")).unwrap();
    assert!(html.contains("Rows &lt;made&gt; by hand &amp; typed"));
    assert!(!html.contains("<script>alert"));
    assert_eq!(html.matches("<svg").count(), 5);
    // Once with its scores, once with its cost.
    assert_eq!(html.matches("<tr><td>").count(), 2 * rows().len());
    for link in ["src=", "href=", "url(", "@import"] {
        assert!(!html.contains(link), "{link} would fetch something");
    }
}

#[test]
fn plots_are_images_of_finite_numbers() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &meta(), &rows()).unwrap();
    let plots = dir.path().join("plots");
    for name in names(&plots) {
        let bytes = std::fs::read(plots.join(&name)).unwrap();
        if name.ends_with(".svg") {
            let svg = String::from_utf8(bytes).unwrap();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{name}");
            assert!(
                svg.contains("unified") && svg.contains("early-exit:cosine"),
                "{name}"
            );
        } else {
            // Signature, then width and height in the header.
            assert_eq!(&bytes[..8], b"\x89PNG\r\n\x1a\n", "{name}");
            assert_eq!(&bytes[16..24], [0, 0, 6, 184, 0, 0, 3, 192], "{name}");
        }
    }
}

#[test]
fn rows_without_timing_have_a_table_and_no_plot() {
    let dir = tempfile::tempdir().unwrap();
    let rows = [untimed("full")];
    write(dir.path(), &meta(), &rows).unwrap();
    assert!(names(&dir.path().join("plots")).is_empty());
    assert!(terminal_table(&rows).contains("full"));
}

#[test]
fn names_are_made_safe_for_a_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<ResultRow> = rows()
        .into_iter()
        .map(|row| ResultRow {
            task: "de/en <1>".to_owned(),
            model: "../up".to_owned(),
            ..row
        })
        .collect();
    write(dir.path(), &meta(), &rows).unwrap();
    assert_eq!(names(&dir.path().join("plots")).len(), 10);
    assert!(
        dir.path()
            .join("plots/quality-___up-de_en__1_-b1.svg")
            .is_file()
    );
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("taken");
    std::fs::write(&file, "").unwrap();
    let error = write(&file, &meta(), &rows()).unwrap_err().to_string();
    assert!(error.contains("taken"), "{error}");
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
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(svg.contains("cross-entropy") && !svg.contains("NaN"));
    }
}

#[test]
fn a_random_band_is_one_row_and_marks_what_is_no_better() {
    let mut rows = vec![
        row("full", None, 1, 60.0),
        row("unified@2", Some(2.0), 1, 49.0),
    ];
    rows.push(row("top@2", Some(2.0), 1, 55.0));
    for seed in 0..5u32 {
        let mut set = row(
            &format!("random@2 {{seed: {seed}}}"),
            Some(2.0),
            1,
            46.0 + f64::from(seed),
        );
        set.strategy = "random".to_owned();
        set.band = Some("random@2".to_owned());
        if seed > 0 {
            set.achieved_speedup = None;
        }
        rows.push(set);
    }
    let text = markdown_table(&rows);
    assert!(text.contains("| random@2 (5 sets) | 2x |"), "{text}");
    assert!(text.contains("48.0 [46.1, 49.9]"), "{text}");
    assert!(
        text.contains("49.0° [47.5, 50.5]"),
        "within the band: {text}"
    );
    assert!(text.contains("55.0 [53.5, 56.5]"), "above it: {text}");
    assert!(!text.contains("seed"), "{text}");
    assert!(text.contains("`°`: no better than random sets"));
    assert!(!markdown_table(&rows[..2]).contains('°'));
}

#[test]
fn a_heatmap_shades_what_ran() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("which layers.svg");
    let written = heatmap(&path, "Layers", &[vec![1.0, 0.5, 0.0], vec![1.0, 0.0, 0.0]]).unwrap();
    assert_eq!(written.len(), 2);
    let svg = std::fs::read_to_string(&path).unwrap();
    assert!(
        svg.contains("generated token") && svg.contains("#005A96"),
        "the full shade"
    );
    // No token, no layer: an empty plot, not a panic.
    heatmap(&path, "Layers", &[]).unwrap();
}
