//! How an item of a task becomes a prompt.

use crate::environment::{self, Trim};
use crate::error::{PromptError, Result};
use minijinja::Environment;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// A template over the fields of an item. An undefined name is an error, and a line feed at the end stays.
#[derive(Debug)]
pub struct PromptTemplate {
    environment: Environment<'static>,
    source: String,
    /// The key that it stands under, as messages name it.
    origin: String,
    names: BTreeSet<String>,
}

/// An expression over the fields of an item.
#[derive(Debug)]
pub struct Expression {
    environment: Environment<'static>,
    source: String,
    origin: String,
    names: BTreeSet<String>,
}

impl PromptTemplate {
    /// From its text.
    ///
    /// # Errors
    /// A template that does not parse, that names nothing, or that has the form of earlier versions.
    pub fn new(source: &str) -> Result<Self> {
        if has_old_form(source) {
            return Err(PromptError::OldForm);
        }
        let template = Self::text("prompt", source)?;
        match template.names.is_empty() {
            true => Err(PromptError::Constant {
                template: source.to_owned(),
            }),
            false => Ok(template),
        }
    }

    /// From its text, which stands under `key` and may name nothing.
    ///
    /// # Errors
    /// A template that does not parse.
    pub fn text(key: &str, source: &str) -> Result<Self> {
        let origin = format!("`{key}`");
        let environment = environment::of(Trim::Nothing);
        environment::check(&environment, source, &origin)?;
        Ok(Self {
            names: environment::names(&environment, source, &origin)?,
            environment,
            source: source.to_owned(),
            origin,
        })
    }

    /// Its text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The names that it uses.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Refuses a template that uses names beyond those that there are.
    ///
    /// # Errors
    /// Such a name, with a list of those that there are.
    pub fn check<'a>(&self, known: impl IntoIterator<Item = &'a str>) -> Result<()> {
        check(&self.origin, &self.names, known)
    }

    /// The prompt of an item.
    ///
    /// # Errors
    /// A name that this item does not have, a template that fails or does not end.
    pub fn render(&self, item: &Map<String, Value>) -> Result<String> {
        self.check(item.keys().map(String::as_str))?;
        environment::render(&self.environment, &self.source, item, &self.origin)
    }
}

impl Expression {
    /// From its text, which stands under `key`.
    ///
    /// # Errors
    /// An expression that does not parse, or that names nothing.
    pub fn new(key: &str, source: &str) -> Result<Self> {
        let origin = format!("`{key}`");
        let environment = environment::of(Trim::Nothing);
        let names = environment::names_of_expression(&environment, source, &origin)?;
        if names.is_empty() {
            return Err(PromptError::Message(format!(
                "`{key}` {source:?} names no field; it is a Jinja expression such as `label`"
            )));
        }
        Ok(Self {
            environment,
            source: source.to_owned(),
            origin,
            names,
        })
    }

    /// Refuses an expression that uses names beyond those that there are.
    ///
    /// # Errors
    /// Such a name, with a list of those that there are.
    pub fn check<'a>(&self, known: impl IntoIterator<Item = &'a str>) -> Result<()> {
        check(&self.origin, &self.names, known)
    }

    /// Its value for an item.
    ///
    /// # Errors
    /// A name that this item does not have, an expression that fails.
    pub fn value(&self, item: &Map<String, Value>) -> Result<Value> {
        self.check(item.keys().map(String::as_str))?;
        environment::value(&self.environment, &self.source, item, &self.origin)
    }
}

/// Refuses names beyond the known ones.
fn check<'a>(
    origin: &str,
    names: &BTreeSet<String>,
    known: impl IntoIterator<Item = &'a str>,
) -> Result<()> {
    let known: BTreeSet<&str> = known.into_iter().collect();
    let unknown = names.iter().filter(|name| !known.contains(name.as_str()));
    let unknown: Vec<String> = unknown.cloned().collect();
    match unknown.is_empty() {
        true => Ok(()),
        false => Err(PromptError::Unknown {
            origin: match origin {
                "`prompt`" => "the prompt".to_owned(),
                other => other.to_owned(),
            },
            unknown,
            known: known.into_iter().map(str::to_owned).collect(),
        }),
    }
}

/// Whether `{source}` stands in single braces.
fn has_old_form(template: &str) -> bool {
    const OLD: &str = "{source}";
    template.match_indices(OLD).any(|(at, _)| {
        let doubled = template[..at].ends_with('{') && template[at + OLD.len()..].starts_with('}');
        !doubled
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn item(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn every_field_has_its_name_and_ends_stay_as_they_are() {
        let item = item(json!({"source": "a\r\nb ", "topic": "ü", "n": 3, "meta": {"lang": "de"}}));
        let render = |template: &str| {
            PromptTemplate::new(template)
                .unwrap()
                .render(&item)
                .unwrap()
        };
        assert_eq!(render("{{ source }}\n"), "a\r\nb \n");
        assert_eq!(
            render("{{source}}{{ topic }} {{ n }} {{ meta.lang }}\n\n"),
            "a\r\nb ü 3 de\n\n"
        );
        assert_eq!(render("{ {{ source.strip().upper() }} }"), "{ A\r\nB }");
        assert_eq!(render("{% if n > 2 %}\n{{ topic }}\n{% endif %}"), "\nü\n");
        // JSON in a prompt is text.
        assert_eq!(render("{\"a\": \"{{ topic }}\"}"), "{\"a\": \"ü\"}");
    }

    #[test]
    fn a_name_that_there_is_not_is_told_with_those_that_there_are() {
        let template = PromptTemplate::new("{{ dialouge }} {{ topic }}").unwrap();
        let error = template.check(["source", "dialogue", "topic"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the prompt names `dialouge`, which there is not; there are: `dialogue`, `source`, `topic`"
        );
        let error = template.render(&item(json!({"topic": "x"}))).unwrap_err();
        assert!(error.to_string().contains("`dialouge`"), "{error}");
        // Deeper names are found when they are asked for.
        let error = PromptTemplate::new("{{ meta.lang }}").unwrap();
        let error = error.render(&item(json!({"meta": {}}))).unwrap_err();
        assert!(error.to_string().contains("undefined"), "{error}");
    }

    #[test]
    fn the_old_form_is_refused_with_the_new_one() {
        for old in ["{source}\n", "a {source} b {{ source }}", "{{source} }"] {
            let error = PromptTemplate::new(old).unwrap_err().to_string();
            assert!(error.contains("write `{{ source }}`"), "{error}");
        }
        assert!(PromptTemplate::new("{{source}}").is_ok());
        let error = PromptTemplate::new("translate").unwrap_err().to_string();
        assert!(error.contains("names no field"), "{error}");
        let error = PromptTemplate::new("{{ source }\nx")
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("`prompt`: line 1: "), "{error}");
    }
}
