//! Rows of a Parquet file.

use super::rows::{Row, Rows};
use anyhow::{Context, anyhow};
use polars_core::prelude::{AnyValue, ArrowDataType, DataFrame, Series};
use polars_io::prelude::{ParquetReader, SerReader};
use serde_json::{Map, Number, Value};
use std::fs::File;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The first `most` rows. Columns whose type has no JSON form are left out.
///
/// # Errors
/// A file that cannot be read or is no Parquet.
pub(super) fn read(path: &Path, most: usize) -> anyhow::Result<Rows> {
    guarded(|| rows(path, most))
        .unwrap_or_else(|| Err(anyhow!("{}: not a whole Parquet file", path.display())))
}

/// What `read` gives, or nothing where it panics: polars believes what a file says of itself. (A page that claims to hold
/// more than there is memory still ends the process.)
fn guarded<T>(read: impl FnOnce() -> T) -> Option<T> {
    /// The hook belongs to the whole process.
    static HOOK: Mutex<()> = Mutex::new(());
    let held = HOOK.lock().unwrap_or_else(PoisonError::into_inner);
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| ()));
    let outcome = panic::catch_unwind(AssertUnwindSafe(read));
    panic::set_hook(hook);
    drop(held);
    outcome.ok()
}

fn rows(path: &Path, most: usize) -> anyhow::Result<Rows> {
    let failed = || format!("{}: not a whole Parquet file", path.display());
    let open = || File::open(path).with_context(|| format!("cannot read {}", path.display()));
    let mut reader = ParquetReader::new(open()?);
    let schema = reader.schema().with_context(failed)?;
    let count = reader.num_rows().with_context(failed)?;
    let names: Vec<String> = schema
        .iter_values()
        .filter(|field| is_readable(&field.dtype))
        .map(|field| field.name.to_string())
        .collect();
    if names.is_empty() {
        return Err(anyhow!(
            "{}: no column holds texts, numbers or lists of them",
            path.display()
        ));
    }
    let table = ParquetReader::new(open()?)
        .with_columns(Some(names))
        .with_slice(Some((0, most.min(count))))
        .finish()
        .with_context(failed)?;
    let rows = (0..table.height()).map(|index| {
        Ok(Row {
            fields: fields(&table, index).with_context(failed)?,
            place: format!("row {}", index + 1),
        })
    });
    Ok(Rows {
        rows: rows.collect::<anyhow::Result<_>>()?,
        count,
    })
}

/// What this build of polars reads; it knows no structures and no times.
fn is_readable(kind: &ArrowDataType) -> bool {
    use ArrowDataType as A;
    match kind {
        A::Null | A::Boolean | A::Utf8 | A::LargeUtf8 | A::Utf8View => true,
        A::Int8 | A::Int16 | A::Int32 | A::Int64 | A::UInt8 | A::UInt16 | A::UInt32 | A::UInt64 => {
            true
        }
        A::Float32 | A::Float64 => true,
        A::List(inner) | A::LargeList(inner) => is_readable(&inner.dtype),
        _ => false,
    }
}

fn fields(table: &DataFrame, index: usize) -> anyhow::Result<Map<String, Value>> {
    let mut fields = Map::new();
    for column in table.columns() {
        let value = column.get(index)?;
        fields.insert(column.name().to_string(), json(&value));
    }
    Ok(fields)
}

fn json(value: &AnyValue<'_>) -> Value {
    let number = |value: f64| Number::from_f64(value).map_or(Value::Null, Value::Number);
    match value {
        AnyValue::Null => Value::Null,
        AnyValue::Boolean(value) => Value::Bool(*value),
        AnyValue::String(text) => Value::from(*text),
        AnyValue::StringOwned(text) => Value::from(text.as_str()),
        AnyValue::List(items) => list(items),
        AnyValue::Float32(value) => number(f64::from(*value)),
        AnyValue::Float64(value) => number(*value),
        other => match (other.extract::<i64>(), other.extract::<u64>()) {
            (Some(value), _) => Value::from(value),
            (None, Some(value)) => Value::from(value),
            (None, None) => Value::Null,
        },
    }
}

fn list(items: &Series) -> Value {
    Value::Array(items.iter().map(|item| json(&item)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> Vec<u8> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/items.parquet");
        std::fs::read(path).unwrap()
    }

    #[test]
    fn texts_numbers_and_lists_become_json() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("items.parquet");
        std::fs::write(&path, fixture()).unwrap();
        let rows = read(&path, 2).unwrap();
        assert_eq!((rows.count, rows.rows.len()), (3, 2));
        assert_eq!(
            Value::Object(rows.rows[1].fields.clone()),
            serde_json::json!({
                "key": 12, "doc": "der Hund\nbellt", "sums": ["the dog barks"], "score": null, "ok": false, "one": "the dog barks"
            })
        );
        assert_eq!(rows.rows[1].place, "row 2");
    }

    /// Whatever a file holds, it is read or refused.
    #[test]
    fn a_damaged_file_is_no_reason_to_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("damaged.parquet");
        let whole = fixture();
        for at in 0..whole.len() {
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(read(&path, 3).is_err(), "cut at {at}");
        }
        // What the file says of itself stands at its end, in front of its length.
        let length: [u8; 4] = whole[whole.len() - 8..whole.len() - 4].try_into().unwrap();
        let begin = whole.len() - 8 - u32::from_le_bytes(length) as usize;
        let mut refused = 0;
        for at in begin..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x55;
            std::fs::write(&path, bytes).unwrap();
            refused += usize::from(read(&path, 3).is_err());
        }
        assert!(refused > 400, "{refused} of {}", whole.len() - begin);
    }
}
