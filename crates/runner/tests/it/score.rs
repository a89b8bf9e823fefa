//! `skipbench score`.

use crate::support::{assert_names, refused, skipbench, stdout};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn score(hyp: &Path, references: &[&Path]) -> assert_cmd::Command {
    let mut command = skipbench();
    command.arg("score").arg("--hyp").arg(hyp);
    for reference in references {
        command.arg("--ref").arg(reference);
    }
    command
}

fn json(command: &mut assert_cmd::Command) -> Value {
    serde_json::from_str(&stdout(command.arg("--json"))).unwrap()
}

const HYP: &[u8] = b"The dog bit the man.\nIt wasn't surprising.\n\n";
const REF: &[u8] = b"The dog had bit the man.\nNo one was surprised.\nThe man had bitten it.\n";
const SECOND: &[u8] = b"The dog bit a man.\nIt was not surprising.\nHe had bitten it.\n";

#[test]
fn score_lines() {
    let files = Files::new();
    let hyp = files.write("hyp.txt", HYP);
    let reference = files.write("a reference.txt", REF);
    let second = files.write("second.txt", SECOND);
    let mut command = score(&hyp, &[&reference, &second]);
    command.args([
        "--metric",
        "bleu,chrf,chrf++,ter,rouge1,rouge2,rougeL,rougeLsum",
    ]);
    insta::assert_snapshot!("score_lines", stdout(&mut command));
    command.arg("--paired").arg(&reference).arg("--confidence");
    insta::assert_snapshot!("score_paired", stdout(&mut command));
}

#[test]
fn json_is_keyed_by_the_name_as_given() {
    let files = Files::new();
    let hyp = files.write("hyp.txt", HYP);
    let reference = files.write("ref.txt", REF);
    let mut command = score(&hyp, &[&reference]);
    command.args([
        "--metric",
        "bleu,chrf,rougeLsum",
        "--sentence",
        "--confidence",
    ]);
    command.args([
        "--tokenize",
        "char",
        "--lowercase",
        "--smooth",
        "add-k",
        "--smooth-value",
        "2",
    ]);
    command.args(["--effective-order", "--word-order", "2", "--beta", "3"]);
    let found = json(&mut command);
    assert_eq!(
        found["bleu"]["signature"],
        "nrefs:1|bs:1000|seed:chacha8-12345|case:lc|eff:yes|tok:char|smooth:add-k[2.00]|version:2.6.0"
    );
    assert_eq!(
        found["chrf"]["signature"],
        "nrefs:1|bs:1000|seed:chacha8-12345|case:lc|eff:yes|nc:6|nw:2|space:no|version:2.6.0"
    );
    for name in ["bleu", "chrf", "rougeLsum"] {
        let segments = found[name]["segments"].as_array().unwrap();
        assert_eq!(segments.len(), 3, "the empty answer counts");
        assert_eq!(segments[2], 0.0);
        let interval = &found[name]["interval"];
        assert!(interval["lo"].as_f64() <= found[name]["score"].as_f64());
    }
}

/// Packed files, JSON lines with as many references as each segment has, and plain files say the same.
#[test]
fn every_way_in_gives_the_same_score() {
    let files = Files::new();
    let hyp = files.write("hyp.txt", HYP);
    let references = [files.write("1.txt", REF), files.write("2.txt", SECOND)];
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(HYP).unwrap();
    let packed = files.write("hyp.txt.gz", &packed.finish().unwrap());
    let lines = |bytes: &'static [u8]| std::str::from_utf8(bytes).unwrap().lines();
    let segments: String = lines(HYP)
        .zip(lines(REF).zip(lines(SECOND)))
        .map(|(hypothesis, (a, b))| {
            let line =
                serde_json::json!({"hypothesis": hypothesis, "references": [a, Value::Null, b]});
            format!("{line}\n")
        })
        .collect();
    let input = files.write("segments.jsonl", segments.as_bytes());
    let plain = json(&mut score(&hyp, &[&references[0], &references[1]]));
    assert_eq!(
        plain,
        json(&mut score(&packed, &[&references[0], &references[1]]))
    );
    assert_eq!(
        plain,
        json(skipbench().arg("score").arg("--input").arg(&input))
    );
    assert_eq!(
        plain["bleu"]["signature"],
        "nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
    );

    let uneven = files.write(
        "uneven.jsonl",
        b"{\"hypothesis\": \"a\\nb\", \"references\": [\"a\\nb\"]}\n{\"hypothesis\": \"a\", \"references\": [\"a\", \"b\"]}\n",
    );
    let found = json(
        skipbench()
            .args(["score", "--metric", "ter", "--input"])
            .arg(&uneven),
    );
    assert_eq!(found["ter"]["score"], 0.0);
    assert_eq!(found["ter"]["higher_is_better"], false);
    assert!(
        found["ter"]["signature"]
            .as_str()
            .unwrap()
            .starts_with("nrefs:var|")
    );
}

#[test]
fn lines_end_at_line_feeds_only() {
    let files = Files::new();
    let text = "a\u{2028}b\u{85}c\r\nd\u{b}e\u{c}f\u{1c}g\n";
    let hyp = files.write("hyp.txt", text.as_bytes());
    let found = json(
        score(&hyp, &[&hyp])
            .arg("--sentence")
            .args(["--metric", "rouge1"]),
    );
    assert_eq!(found["rouge1"]["segments"].as_array().unwrap().len(), 2);
    let one = files.write("one.txt", b"\n");
    let found = json(score(&one, &[&one]).arg("--sentence"));
    assert_eq!(found["bleu"]["segments"], serde_json::json!([0.0]));
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let files = Files::new();
    let hyp = files.write("hyp.txt", HYP);
    let reference = files.write("ref.txt", REF);
    let short = files.write("short.txt", b"one\n");
    assert_names(
        &refused(&mut score(&hyp, &[&short])),
        &["hyp.txt has 3", "short.txt has 1"],
    );
    assert_names(
        &refused(score(&hyp, &[&reference]).arg("--paired").arg(&short)),
        &["hyp.txt has 3", "short.txt has 1"],
    );
    let empty = files.write("empty.txt", b"");
    assert_names(
        &refused(&mut score(&empty, &[&empty])),
        &["empty.txt", "no segment"],
    );
    let latin = files.write("latin.txt", b"one\nt\xfcr\nthree\n");
    assert_names(
        &refused(&mut score(&latin, &[&reference])),
        &["latin.txt", "line 2", "UTF-8"],
    );
    let cut = files.write("cut.txt.gz", b"\x1f\x8b\x08");
    assert_names(
        &refused(&mut score(&cut, &[&reference])),
        &["cut.txt.gz", "gzip"],
    );
    assert_names(
        &refused(&mut score(&hyp, &[Path::new("gone.txt")])),
        &["gone.txt"],
    );
    assert_names(&refused(&mut score(&hyp, &[])), &["--ref"]);
    assert_names(&refused(skipbench().arg("score")), &["--hyp"]);
    assert_names(
        &refused(score(&hyp, &[&reference]).args(["--metric", "blue"])),
        &["blue", "`bleu`"],
    );
    assert_names(
        &refused(score(&hyp, &[&reference]).args(["--tokenize", "13b"])),
        &["13b", "`13a`"],
    );
    assert_names(
        &refused(score(&hyp, &[&reference]).args(["--smooth-value", "0.5"])),
        &["--smooth-value", "--smooth floor"],
    );
    let none = files.write(
        "none.jsonl",
        b"{\"hypothesis\": \"a\", \"references\": [null]}\n",
    );
    assert_names(
        &refused(skipbench().args(["score", "--input"]).arg(&none)),
        &["none.jsonl", "segment 1", "no reference"],
    );
    let wrong = files.write(
        "wrong.jsonl",
        b"{\"hypothesis\": \"a\", \"references\": [\"a\"]}\n{\"hyp\": 1}\n",
    );
    assert_names(
        &refused(skipbench().args(["score", "--input"]).arg(&wrong)),
        &["wrong.jsonl", "line 2", "hypothesis"],
    );
}
