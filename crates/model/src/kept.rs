//! A matrix that is kept in few bits and widened as a whole for a product of many rows.

use crate::checkpoint::{CHUNK, Checkpoint};
use crate::error::{ModelError, Result};
use crate::form::WeightType;
use crate::matrix::Matrix;
use crate::memory;
use crate::stored::Stored;
use crate::threads::SideBySide;
use rayon::prelude::*;

/// Rows of a checkpoint as they are stored, or in another type of weights. Its values are always computed with in f32.
pub struct KeptMatrix {
    stored: Stored,
    bytes: Vec<u8>,
    rows: usize,
    columns: usize,
}

impl KeptMatrix {
    /// Reads a matrix; [`WeightType::Stored`] keeps every type of GGUF as it is, those too that no kernel reads.
    ///
    /// # Errors
    /// A file that cannot be read, no memory, rows that are no whole number of blocks of `keep`.
    pub(crate) fn read(checkpoint: &Checkpoint, matrix: &Matrix, keep: WeightType) -> Result<Self> {
        let source = checkpoint.source_of(matrix)?;
        let stored = match keep {
            WeightType::Stored => source.stored(),
            keep => checkpoint.form_in(keep, matrix, false)?.stored(),
        };
        let (rows, columns) = (matrix.rows(), matrix.columns());
        let width = stored.bytes(columns);
        memory::require(
            "a matrix",
            rows as u128 * width as u128,
            "the bits that the base is kept in",
        )?;
        let mut bytes = vec![0; rows * width];
        let height = (CHUNK / columns.max(1)).max(1);
        let chunks = bytes.par_chunks_mut((height * width).max(1)).enumerate();
        chunks.try_for_each(|(chunk, to)| -> Result<()> {
            let first = chunk * height;
            let rows = first..rows.min(first + height);
            checkpoint.pool().with(|scratch| -> Result<()> {
                source.read(rows, |row| matrix.place(row), scratch)?;
                to.copy_from_slice(&source.stored().convert(&scratch.bytes, stored)?);
                Ok(())
            })?;
            Ok(())
        })?;
        Ok(Self {
            stored,
            bytes,
            rows,
            columns,
        })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes that it is kept in.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// All values, `[rows, columns]`.
    ///
    /// # Errors
    /// What candle says of the blocks.
    pub fn widen(&self) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.rows * self.columns];
        let height = (CHUNK / self.columns.max(1)).max(1);
        let blocks = self
            .bytes
            .chunks((height * self.stored.bytes(self.columns)).max(1));
        values
            .chunks_mut((height * self.columns).max(1))
            .zip(blocks)
            .map_on_all_threads(|(to, bytes)| -> Result<()> {
                to.copy_from_slice(&self.stored.widen(bytes)?);
                Ok(())
            })
            .into_iter()
            .collect::<Result<()>>()?;
        Ok(values)
    }

    /// The values of these rows, `[ids, columns]`.
    ///
    /// # Errors
    /// A row that is not there.
    pub fn rows_of(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let width = self.stored.bytes(self.columns);
        let mut values = Vec::with_capacity(ids.len() * self.columns);
        for &id in ids {
            let row = self.bytes.chunks_exact(width).nth(id as usize);
            let row = row.ok_or(ModelError::TokenOutOfRange {
                id,
                vocab_size: self.rows,
            })?;
            values.extend(self.stored.widen(row)?);
        }
        Ok(values)
    }
}
