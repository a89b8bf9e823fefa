//! A matrix that is still in its file.

/// Rows of a matrix of the checkpoint, which are read when they are packed or made a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrix {
    /// Hugging Face's name.
    pub name: String,
    /// `[rows, columns]` of the whole.
    pub whole: [usize; 2],
    /// Row `i` is row `first + i / run * stride + i % run` of the whole.
    first: usize,
    run: usize,
    stride: usize,
    rows: usize,
}

impl Matrix {
    /// All rows of the matrix `name`, `[rows, columns]`.
    pub fn whole(name: impl Into<String>, rows: usize, columns: usize) -> Self {
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
    pub fn pick(&self, first: usize, run: usize, stride: usize, rows: usize) -> Self {
        Self {
            first,
            run: run.max(1),
            stride,
            rows,
            ..self.clone()
        }
    }

    /// Rows that are picked.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns, which are those of the whole.
    pub fn columns(&self) -> usize {
        self.whole[1]
    }

    /// Numbers that are picked.
    pub fn elements(&self) -> usize {
        self.rows * self.columns()
    }

    /// Whether all rows of the whole are picked.
    pub fn is_whole(&self) -> bool {
        self.rows == self.whole[0]
    }

    /// Where row `row` stands in the whole.
    pub fn place(&self, row: usize) -> usize {
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
