//! YAML that remembers where each value was written, so that whatever is wrong with a value can be said with file, line and
//! column: while it is parsed, while it is read into a type, and long after, when a range is checked.
//!
//! A [`Document`] is one tree that may come from several texts: a file, the file that it `extends`, and the values of
//! `--set`.

mod read;
mod tree;

use anyhow::{Context, anyhow};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use tree::{Node, Place, Value};

/// A YAML tree and the texts that it was written in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Document {
    root: Node,
    sources: Vec<Source>,
}

/// A text that was parsed.
#[derive(Debug, Clone)]
struct Source {
    /// As messages call it.
    name: String,
    /// What relative paths in it are relative to.
    folder: PathBuf,
    text: String,
    /// A value of the command line has no lines to speak of.
    has_lines: bool,
}

impl Document {
    /// Reads a file with what it `extends`, and sets `overrides` (`key.path=value`) in it, in order.
    ///
    /// # Errors
    /// A file that cannot be read or parsed, files that extend one another in a circle, an override that leads nowhere.
    pub(crate) fn read(path: &Path, overrides: &[String]) -> anyhow::Result<Self> {
        let mut document = Self::default();
        document.root = document.file(path, &mut Vec::new())?;
        for text in overrides {
            document.set(text)?;
        }
        Ok(document)
    }

    /// Parses a text that messages call `name`.
    ///
    /// # Errors
    /// What is no YAML.
    pub(crate) fn parse(text: &str, name: &str) -> anyhow::Result<Self> {
        let mut document = Self::default();
        document.root = document.text(Source {
            name: name.to_owned(),
            folder: PathBuf::new(),
            text: text.to_owned(),
            has_lines: true,
        })?;
        Ok(document)
    }

    /// The document as a `T`.
    ///
    /// # Errors
    /// A key that is not known (with the nearest that is), one that is missing, a value of the wrong kind.
    pub(crate) fn to<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        T::deserialize(read::Reader::new(self)).map_err(|fault| {
            let place = fault.place.unwrap_or(self.root.place);
            self.located(place, &fault.message)
        })
    }

    /// The error that says what is wrong with the value at a key path such as `tasks.0.prompts`; where the path ends early
    /// (a default), with the value nearest to it.
    pub(crate) fn fault(&self, path: &str, message: impl std::fmt::Display) -> anyhow::Error {
        self.located(self.nearest_to(path).place, &message.to_string())
    }

    /// The folder that a relative path is relative to, by the text in which the value at `path` stands.
    pub(crate) fn folder_of(&self, path: &str) -> &Path {
        let source = self.sources.get(self.nearest_to(path).place.source);
        source.map_or(Path::new(""), |source| &source.folder)
    }

    /// Whether there is a value at a key path.
    pub(crate) fn has(&self, path: &str) -> bool {
        let mut steps = path.split('.');
        steps
            .try_fold(&self.root, |node, step| node.child(step))
            .is_some()
    }

    fn nearest_to(&self, path: &str) -> &Node {
        let mut node = &self.root;
        for step in path.split('.') {
            match node.child(step) {
                Some(child) => node = child,
                None => break,
            }
        }
        node
    }

    fn file(&mut self, path: &Path, open: &mut Vec<PathBuf>) -> anyhow::Result<Node> {
        let bytes =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = String::from_utf8(bytes)
            .map_err(|error| anyhow!("{}: not UTF-8: {error}", path.display()))?;
        tracing::info!("reading {}", path.display());
        open.push(path.canonicalize().unwrap_or_else(|_| path.to_owned()));
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let mut node = self.text(Source {
            name: path.display().to_string(),
            folder: folder.clone(),
            text,
            has_lines: true,
        })?;
        for task in node.items_mut("tasks") {
            self.extend(task, &folder, open)?;
        }
        // Of a training: what is learnt and what is validated on.
        self.extend_data(&mut node, &folder, open)?;
        if let Some(validation) = node.child_mut("validation") {
            self.extend_data(validation, &folder, open)?;
        }
        self.extend(&mut node, &folder, open)?;
        open.pop();
        Ok(node)
    }

    /// Lays the tasks of `data` over the files that they name or extend.
    fn extend_data(
        &mut self,
        node: &mut Node,
        folder: &Path,
        open: &mut Vec<PathBuf>,
    ) -> anyhow::Result<()> {
        for task in node.children_mut("data", "task") {
            task.text_is("extends");
            self.extend(task, folder, open)?;
        }
        Ok(())
    }

    /// Lays a map of a file in `folder` over the file that it `extends`, if it does.
    fn extend(
        &mut self,
        node: &mut Node,
        folder: &Path,
        open: &mut Vec<PathBuf>,
    ) -> anyhow::Result<()> {
        let Some(extends) = node.take("extends") else {
            return Ok(());
        };
        let Value::Text(name) = &extends.value else {
            return Err(self.located(
                extends.place,
                "`extends` takes the path of one file, such as `extends: base.yaml`",
            ));
        };
        let base = folder.join(name);
        let there = base.canonicalize().map_err(|error| {
            let what = format!("`extends`: cannot read {}: {error}", base.display());
            self.located(extends.place, &what)
        })?;
        if open.contains(&there) {
            let what = format!(
                "`extends`: {} extends this file in turn; one of them must stand alone",
                base.display()
            );
            return Err(self.located(extends.place, &what));
        }
        let mut whole = self.file(&base, open)?;
        whole.merge(std::mem::take(node));
        *node = whole;
        Ok(())
    }

    fn text(&mut self, source: Source) -> anyhow::Result<Node> {
        let id = self.sources.len();
        let parsed = tree::parse(&source.text, id);
        self.sources.push(source);
        parsed.map_err(|fault| {
            self.located(fault.place.unwrap_or(Place::in_source(id)), &fault.message)
        })
    }

    fn set(&mut self, assignment: &str) -> anyhow::Result<()> {
        let name = format!("--set {assignment}");
        let Some((path, text)) = assignment
            .split_once('=')
            .filter(|(path, _)| !path.is_empty())
        else {
            return Err(anyhow!(
                "{name}: write it as `key.path=value`, such as `timing.batches=4` or `tasks.0.prompts=8`"
            ));
        };
        let value = self.text(Source {
            name: name.clone(),
            folder: PathBuf::new(),
            text: text.to_owned(),
            has_lines: false,
        })?;
        self.root
            .set(path, value)
            .map_err(|message| anyhow!("{name}: {message}"))
    }

    /// `file:line:column: message`, with the line below it.
    fn located(&self, place: Place, message: &str) -> anyhow::Error {
        let Some(source) = self.sources.get(place.source) else {
            return anyhow!("{message}");
        };
        if !source.has_lines || place.line == 0 {
            return anyhow!("{}: {message}", source.name);
        }
        let line = source.text.lines().nth(place.line - 1).unwrap_or_default();
        anyhow!(
            "{}:{}:{}: {message}\n{}",
            source.name,
            place.line,
            place.column,
            excerpt(line, place)
        )
    }
}

/// A line with a mark below the place; of a long line, what is around the place.
fn excerpt(line: &str, place: Place) -> String {
    const BEFORE: usize = 60;
    const SHOWN: usize = 100;
    let at = place.column.saturating_sub(1);
    let skipped = at.saturating_sub(BEFORE);
    let shown: String = line
        .chars()
        .skip(skipped)
        .take(SHOWN)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let room = shown.chars().count().saturating_sub(at - skipped).max(1);
    let number = place.line.to_string();
    format!(
        "{number} | {}\n{} | {}{}",
        shown.trim_end(),
        " ".repeat(number.len()),
        " ".repeat(at - skipped),
        "^".repeat(place.len.clamp(1, room))
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    struct Config {
        name: String,
        #[serde(default)]
        sizes: Vec<u8>,
        #[serde(default)]
        inner: Option<Inner>,
        #[serde(default)]
        colour: Option<Colour>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    struct Inner {
        #[serde(default)]
        share: f64,
        #[serde(default)]
        on: bool,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "kebab-case")]
    enum Colour {
        DeepRed,
        Blue,
    }

    fn error(text: &str) -> String {
        let document = Document::parse(text, "a.yaml");
        let config = document.and_then(|document| document.to::<Config>());
        format!("{:#}", config.unwrap_err())
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let text = "name: 007\nsizes: [1, 2]\ninner: {share: 1, on: true}\ncolour: deep-red\n";
        let config: Config = Document::parse(text, "").unwrap().to().unwrap();
        let expected = Config {
            name: "007".to_owned(),
            sizes: vec![1, 2],
            inner: Some(Inner {
                share: 1.0,
                on: true,
            }),
            colour: Some(Colour::DeepRed),
        };
        assert_eq!(config, expected);
        let anchors = "name: &n x\nsizes: &s [3]\ninner: {<<: {share: 2}, on: false}\n";
        let config: Config = Document::parse(anchors, "").unwrap().to().unwrap();
        assert_eq!(config.sizes, [3]);
        assert_eq!(config.inner.unwrap().share, 2.0);
    }

    #[test]
    fn errors_say_what_is_wanted_and_where() {
        insta::assert_snapshot!(
            [
                "name: x\nsizes: 2\n",
                "name: x\nsizes: [1, two]\n",
                "name: x\nsizes: [1, 300]\n",
                "name: x\nsizes: [-1]\n",
                "name: x\nsizes: {a: 1}\n",
                "name: x\nsises: [1]\n",
                "name: x\ninner:\n  shar: 0.5\n",
                "name: x\ninner: 0.5\n",
                "name: x\ninner: {share: half}\n",
                "name: x\ninner: {on: 1}\n",
                "name: x\ncolour: read\n",
                "name: x\ncolour: deepred\n",
                "name: [x]\n",
                "name:\n",
                "sizes: [1]\n",
                "name: x\nname: y\n",
                "name: x\nsizes: [1\n",
                "name: x\n sizes: [1]\n",
                "name: *x\n",
                "- name\n",
                "",
                "name: x\n---\nname: y\n",
            ]
            .map(error)
            .join("\n\n")
        );
    }

    #[test]
    fn a_long_line_is_shown_around_the_place() {
        let text = format!("name: x\nsizes: [{} 300, 1]\n", "1, ".repeat(200));
        let message = error(&text);
        let lines: Vec<&str> = message.lines().collect();
        assert!(lines[1].chars().count() < 120, "{message}");
        let mark = lines[2].find('^').unwrap();
        assert_eq!(&lines[1][mark..mark + 3], "300");
    }

    #[test]
    fn overrides_are_set_in_order_and_may_make_what_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.yaml");
        std::fs::write(&path, "name: x\nsizes: [1, 2]\n").unwrap();
        let read = |overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
            Document::read(&path, &overrides).and_then(|document| document.to::<Config>())
        };
        let config = read(&["sizes.1=7", "inner.share=0.25", "name=a=b", "inner.on=true"]).unwrap();
        assert_eq!(config.sizes, [1, 7]);
        assert_eq!(config.name, "a=b");
        assert_eq!(
            config.inner,
            Some(Inner {
                share: 0.25,
                on: true
            })
        );
        assert_eq!(read(&["inner.on=true", "inner="]).unwrap().inner, None);
        let wrong = |text: &str| format!("{:#}", read(&[text]).unwrap_err());
        insta::assert_snapshot!(
            [
                "sizes.2=1",
                "sizes.x=1",
                "name.x=1",
                "inner.shar=1",
                "nme=1",
                "sizes=3",
                "sizes",
                "=3",
                "sizes=[",
                "inner..share=1",
            ]
            .map(wrong)
            .join("\n")
        );
    }

    #[test]
    fn a_file_that_extends_another_says_only_what_differs() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).unwrap();
        };
        let read = |name: &str| Document::read(&folder.path().join(name), &[]);
        write(
            "base.yaml",
            "name: base\nsizes: [1, 2]\ninner: {share: 0.5, on: true}\n",
        );
        write(
            "sub/a.yaml",
            "extends: ../base.yaml\nsizes: [9]\ninner: {on: false}\n",
        );
        let document = read("sub/a.yaml").unwrap();
        let config: Config = document.to().unwrap();
        assert_eq!(config.name, "base");
        assert_eq!(config.sizes, [9]);
        assert_eq!(
            config.inner,
            Some(Inner {
                share: 0.5,
                on: false
            })
        );
        // A path is relative to the file that says it.
        let sub = folder.path().join("sub");
        assert_eq!(document.folder_of("sizes.0"), sub);
        assert_eq!(document.folder_of("name"), sub.join(".."));

        let message = |document: anyhow::Result<Document>| {
            let config = document.and_then(|document| document.to::<Config>());
            format!("{:#}", config.unwrap_err())
        };
        write("wrong.yaml", "name: x\nsizes: 3\n");
        write("b.yaml", "extends: wrong.yaml\n");
        let wrong = message(read("b.yaml"));
        assert!(
            wrong.contains("wrong.yaml:2:8: `sizes` takes a list"),
            "{wrong}"
        );
        write("gone.yaml", "\nextends: nowhere.yaml\n");
        let gone = message(read("gone.yaml"));
        assert!(
            gone.contains("gone.yaml:2:10: `extends`: cannot read"),
            "{gone}"
        );
        write("round.yaml", "extends: trip.yaml\n");
        write("trip.yaml", "extends: ./round.yaml\n");
        let round = message(read("round.yaml"));
        assert!(round.contains("trip.yaml:1:10: `extends`:"), "{round}");
        write("many.yaml", "extends: [base.yaml]\n");
        let many = message(read("many.yaml"));
        assert!(many.contains("takes the path of one file"), "{many}");
    }
}
