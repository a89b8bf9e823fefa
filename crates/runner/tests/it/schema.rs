//! The JSON schema of experiments, for editors, and the page that it gives for people.

use crate::support::repository;
use serde_json::Value;
use skipbench::experiment::Experiment;
use std::path::Path;

#[test]
fn the_committed_schema_is_that_of_the_code() {
    let schema = serde_json::to_value(schemars::schema_for!(Experiment)).unwrap();
    let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    assert_current(&repository().join("experiments/schema.json"), &text);
    assert_current(
        &repository().join("docs/experiment.md"),
        &Page(&schema).text(),
    );
}

fn assert_current(path: &Path, text: &str) {
    if std::env::var_os("SKIPBENCH_UPDATE_SCHEMA").is_some() {
        std::fs::write(path, text).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    // Thousands of lines: a comparison that prints them hides what it has to say.
    assert!(
        committed == text,
        "run the tests once with SKIPBENCH_UPDATE_SCHEMA=1 and commit {}",
        path.display()
    );
}

#[test]
fn every_key_is_documented() {
    let schema = serde_json::to_value(schemars::schema_for!(Experiment)).unwrap();
    let objects = schema["$defs"].as_object().unwrap().iter();
    for (name, object) in objects.chain([(&"Experiment".to_owned(), &schema)]) {
        for (key, property) in object["properties"].as_object().into_iter().flatten() {
            let about = property["description"].as_str().unwrap_or_default();
            assert!(about.len() > 10, "`{key}` of {name} has no doc comment");
        }
    }
}

const INTRODUCTION: &str = "\
# Keys of an experiment

This page is written from the code (`SKIPBENCH_UPDATE_SCHEMA=1 cargo test --release --workspace`);
`experiments/schema.json` says the same to editors.

An experiment is a YAML file. `skipbench plan FILE` lists what it would run, `skipbench run FILE` runs it.

- `--set key.path=value` changes one key for one run: `--set timing.batches=4`, `--set speedups=[2,3]`,
  `--set tasks.0.prompts=8`. Items of a list are counted from 0. The value is YAML; a list or a map is replaced whole.
- `extends: other.yaml` lays a file over another: maps key by key, lists and single values whole. Paths stay relative to the
  file in which they stand.
- `--jobs N`, or `devices: [cuda:0, cuda:1]`, shares the cells out over GPUs, or over processes on a CPU; `skipbench submit` does so
  over the nodes of a cluster ([cluster](cluster.md)).
- `--shard I/N` runs the I-th of N shares of the cells, for job arrays; `skipbench report DIR DIR…` joins the shares.

## The experiment

";

/// The page of a schema.
struct Page<'a>(&'a Value);

impl Page<'_> {
    fn text(&self) -> String {
        let mut text = INTRODUCTION.to_owned();
        text += &self.table(self.0);
        for (key, property) in properties(self.0) {
            let (object, heading) = match property.get("items") {
                Some(items) => (self.resolved(items), format!("An item of `{key}`")),
                None => (self.resolved(property), format!("`{key}`")),
            };
            if properties(object).next().is_some() {
                text += &format!("\n## {heading}\n\n{}\n\n", about(object));
                text += &self.table(object);
                for (inner, property) in properties(object) {
                    let Some(map) = self.map_of(property) else {
                        continue;
                    };
                    text += &format!("\n### `{inner}` in `{key}`\n\n{}\n\n", about(property));
                    text += &self.table(map);
                }
            }
        }
        text += "\n## Strategies\n\n";
        text += "A strategy is written in short, `name[:variant][@speedup]`, or as a map from its name to its settings.\n";
        for strategy in alternatives(&self.0["$defs"]["StrategySpec"]) {
            let Some((name, settings)) = properties(strategy).next() else {
                // The short form.
                continue;
            };
            let settings = self.resolved(settings);
            text += &format!("\n### `{name}`\n\n{}\n", paragraphs(about(settings)));
            if properties(settings).next().is_some() {
                text += "\n";
                text += &self.table(settings);
            }
        }
        text
    }

    /// The map that a value is or may be, where its keys are known.
    fn map_of<'a>(&'a self, property: &'a Value) -> Option<&'a Value> {
        let kinds = std::iter::once(property).chain(alternatives(property));
        let mut maps = kinds.map(|kind| self.resolved(kind));
        maps.find(|map| properties(map).next().is_some())
    }

    fn table(&self, object: &Value) -> String {
        let mut table =
            "| key | value | default | meaning |\n| --- | --- | --- | --- |\n".to_owned();
        // Required are all of these, or the first of the alternatives.
        let required = [&object["required"], &object["anyOf"][0]["required"]];
        for (key, property) in properties(object) {
            let needed = required
                .iter()
                .filter_map(|keys| keys.as_array())
                .any(|keys| keys.contains(&Value::from(key.as_str())));
            let default = match (&property["default"], needed) {
                (_, true) => "required".to_owned(),
                (Value::Null, _) => String::new(),
                (Value::Object(_), _) => "as below".to_owned(),
                (Value::Array(items), _) if items.is_empty() => String::new(),
                (Value::String(text), _) => format!("`{}`", text.escape_debug()),
                (value, _) => format!("`{value}`").replace(".0", ""),
            };
            let mut meaning = one_line(about(property));
            for (value, about) in self.named_values(property) {
                meaning += &format!("<br>`{value}`: {}", one_line(about));
            }
            let cells = [format!("`{key}`"), self.kind(property), default, meaning];
            table += &format!(
                "| {} |\n",
                cells.map(|cell| cell.replace('|', "\\|")).join(" | ")
            );
        }
        table
    }

    /// What a value looks like.
    fn kind(&self, schema: &Value) -> String {
        let schema = self.resolved(schema);
        let named = |name: &Value| match name.as_str() {
            Some("integer") => Some("whole number".to_owned()),
            Some("number") => Some("number".to_owned()),
            Some("string") => Some("text".to_owned()),
            Some("boolean") => Some("`true` or `false`".to_owned()),
            Some("object") => Some("map".to_owned()),
            Some("array") => Some(format!("list of {}", self.kind(&schema["items"]))),
            _ => None,
        };
        if let Some(value) = schema["const"].as_str() {
            return format!("`{value}`");
        }
        let mut kinds: Vec<String> = match (&schema["enum"], &schema["type"]) {
            (Value::Array(values), _) => {
                let values = values.iter().filter_map(Value::as_str);
                values.map(|value| format!("`{value}`")).collect()
            }
            (_, Value::Array(types)) => types.iter().filter_map(named).collect(),
            (_, kind @ Value::String(_)) => named(kind).into_iter().collect(),
            _ => {
                let kinds = alternatives(schema).filter(|kind| kind["type"] != "null");
                kinds.map(|kind| self.kind(kind)).collect()
            }
        };
        kinds.dedup();
        kinds.join(", ")
    }

    /// The values of an enumeration that are explained one by one.
    fn named_values<'a>(&'a self, schema: &'a Value) -> Vec<(&'a str, &'a str)> {
        let schema = match &self.resolved(schema)["items"] {
            Value::Null => self.resolved(schema),
            items => self.resolved(items),
        };
        let mut values = Vec::new();
        for alternative in alternatives(schema).map(|alternative| self.resolved(alternative)) {
            match alternative["const"].as_str() {
                Some(value) => values.push((value, about(alternative))),
                None => {
                    let inner = alternatives(alternative);
                    values.extend(
                        inner.filter_map(|value| Some((value["const"].as_str()?, about(value)))),
                    );
                }
            }
        }
        values
    }

    fn resolved<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(reference) => {
                let pointer = reference.strip_prefix('#').unwrap();
                self.resolved(self.0.pointer(pointer).unwrap())
            }
            None => schema,
        }
    }
}

fn properties(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object["properties"].as_object().into_iter().flatten()
}

fn alternatives(schema: &Value) -> impl Iterator<Item = &Value> {
    let lists = [&schema["anyOf"], &schema["oneOf"]];
    lists.into_iter().filter_map(Value::as_array).flatten()
}

fn about(schema: &Value) -> &str {
    schema["description"].as_str().unwrap_or_default()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn paragraphs(text: &str) -> String {
    text.split("\n\n")
        .map(one_line)
        .collect::<Vec<_>>()
        .join("\n\n")
}
