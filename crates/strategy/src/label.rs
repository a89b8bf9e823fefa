//! The short form of a strategy, read and written: `name[:variant][@speedup] {setting: value}`.

use crate::budget::check_speedup;
use crate::registry::Kind;
use crate::{StrategyError, StrategySpec};
use serde_json::{Map, Value};
use std::fmt;
use std::str::FromStr;

impl FromStr for StrategySpec {
    type Err = StrategyError;

    fn from_str(text: &str) -> Result<Self, StrategyError> {
        let malformed = |reason: String| StrategyError::ShortForm {
            text: text.to_owned(),
            reason,
        };
        if let Some((short, settings)) = text.split_once('{') {
            let spec: Self = short.parse()?;
            let whole = spec
                .with_settings(&format!("{{{settings}"))
                .map_err(malformed)?;
            let again = |what: &str| malformed(format!("its {what} is given twice"));
            if short.contains('@') && whole.target_speedup() != spec.target_speedup() {
                return Err(again("speedup"));
            }
            if short.contains(':') && whole.variant() != spec.variant() {
                return Err(again("variant"));
            }
            return Ok(whole);
        }
        let (head, speedup) = match text.trim().rsplit_once('@') {
            Some((head, speedup)) => (head, Some(speedup)),
            None => (text.trim(), None),
        };
        let (name, variant) = match head.split_once(':') {
            Some((name, variant)) => (name, Some(variant)),
            None => (head, None),
        };
        if name.is_empty() {
            return Err(malformed("the name is missing".to_owned()));
        }
        let mut spec = Self {
            kind: Kind::named(name)?,
        };
        if let Some(variant) = variant {
            spec.set_variant(variant)?;
        }
        if let Some(speedup) = speedup {
            let value: f64 = speedup
                .parse()
                .map_err(|_| malformed(format!("`{speedup}` after the @ is not a number")))?;
            check_speedup(value)?;
            match spec.kind.settings_mut().speedup_mut() {
                Some(slot) => *slot = Some(value),
                None => return Err(malformed(format!("`{name}` takes no speedup"))),
            }
        }
        Ok(spec)
    }
}

/// The canonical short form, and behind it in braces the settings that have no place in it and are not at their default,
/// so that two strategies that differ are told apart. It parses back to the same strategy.
impl fmt::Display for StrategySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = Kind::named(self.name()).ok();
        let default = default.and_then(|kind| kind.settings().variant());
        f.write_str(self.name())?;
        if let Some(variant) = self.variant().filter(|v| default != Some(v)) {
            write!(f, ":{variant}")?;
        }
        if let Some(speedup) = self.target_speedup() {
            write!(f, "@{speedup}")?;
        }
        let more = self.more_settings();
        if !more.is_empty() {
            write!(f, " {{{}}}", more.join(", "))?;
        }
        Ok(())
    }
}

impl StrategySpec {
    /// The value of the long form's one key.
    fn settings(&self) -> Option<Map<String, Value>> {
        match serde_json::to_value(self).ok()? {
            Value::Object(long) => long.into_iter().next()?.1.as_object().cloned(),
            _ => None,
        }
    }

    /// The same strategy with the settings of a YAML map in place of its own.
    fn with_settings(&self, yaml: &str) -> Result<Self, String> {
        let more: Map<String, Value> = serde_saphyr::from_str(yaml).map_err(|error| {
            let error = error.to_string();
            format!("its settings: {}", error.lines().next().unwrap_or_default())
        })?;
        let mut settings = self.settings().unwrap_or_default();
        settings.extend(more);
        let long: Map<String, Value> = [(self.name().to_owned(), Value::Object(settings))]
            .into_iter()
            .collect();
        serde_json::from_value(Value::Object(long)).map_err(|error| error.to_string())
    }

    /// `key: value` of every setting that the short form leaves out.
    fn more_settings(&self) -> Vec<String> {
        let short = || {
            let mut spec = Self::named(self.name()).ok()?;
            if let Some(variant) = self.variant() {
                spec.set_variant(variant).ok()?;
            }
            Some(match self.target_speedup() {
                Some(speedup) => spec.with_target(speedup),
                None => spec,
            })
        };
        let short = short().as_ref().and_then(Self::settings);
        let (Some(found), Some(short)) = (self.settings(), short) else {
            return Vec::new();
        };
        found
            .into_iter()
            .filter(|(key, value)| short.get(key) != Some(value))
            .map(|(key, value)| format!("{key}: {}", shown(&value)))
            .collect()
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
        (None, Some(word)) => word.to_owned(),
        (None, None) => value.to_string(),
    }
}
