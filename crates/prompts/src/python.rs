//! Values as Python writes them.

use minijinja::value::{Value, ValueKind};
use serde_json::Value as JsonValue;

/// `str(value)`; nothing of what is not defined.
pub(crate) fn text(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None => repr(value),
    }
}

/// `repr(value)`.
fn repr(value: &Value) -> String {
    let all =
        |open: char, items: Vec<String>, close: char| format!("{open}{}{close}", items.join(", "));
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::None => "None".to_owned(),
        ValueKind::Bool => match value.is_true() {
            true => "True".to_owned(),
            false => "False".to_owned(),
        },
        ValueKind::Number => match f64::try_from(value.clone()) {
            Ok(number) if !value.is_integer() => float(number),
            _ => value.to_string(),
        },
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter().into_iter().flatten();
            all('[', items.map(|item| repr(&item)).collect(), ']')
        }
        ValueKind::Map => {
            let keys = value.try_iter().into_iter().flatten();
            let pair = |key: Value| {
                let item = value.get_item(&key).unwrap_or_default();
                format!("{}: {}", repr(&key), repr(&item))
            };
            all('{', keys.map(pair).collect(), '}')
        }
        _ => value.to_string(),
    }
}

/// `repr` of a string: between single quotes, unless it holds those and no double ones.
fn quoted(text: &str) -> String {
    let quote = match text.contains('\'') && !text.contains('"') {
        true => '"',
        false => '\'',
    };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// `repr` of a float: the shortest digits that give it again, with an exponent below 1e-4 and from 1e16 on.
fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{value}");
    match plain.contains('.') {
        true => plain,
        false => plain + ".0",
    }
}

/// How `json.dumps` writes.
pub(crate) struct Json {
    /// Everything beyond ASCII is escaped.
    pub(crate) ascii: bool,
    /// What each level is indented by; `None` for one line.
    pub(crate) indent: Option<String>,
    /// Between items, and between a key and its value.
    pub(crate) between: [String; 2],
    /// Keys in alphabetical order.
    pub(crate) sorted: bool,
}

impl Json {
    pub(crate) fn write(&self, value: &JsonValue) -> String {
        let mut out = String::new();
        self.value(&mut out, value, 0);
        out
    }

    fn value(&self, out: &mut String, value: &JsonValue, level: usize) {
        match value {
            JsonValue::Null => out.push_str("null"),
            JsonValue::Bool(true) => out.push_str("true"),
            JsonValue::Bool(false) => out.push_str("false"),
            JsonValue::Number(number) => match number.as_f64() {
                Some(number) if !(value.is_i64() || value.is_u64()) => out.push_str(&float(number)),
                _ => out.push_str(&number.to_string()),
            },
            JsonValue::String(text) => self.string(out, text),
            JsonValue::Array(items) => {
                let write = |out: &mut String, item: &&JsonValue| self.value(out, item, level + 1);
                self.all(out, ['[', ']'], items.iter().collect(), level, write);
            }
            JsonValue::Object(fields) => {
                let mut fields: Vec<(&String, &JsonValue)> = fields.iter().collect();
                if self.sorted {
                    fields.sort_by_key(|(key, _)| *key);
                }
                let write = |out: &mut String, (key, item): &(&String, &JsonValue)| {
                    self.string(out, key);
                    out.push_str(&self.between[1]);
                    self.value(out, item, level + 1);
                };
                self.all(out, ['{', '}'], fields, level, write);
            }
        }
    }

    fn all<T>(
        &self,
        out: &mut String,
        [open, close]: [char; 2],
        items: Vec<T>,
        level: usize,
        write: impl Fn(&mut String, &T),
    ) {
        let is_empty = items.is_empty();
        let feed = |out: &mut String, level: usize| {
            if let Some(indent) = self.indent.as_ref().filter(|_| !is_empty) {
                out.push('\n');
                out.push_str(&indent.repeat(level));
            }
        };
        out.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push_str(&self.between[0]);
            }
            feed(out, level + 1);
            write(out, item);
        }
        feed(out, level);
        out.push(close);
    }

    fn string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if u32::from(c) < 0x20 || self.ascii && !matches!(c, ' '..='~') => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (value, expected) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e16, "1e+16"),
            (123_456_789_012_345.0, "123456789012345.0"),
            (1e-5, "1e-05"),
            (0.0001, "0.0001"),
            (-2.5e-7, "-2.5e-07"),
            (0.0, "0.0"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(float(value), expected);
        }
    }

    #[test]
    fn values_are_written_as_python_writes_them() {
        let value = Value::from_serialize(json!({"a": [true, null, 1.5, "it's", "\n"], "b": {}}));
        assert_eq!(
            text(&value),
            "{'a': [True, None, 1.5, \"it's\", '\\n'], 'b': {}}"
        );
        assert_eq!(text(&Value::from("x")), "x");
        assert_eq!(text(&Value::UNDEFINED), "");
    }

    #[test]
    fn json_is_pythons() {
        let value = json!({"b": "ü<\u{1}\u{7f}🚀\"", "a": [1, 2.0, []]});
        let json = |ascii, indent: Option<&str>, sorted| {
            let comma = if indent.is_some() { "," } else { ", " };
            let writer = Json {
                ascii,
                indent: indent.map(str::to_owned),
                between: [comma.to_owned(), ": ".to_owned()],
                sorted,
            };
            writer.write(&value)
        };
        assert_eq!(
            json(false, None, false),
            "{\"b\": \"ü<\\u0001\u{7f}🚀\\\"\", \"a\": [1, 2.0, []]}"
        );
        assert_eq!(
            json(true, None, true),
            "{\"a\": [1, 2.0, []], \"b\": \"\\u00fc<\\u0001\\u007f\\ud83d\\ude80\\\"\"}"
        );
        assert_eq!(
            json(false, Some("  "), true),
            "{\n  \"a\": [\n    1,\n    2.0,\n    []\n  ],\n  \"b\": \"ü<\\u0001\u{7f}🚀\\\"\"\n}"
        );
    }
}
