//! `report.html`.

use crate::support::{answers, cell, cells, info, machine, run, write};
use serde_json::json;
use skipbench_engine::Block;
use skipbench_machine::Checkup;
use skipbench_record::{Calibration, Run};
use skipbench_report::Report;
use std::path::Path;

fn page(runs: &[Run]) -> String {
    let dir = tempfile::tempdir().unwrap();
    Report::of(runs).unwrap().write_archive(dir.path()).unwrap();
    std::fs::read_to_string(dir.path().join("report.html")).unwrap()
}

/// The text between two marks.
#[track_caller]
fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let start = text.find(from).unwrap_or_else(|| panic!("no {from}")) + from.len();
    let length = text[start..].find(to).unwrap_or_else(|| panic!("no {to}"));
    &text[start..start + length]
}

#[test]
fn it_is_one_file_and_escapes_what_it_is_given() {
    let (_run, runs) = run(&cells());
    let html = page(&runs);
    assert!(html.contains("Rows &lt;made&gt; by hand &amp; typed"));
    assert!(!html.contains("<script>alert"));
    assert_eq!(html.matches("<tr id=\"r").count(), cells().len());
    assert!(html.contains("early-exit:cosine@3 has no result: out of memory"));
    for link in ["src=", "url(", "@import", "href=\"http", "href=\"/"] {
        assert!(!html.contains(link), "{link} would fetch something");
    }
    // Every link leads to a part of the page.
    for link in html.split("href=\"#").skip(1) {
        let id = link.split('"').next().unwrap();
        assert!(html.contains(&format!("id=\"{id}\"")), "{id}");
    }
}

#[test]
fn it_begins_with_the_answer() {
    let (_run, runs) = run(&cells());
    let html = page(&runs);
    let said = between(&html, "<div class=\"said\">", "</div>");
    let said = said.replace("<code>", "").replace("</code>", "");
    // What four prompts cannot tell from the full network by a test alone may be far from it: not unified@3.
    assert!(
        said.contains("Fastest without a loss that can be told"),
        "{said}"
    );
    assert!(said.contains(": unified@2 decodes 2.00x ["), "{said}");
    assert!(said.contains("as fast as the full network"), "{said}");
    assert!(
        said.contains("The full network against itself measured 1.00x ["),
        "{said}"
    );
    let overview = between(&html, "<p class=\"overview\">", "</p>");
    assert_eq!(
        overview,
        "2 strategies against the full network, asked for 2x and 3x, on copying (4 prompts), with tiny (16 layers, f32 on cpu), at batch 1 and batch 8."
    );
}

#[test]
fn a_full_network_that_is_not_as_fast_as_itself_is_a_warning() {
    let mut cells = cells();
    let slow = |block: &mut Block| {
        for step in &mut block.strategy.step_s {
            *step /= 1.92;
        }
    };
    let timing = cells[0].record.timing.as_mut().unwrap();
    timing.blocks.iter_mut().for_each(slow);
    let (_run, runs) = run(&cells);
    let html = page(&runs);
    let said = between(&html, "<div class=\"said\">", "</div>");
    assert!(
        said.contains("class=\"note\">The full network measured 1.92x ["),
        "{said}"
    );
    assert!(said.contains("not to be trusted"), "{said}");
    assert!(!said.contains("cannot be seen here"), "{said}");
}

#[test]
fn series_have_colours_of_their_own_and_whole_names() {
    let mut all = vec![cell("full", None, 1, &answers(0, 0))];
    for index in 0..20 {
        let name = format!("strategy{index}@2 {{schedule-length: expected, and-more: {index}}}");
        // The more is wrong, the faster: none beats another.
        let speed = 1.5 + 0.1 * f64::from(index);
        all.push(cell(&name, Some(speed), 1, &answers(4, index as usize / 3)));
    }
    let (_run, runs) = run(&all);
    let dir = tempfile::tempdir().unwrap();
    Report::of(&runs)
        .unwrap()
        .write_archive(dir.path())
        .unwrap();
    let svg =
        std::fs::read_to_string(dir.path().join("plots/achieved-tiny-copying-b1.svg")).unwrap();
    let mut colors: Vec<&str> = svg
        .split("<polygon class=\"series\" fill=\"")
        .skip(1)
        .map(|rest| &rest[..7])
        .collect();
    colors.sort_unstable();
    colors.dedup();
    assert_eq!(colors.len(), 20);
    assert!(!svg.contains('…'));
    // Plots of a page take their colours from it, so that they are dark where it is.
    let html = page(&runs);
    for figure in html.split("<figure").skip(1) {
        let figure = figure.split("</figure>").next().unwrap();
        assert!(
            !figure.contains("#ffffff") && !figure.contains("<style"),
            "{figure}"
        );
    }
}

#[test]
fn layers_and_calibration_are_drawn_from_the_record() {
    let mut all = cells();
    let unified = all[1].record.executed.as_mut().unwrap();
    unified.spec = json!({"unified": {"rule": "published", "speedup": 2.0}});
    let exit = all[2].record.executed.as_mut().unwrap();
    exit.spec = json!({"early-exit": {"signal": "cosine", "threshold": 0.9, "first-exit": 2, "check-every": 1}});
    exit.calibration = Calibration {
        of: "threshold: layers".to_owned(),
        points: vec![(0.9, 8.1), (0.5, 4.0)],
    };
    let (_run, runs) = run(&all);
    let html = page(&runs);
    let maps = between(&html, "<section id=\"layers\">", "</section>");
    // Of the others the record holds no strategy that this binary knows.
    assert_eq!(maps.matches("<figure").count(), 2, "{maps}");
    assert!(maps.contains("<b>unified@2, copying</b><br>layers of each generated token"));
    let curves = between(&html, "<section id=\"calibration\">", "</section>");
    assert!(
        curves.contains("threshold 0.9000: 8.100 layers"),
        "{curves}"
    );
    let audit = between(&html, "<section id=\"audit\">", "</section>");
    assert!(
        audit.contains("<th scope=\"row\">early-exit:cosine@2</th>")
            && audit.contains("<td>2.0</td>"),
        "{audit}"
    );
}

#[test]
fn the_machine_says_what_it_could_be_trusted_with() {
    let cells = cells();
    let dir = tempfile::tempdir().unwrap();
    let mut info = info("by-hand", &cells);
    info.written.device = Some(machine(2));
    info.written.checkup = Some(Checkup {
        available_bytes: Some(4 << 30),
        copied_bytes_per_s: 21e9,
        flops: 100e9,
        clock_step_s: 30e-9,
        governor: Some("powersave".to_owned()),
        load_by_others: None,
        counts_energy: false,
        counts_gpu_energy: false,
    });
    write(dir.path(), &info, &cells);
    let runs = [Run::read(dir.path()).unwrap()];
    let html = page(&runs);
    let block = between(&html, "<section id=\"machine\">", "</section>").replace("&#x2f;", "/");
    assert!(block.contains("21.0 GB/s read and written"), "{block}");
    assert!(
        block.contains("powersave</td><td class=\"text\"><b>no</b>: "),
        "{block}"
    );
    assert!(block.contains("copying, batch 1, tiny"), "{block}");
}

/// Where a page of 400 rows is left for `scripts/report/check_page.py --large`.
const LARGE: &str = "SKIPBENCH_LARGE_PAGE";

#[test]
fn a_page_of_400_rows_is_small() {
    const WORDS: usize = 60;
    let mut all = Vec::new();
    for batch_size in [1, 2, 4, 8] {
        all.push(cell("full", None, batch_size, &answers(0, 0)));
        for index in 0..99 {
            let speed = [1.25, 1.5, 2.0, 3.0][index % 4];
            let name = format!("strategy{}@{speed}", index / 4);
            all.push(
                cell(
                    &name,
                    Some(speed),
                    batch_size,
                    &answers(index % 5, index / 4),
                )
                .with_everything(),
            );
        }
    }
    for (index, cell) in all.iter_mut().enumerate() {
        let executed = cell.record.executed.as_mut().unwrap();
        executed.spec = json!({"early-exit": {"signal": "cosine", "threshold": 0.9, "first-exit": 2, "check-every": 1}});
        executed.calibration = Calibration {
            of: "threshold: layers".to_owned(),
            points: (0..12)
                .map(|at| (f64::from(at) / 12.0, 16.0 - f64::from(at)))
                .collect(),
        };
        for (at, answer) in cell.answers.iter_mut().enumerate() {
            let words =
                (0..WORDS).map(|word| format!("word{}", (index * 31 + at * 7 + word * word) % 997));
            answer.text = words.collect::<Vec<_>>().join(" ");
            answer.layers = (0..64)
                .map(|token| ((index + at + token) % 16) as f64)
                .collect();
        }
    }
    let (_run, runs) = run(&all);
    let html = page(&runs);
    assert_eq!(html.matches("<tr id=\"r").count(), 400);
    assert!(html.len() < 5_000_000, "{}", html.len());
    if let Some(path) = std::env::var_os(LARGE) {
        std::fs::write(Path::new(&path), html).unwrap();
    }
}
