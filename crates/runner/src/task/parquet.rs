//! Rows of a Parquet file.

use super::rows::{Row, Rows};
use anyhow::{Context, anyhow};
use polars::prelude::{AnyValue, ArrowDataType, DataFrame, ParquetReader, SerReader, Series};
use serde_json::{Map, Number, Value};
use std::fs::File;
use std::path::Path;

/// The first `most` rows. Columns whose type has no JSON form are left out.
///
/// # Errors
/// A file that cannot be read or is no Parquet.
pub(super) fn read(path: &Path, most: usize) -> anyhow::Result<Rows> {
    let failed = || format!("{}: not a whole Parquet file", path.display());
    let open = || File::open(path).with_context(|| format!("cannot read {}", path.display()));
    let mut reader = ParquetReader::new(open()?);
    let schema = reader.schema().with_context(failed)?;
    let count = reader.num_rows().with_context(failed)?;
    let readable = |kind: &ArrowDataType| is_readable(kind);
    let names: Vec<String> = schema
        .iter_values()
        .filter(|field| readable(&field.dtype))
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
