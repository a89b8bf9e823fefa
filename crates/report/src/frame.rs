//! `results.csv` and `results.parquet`.

use crate::columns::Get;
use crate::error::Result;
use crate::fields::{Field, file_fields};
use crate::row::Row;
use polars_core::prelude::{Column, DataFrame};
use polars_io::prelude::{CsvWriter, ParquetWriter, SerWriter};

/// Every column of every row.
pub(crate) struct Frame(DataFrame);

impl Frame {
    pub(crate) fn of<'a>(rows: &[&'a Row<'a>]) -> Result<Self> {
        let fields = file_fields(rows.iter().copied());
        let columns = fields.iter().map(|field| column(field, rows)).collect();
        Ok(Self(DataFrame::new(rows.len(), columns)?))
    }

    pub(crate) fn csv(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        CsvWriter::new(&mut bytes).finish(&mut self.0)?;
        Ok(bytes)
    }

    pub(crate) fn parquet(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        ParquetWriter::new(&mut bytes).finish(&mut self.0)?;
        Ok(bytes)
    }
}

fn column(field: &Field<'_>, rows: &[&Row<'_>]) -> Column {
    let name = field.named(field.column.name).into();
    let rows = rows.iter().copied();
    match field.column.get {
        Get::Text(of) => Column::new(name, rows.map(of).collect::<Vec<_>>()),
        Get::Count(of) => Column::new(name, rows.map(of).collect::<Vec<_>>()),
        Get::Number(_) | Get::Score(_) => {
            Column::new(name, rows.map(|row| field.number(row)).collect::<Vec<_>>())
        }
    }
}
