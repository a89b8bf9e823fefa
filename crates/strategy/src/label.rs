//! The short form of a strategy, read and written: `name[:variant][@speedup] {setting: value}`.

use crate::budget::{Number, check_speedup};
use crate::{StrategyError, StrategySpec};
use serde_json::Value;
use std::fmt;
use std::str::FromStr;

impl FromStr for StrategySpec {
    type Err = StrategyError;

    /// Reads a short form, and a long form on one line too: a YAML string around one is still meant as one.
    fn from_str(text: &str) -> Result<Self, StrategyError> {
        let malformed = |reason: String| StrategyError::ShortForm {
            text: text.to_owned(),
            reason,
        };
        // A map on one line may stand in its braces.
        let braced = text.trim().strip_prefix('{');
        let text = braced
            .and_then(|text| text.strip_suffix('}'))
            .unwrap_or(text);
        if let Some((name, settings)) = long_form(text) {
            return Self::named(name)?
                .with_settings(settings)
                .map_err(malformed);
        }
        let (short, settings) = match text.find('{') {
            Some(brace) => (&text[..brace], Some(&text[brace..])),
            None => (text, None),
        };
        let spec = Self::from_short(short, malformed)?;
        let Some(settings) = settings else {
            return Ok(spec);
        };
        let whole = spec.with_settings(settings).map_err(malformed)?;
        let again = |what: &str| malformed(format!("its {what} is given twice"));
        if short.contains('@') && whole.target_speedup() != spec.target_speedup() {
            return Err(again("speedup"));
        }
        if short.contains(':') && whole.variant() != spec.variant() {
            return Err(again("variant"));
        }
        Ok(whole)
    }
}

/// The name and the settings of a long form on one line, as in `random: {seeds: 150}`: a colon that no variant follows.
fn long_form(text: &str) -> Option<(&str, &str)> {
    let (name, settings) = text.trim().split_once(':')?;
    let is_name = !name.contains(['@', '{', ' ']);
    let is_map = settings.is_empty() || settings.starts_with([' ', '\t', '\n', '{']);
    (is_name && is_map).then_some((name, settings))
}

impl StrategySpec {
    /// Reads `name[:variant][@speedup]`.
    fn from_short(
        short: &str,
        malformed: impl Fn(String) -> StrategyError,
    ) -> Result<Self, StrategyError> {
        let (head, speedup) = match short.trim().rsplit_once('@') {
            Some((head, speedup)) => (head, Some(speedup)),
            None => (short.trim(), None),
        };
        let (name, variant) = match head.split_once(':') {
            Some((name, variant)) => (name, Some(variant)),
            None => (head, None),
        };
        if name.is_empty() {
            return Err(malformed("the name is missing".to_owned()));
        }
        let mut spec = Self::named(name)?;
        if let Some(variant) = variant {
            spec.set_variant(variant)?;
        }
        let Some(speedup) = speedup else {
            return Ok(spec);
        };
        let value: f64 = speedup
            .parse()
            .map_err(|_| malformed(format!("`{speedup}` after the @ is not a number")))?;
        check_speedup(value)?;
        match spec.takes_target() {
            true => Ok(spec.with_target(value)),
            false => Err(malformed(format!("`{name}` takes no speedup"))),
        }
    }

    /// The same strategy with the settings of a YAML map, which may be empty, in place of its own.
    fn with_settings(&self, yaml: &str) -> Result<Self, String> {
        let more: Value = serde_saphyr::from_str(yaml).map_err(|error| {
            let error = error.to_string();
            format!("its settings: {}", error.lines().next().unwrap_or_default())
        })?;
        let mut settings = self.settings().unwrap_or_default();
        match more {
            Value::Null => {}
            Value::Object(more) => settings.extend(more),
            no_map => return Self::from_settings(self.name(), no_map),
        }
        Self::from_settings(self.name(), settings.into())
    }

    /// The variant, where the short form has a place for it and it is not the default.
    fn short_variant(&self) -> Option<&'static str> {
        let bare = Self::named(self.name()).ok()?;
        let variant = self.variant()?;
        let is_told = bare.variant() != Some(variant) && self.variants().contains(&variant);
        is_told.then_some(variant)
    }

    /// `key: value` of every setting that the short form leaves out.
    fn more_settings(&self) -> Vec<String> {
        let short = || {
            let mut spec = Self::named(self.name()).ok()?;
            if let Some(variant) = self.short_variant() {
                spec.set_variant(variant).ok()?;
            }
            match self.target_speedup() {
                Some(speedup) => spec.with_target(speedup),
                None => spec,
            }
            .settings()
            .ok()
        };
        let (Ok(found), Some(short)) = (self.settings(), short()) else {
            return Vec::new();
        };
        found
            .into_iter()
            .filter(|(key, value)| short.get(key) != Some(value))
            .map(|(key, value)| format!("{key}: {}", shown(&value)))
            .collect()
    }
}

/// The canonical short form, and behind it in braces the settings that have no place in it and are not at their default,
/// so that two strategies that differ are told apart. It parses back to the same strategy.
impl fmt::Display for StrategySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        if let Some(variant) = self.short_variant() {
            write!(f, ":{variant}")?;
        }
        if let Some(speedup) = self.target_speedup() {
            write!(f, "@{}", Number(speedup))?;
        }
        let more = self.more_settings();
        if !more.is_empty() {
            write!(f, " {{{}}}", more.join(", "))?;
        }
        Ok(())
    }
}

/// The value of a setting as a label shows it, and as YAML reads it.
fn shown(value: &Value) -> String {
    let nested = match value.is_object() {
        true => serde_json::from_value::<StrategySpec>(value.clone()).ok(),
        false => None,
    };
    match (nested.map(|nested| nested.to_string()), value.as_str()) {
        (Some(label), _) if label.contains('{') => format!("{label:?}"),
        (Some(label), _) => label,
        (None, Some(word)) if is_plain(word) => word.to_owned(),
        (None, Some(_)) => value.to_string(),
        (None, None) => value.to_string(),
    }
}

/// Whether a text in a map on one line is read as itself without quotes.
fn is_plain(word: &str) -> bool {
    let map = format!("{{key: {word}}}");
    let read = serde_saphyr::from_str::<Value>(&map);
    read.is_ok_and(|read| read == serde_json::json!({"key": word}))
}
