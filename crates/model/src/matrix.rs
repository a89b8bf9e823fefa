//! A matrix that is still in its file.

/// Rows of a matrix of the checkpoint, which are read when they are packed or made a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Matrix {
    /// Hugging Face's name.
    pub(crate) name: String,
    /// `[rows, columns]` of the whole.
    pub(crate) whole: [usize; 2],
    /// Row `i` is row `first + i / run * stride + i % run` of the whole.
    first: usize,
    run: usize,
    stride: usize,
    rows: usize,
}

impl Matrix {
    /// All rows of the matrix `name`, `[rows, columns]`.
    pub(crate) fn whole(name: impl Into<String>, rows: usize, columns: usize) -> Self {
        Self {
            name: name.into(),
            whole: [rows, columns],
            first: 0,
            run: rows.max(1),
            stride: rows,
            rows,
        }
    }

    /// `rows` of the rows of a whole: runs of `run` that lie `stride` apart, from row `first` on.
    pub(crate) fn pick(&self, first: usize, run: usize, stride: usize, rows: usize) -> Self {
        Self {
            first,
            run: run.max(1),
            stride,
            rows,
            ..self.clone()
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.whole[1]
    }

    pub(crate) fn elements(&self) -> usize {
        self.rows * self.columns()
    }

    /// Where row `row` stands in the whole.
    pub(crate) fn place(&self, row: usize) -> usize {
        self.first + row / self.run * self.stride + row % self.run
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_picked_in_runs() {
        let places = |matrix: Matrix| -> Vec<usize> {
            (0..matrix.rows()).map(|row| matrix.place(row)).collect()
        };
        let whole = Matrix::whole("w", 12, 3);
        assert_eq!(places(whole.clone()), (0..12).collect::<Vec<_>>());
        assert_eq!(places(whole.pick(4, 5, 5, 5)), [4, 5, 6, 7, 8]);
        // The keys of two heads that are two rows wide, with queries in front and values behind.
        assert_eq!(places(whole.pick(2, 2, 6, 4)), [2, 3, 8, 9]);
        assert_eq!(whole.pick(2, 2, 6, 4).elements(), 12);
    }
}
