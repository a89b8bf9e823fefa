//! What makes a training run the one that it is.

use crate::architecture::Architecture;
use crate::config::TrainConfig;
use crate::error::{Result, TrainError};
use serde_json::{Map, Value};

/// Everything that the result of a run depends on, as a JSON object: schedule, shape, and `context`, which is whatever
/// else determines the batches. A run is only resumed with the same.
///
/// # Errors
/// A setting that JSON cannot hold, such as an infinite number.
pub fn of_run(
    config: &TrainConfig,
    architecture: &Architecture,
    context: &Map<String, Value>,
) -> Result<Value> {
    let failed = |error: serde_json::Error| TrainError::Config(error.to_string());
    let mut train = serde_json::to_value(config).map_err(failed)?;
    if let Some(train) = train.as_object_mut() {
        // How often a run is saved does not change what it ends with.
        train.remove("checkpoint-every");
    }
    let mut settings = context.clone();
    settings.insert("train".to_owned(), train);
    settings.insert("shape".to_owned(), architecture.settings().map_err(failed)?);
    Ok(Value::Object(settings))
}

/// Every setting that differs, as in "`train.batch-size` was 64 and is 32".
pub fn differences(then: &Value, now: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("", then, now, &mut found);
    found
}

fn compare(path: &str, then: &Value, now: &Value, found: &mut Vec<String>) {
    match (then, now) {
        (Value::Object(then), Value::Object(now)) => {
            let added = now.keys().filter(|key| !then.contains_key(*key));
            for key in then.keys().chain(added) {
                let path = match path {
                    "" => key.clone(),
                    _ => format!("{path}.{key}"),
                };
                let at = |map: &Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                compare(&path, &at(then), &at(now), found);
            }
        }
        (Value::Array(then), Value::Array(now)) if then.len() == now.len() => {
            for (index, (then, now)) in then.iter().zip(now).enumerate() {
                compare(&format!("{path}[{index}]"), then, now, found);
            }
        }
        _ if then == now => {}
        _ => found.push(format!("`{path}` was {then} and is {now}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_differs_is_named_by_its_path() {
        let then = json!({"a": {"b": 1, "gone": true}, "list": [1, {"c": 2.5}], "short": [1], "same": [null]});
        let now = json!({"a": {"b": 2}, "list": [1, {"c": 2.0}], "short": [1, 2], "same": [null], "new": "x"});
        assert_eq!(
            differences(&then, &now),
            [
                "`a.b` was 1 and is 2",
                "`a.gone` was true and is null",
                "`list[1].c` was 2.5 and is 2.0",
                "`short` was [1] and is [1,2]",
                "`new` was null and is \"x\"",
            ]
        );
        assert!(differences(&now, &now).is_empty());
    }
}
