//! minijinja, set up as the Jinja of transformers is, and its errors.

use crate::error::{PromptError, Result};
use crate::{clean, python};
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};
use serde::Serialize;
use std::collections::BTreeSet;
use std::error::Error as _;
use std::io::Write;

/// Instructions after which a template is taken to run for ever; the longest that are in use take some hundreds for a
/// message.
const FUEL: u64 = 5_000_000;
/// Bytes after which what a template writes is taken to have no end: no context is as long.
const LONGEST: usize = 64 << 20;
/// Macros and loops within one another.
const DEPTH: usize = 100;

/// What becomes of the line feed and the blanks around a block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trim {
    /// They go, and so does a line feed at the template's end; a name that is not defined is empty. So are chat templates
    /// rendered.
    Blocks,
    /// Nothing goes, and a name that is not defined is an error.
    Nothing,
}

/// What `raise_exception` was given.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

pub(crate) fn of(trim: Trim) -> Environment<'static> {
    let mut environment = Environment::new();
    match trim {
        Trim::Blocks => {
            environment.set_trim_blocks(true);
            environment.set_lstrip_blocks(true);
        }
        Trim::Nothing => {
            environment.set_keep_trailing_newline(true);
            environment.set_undefined_behavior(UndefinedBehavior::Strict);
        }
    }
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(DEPTH);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_formatter(|out, _, value| {
        let written = match value.as_str() {
            Some(text) => out.write_str(text),
            None => out.write_str(&python::text(value)),
        };
        written.map_err(Error::from)
    });
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", raise);
    environment.add_function("strftime_now", now);
    environment.add_filter("tojson", to_json);
    environment.add_filter("index", |list: Value, wanted: Value| {
        clean::index(&list, &wanted)
    });
    environment.add_filter("hellaswag", |text: &str| clean::hellaswag(text));
    environment.add_filter("wikitext", |text: &str| clean::wikitext(text));
    environment.add_filter("string", |value: Value| python::text(&value));
    // Python's strings and dictionaries are sequences too, and nothing can be said of what is not defined.
    environment.add_test("sequence", |value: Value| {
        matches!(
            value.kind(),
            ValueKind::Seq | ValueKind::String | ValueKind::Map
        )
    });
    environment.add_test("iterable", |value: Value| {
        matches!(
            value.kind(),
            ValueKind::Seq
                | ValueKind::String
                | ValueKind::Map
                | ValueKind::Iterable
                | ValueKind::Undefined
        )
    });
    environment
}

/// Refuses a template that does not parse.
pub(crate) fn check(environment: &Environment<'_>, source: &str, origin: &str) -> Result<()> {
    let parsed = environment.template_from_named_str(NAME, source);
    parsed.map(|_| ()).map_err(|error| told(&error, origin))
}

/// The names that a template uses and does not define.
pub(crate) fn names(
    environment: &Environment<'_>,
    source: &str,
    origin: &str,
) -> Result<BTreeSet<String>> {
    let template = environment.template_from_named_str(NAME, source);
    let template = template.map_err(|error| told(&error, origin))?;
    let global: BTreeSet<&str> = environment.globals().map(|(name, _)| name).collect();
    let names = template.undeclared_variables(false);
    Ok(names
        .into_iter()
        .filter(|name| !global.contains(name.as_str()))
        .collect())
}

/// The names that an expression uses and does not define; refuses one that does not parse.
pub(crate) fn names_of_expression(
    environment: &Environment<'_>,
    source: &str,
    origin: &str,
) -> Result<BTreeSet<String>> {
    let expression = environment.compile_expression(source);
    let expression = expression.map_err(|error| told(&error, origin))?;
    Ok(expression.undeclared_variables(false).into_iter().collect())
}

/// The value of an expression, as JSON.
pub(crate) fn value(
    environment: &Environment<'_>,
    source: &str,
    context: impl Serialize,
    origin: &str,
) -> Result<serde_json::Value> {
    let expression = environment.compile_expression(source);
    let expression = expression.map_err(|error| told(&error, origin))?;
    let value = expression.eval(context);
    let value = value.map_err(|error| told(&error, origin))?;
    let none = |message: String| PromptError::Render {
        origin: origin.to_owned(),
        line: None,
        message,
    };
    if value.is_undefined() {
        return Err(none(format!("`{source}` is not defined for this item")));
    }
    serde_json::to_value(&value).map_err(|error| none(error.to_string()))
}

pub(crate) fn render(
    environment: &Environment<'_>,
    source: &str,
    context: impl Serialize,
    origin: &str,
) -> Result<String> {
    let mut written = Limited(Vec::new());
    let template = environment.template_from_named_str(NAME, source);
    let template = template.map_err(|error| told(&error, origin))?;
    let rendered = template.render_captured_to(context, &mut written);
    rendered.map_err(|error| told(&error, origin))?;
    String::from_utf8(written.0).map_err(|error| PromptError::Render {
        origin: origin.to_owned(),
        line: None,
        message: error.to_string(),
    })
}

/// What a template writes, up to [`LONGEST`].
struct Limited(Vec<u8>);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > LONGEST {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What minijinja calls the template; without an ending, so that nothing is escaped.
const NAME: &str = "template";

fn told(error: &Error, origin: &str) -> PromptError {
    let origin = origin.to_owned();
    let line = error.line();
    let detail = error.detail().unwrap_or_default();
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(raised) = inner.downcast_ref::<Raised>() {
            let message = raised.0.clone();
            return PromptError::Refused { origin, message };
        }
        cause = inner.source();
    }
    let message = match detail {
        "" => error.kind().to_string(),
        detail => format!("{}: {detail}", error.kind()),
    };
    match error.kind() {
        ErrorKind::SyntaxError => PromptError::Syntax {
            origin,
            line,
            message: detail.to_owned(),
        },
        ErrorKind::OutOfFuel => PromptError::Stopped {
            origin,
            why: format!("it takes more than {FUEL} steps, so it runs for ever"),
        },
        ErrorKind::WriteFailure => PromptError::Stopped {
            origin,
            why: format!("it writes more than {} MiB", LONGEST >> 20),
        },
        ErrorKind::TemplateNotFound | ErrorKind::BadInclude => PromptError::AsksForFile {
            origin,
            line,
            message: detail.to_owned(),
        },
        _ if is_too_deep(error) => PromptError::Stopped {
            origin,
            why: format!("it calls itself more than {DEPTH} times, so it never comes back"),
        },
        _ => PromptError::Render {
            origin,
            line,
            message,
        },
    }
}

/// Whether the error, or what it came from, is that of the recursion limit, which has no kind of its own.
fn is_too_deep(error: &Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if inner.to_string().contains("recursion limit exceeded") {
            return true;
        }
        cause = inner.source();
    }
    false
}

fn raise(message: Value) -> std::result::Result<Value, Error> {
    let raised = Raised(python::text(&message));
    Err(Error::new(ErrorKind::InvalidOperation, raised.0.clone()).with_source(raised))
}

/// The local time in a format of `strftime`.
fn now(format: String) -> std::result::Result<String, Error> {
    let now = jiff::Zoned::now();
    jiff::fmt::strtime::format(&format, &now).map_err(|error| {
        Error::new(
            ErrorKind::InvalidOperation,
            format!("strftime_now({format:?}): {error}"),
        )
    })
}

/// `json.dumps` of Python with what transformers lets a template set.
fn to_json(
    value: Value,
    ensure_ascii: Option<bool>,
    options: Kwargs,
) -> std::result::Result<String, Error> {
    if value.is_undefined() {
        return Err(Error::new(
            ErrorKind::UndefinedError,
            "an undefined value has no JSON form",
        ));
    }
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    let indent: Option<Value> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sorted: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let indent = match indent {
        None => None,
        Some(value) if value.is_none() => None,
        Some(value) => Some(match (value.as_str(), value.as_usize()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(width)) if width <= 64 => " ".repeat(width),
            _ => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("tojson: `indent` is a width up to 64 or a text, not {value}"),
                ));
            }
        }),
    };
    let between = match (&separators, &indent) {
        (Some(texts), _) if texts.len() == 2 => [texts[0].clone(), texts[1].clone()],
        (Some(_), _) => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "tojson: `separators` are two texts",
            ));
        }
        (None, Some(_)) => [",".to_owned(), ": ".to_owned()],
        (None, None) => [", ".to_owned(), ": ".to_owned()],
    };
    let json = serde_json::to_value(&value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, format!("tojson: {error}")))?;
    let writer = python::Json {
        ascii: ensure_ascii.or(ascii).unwrap_or(false),
        indent,
        between,
        sorted: sorted.unwrap_or(false),
    };
    Ok(writer.write(&json))
}
