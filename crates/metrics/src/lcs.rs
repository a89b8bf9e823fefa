//! Longest common subsequences, 64 cells of the table at a time.

/// Words of a column up to which all symbols count as rare: building rows would cost more than it saves.
const SHORT: usize = 4;

/// Bit-parallel longest common subsequence (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"). Buffers are kept
/// from one pair to the next.
#[derive(Debug, Default)]
pub(crate) struct Lcs {
    /// Positions in the first sequence, grouped by symbol.
    positions: Vec<u32>,
    /// Where each symbol's group begins; one more than there are symbols.
    starts: Vec<u32>,
    /// Symbols that stand at so many positions that a bit per position is less: their row in `matches`, from 1.
    frequent_row: Vec<u32>,
    /// A bit per position of the first sequence for each frequent symbol, then one such row for the rare one at hand.
    matches: Vec<u64>,
    /// Per column a bit per row: 0 where the table grows from the row before.
    columns: Vec<u64>,
}

impl Lcs {
    /// Length of the longest common subsequence. Symbols should be small numbers.
    pub(crate) fn len(&mut self, a: &[u32], b: &[u32]) -> usize {
        let words = self.start(a);
        for &symbol in b {
            self.step(symbol, words, 0, 0);
        }
        self.grown(0, words, a.len())
    }

    /// Marks the elements of `a` in one longest common subsequence with `b`: the one that is found from the ends by going
    /// back in `a` unless the table is larger the other way.
    pub(crate) fn mark(&mut self, a: &[u32], b: &[u32], marked: &mut [bool]) {
        let words = self.start(a);
        self.columns.resize(words * (b.len() + 1), u64::MAX);
        for (column, &symbol) in b.iter().enumerate() {
            self.step(symbol, words, column * words, (column + 1) * words);
        }
        let (mut row, mut column) = (a.len(), b.len());
        while row > 0 && column > 0 {
            if a[row - 1] == b[column - 1] {
                marked[row - 1] = true;
                row -= 1;
                column -= 1;
                continue;
            }
            let left = self.grown((column - 1) * words, words, row);
            let up = self.grown(column * words, words, row - 1);
            match left > up {
                true => column -= 1,
                false => row -= 1,
            }
        }
    }

    /// Groups the positions of `a`; gives the words of a column.
    fn start(&mut self, a: &[u32]) -> usize {
        let symbols = a.iter().max().map_or(0, |&largest| largest as usize + 1);
        self.starts.clear();
        self.starts.resize(symbols + 1, 0);
        for &symbol in a {
            self.starts[symbol as usize + 1] += 1;
        }
        for at in 1..self.starts.len() {
            self.starts[at] += self.starts[at - 1];
        }
        let mut next = self.starts.clone();
        self.positions.clear();
        self.positions.resize(a.len(), 0);
        for (position, &symbol) in a.iter().enumerate() {
            let slot = &mut next[symbol as usize];
            self.positions[*slot as usize] = position as u32;
            *slot += 1;
        }
        let words = a.len().div_ceil(64);
        self.frequent_row.clear();
        self.matches.clear();
        for group in self.starts.windows(2) {
            let positions = &self.positions[group[0] as usize..group[1] as usize];
            if words <= SHORT || positions.len() < words {
                self.frequent_row.push(0);
                continue;
            }
            let row = self.matches.len();
            self.matches.resize(row + words, 0);
            for &position in positions {
                self.matches[row + position as usize / 64] |= 1 << (position % 64);
            }
            self.frequent_row.push((row / words) as u32 + 1);
        }
        self.matches.resize(self.matches.len() + words, 0);
        self.columns.clear();
        self.columns.resize(words, u64::MAX);
        words
    }

    /// The column after `symbol`, from the one at `from` to the one at `to`.
    fn step(&mut self, symbol: u32, words: usize, from: usize, to: usize) {
        let symbol = symbol as usize;
        let spare = self.matches.len() - words;
        let row = self.frequent_row.get(symbol).copied().unwrap_or(0) as usize;
        let rare = match (row, self.starts.get(symbol..symbol + 2)) {
            (0, Some(group)) => group[0] as usize..group[1] as usize,
            _ => 0..0,
        };
        for &position in &self.positions[rare.clone()] {
            self.matches[spare + position as usize / 64] |= 1 << (position % 64);
        }
        let matches = match row {
            0 => &self.matches[spare..],
            row => &self.matches[(row - 1) * words..row * words],
        };
        let mut carry = false;
        for (word, matches) in matches.iter().enumerate() {
            let column = self.columns[from + word];
            let (sum, over) = column.overflowing_add(column & matches);
            let (sum, over_again) = sum.overflowing_add(u64::from(carry));
            carry = over || over_again;
            self.columns[to + word] = sum | (column & !matches);
        }
        for &position in &self.positions[rare] {
            self.matches[spare + position as usize / 64] = 0;
        }
    }

    /// The table's value in the column at `from` after `rows` rows.
    fn grown(&self, from: usize, words: usize, rows: usize) -> usize {
        let column = &self.columns[from..from + words];
        let (whole, rest) = (rows / 64, rows % 64);
        let zeros: u32 = column[..whole].iter().map(|word| word.count_zeros()).sum();
        let tail = match rest {
            0 => 0,
            rest => (!column[whole] & ((1 << rest) - 1)).count_ones(),
        };
        (zeros + tail) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(a: &[u32], b: &[u32]) -> Vec<Vec<usize>> {
        let mut table = vec![vec![0; b.len() + 1]; a.len() + 1];
        for i in 0..a.len() {
            for j in 0..b.len() {
                table[i + 1][j + 1] = match a[i] == b[j] {
                    true => table[i][j] + 1,
                    false => table[i][j + 1].max(table[i + 1][j]),
                };
            }
        }
        table
    }

    fn walked(a: &[u32], b: &[u32]) -> Vec<bool> {
        let table = table(a, b);
        let mut marked = vec![false; a.len()];
        let (mut i, mut j) = (a.len(), b.len());
        while i > 0 && j > 0 {
            if a[i - 1] == b[j - 1] {
                marked[i - 1] = true;
                i -= 1;
                j -= 1;
            } else if table[i][j - 1] > table[i - 1][j] {
                j -= 1;
            } else {
                i -= 1;
            }
        }
        marked
    }

    proptest! {
        #[test]
        fn as_the_table_has_it(a in prop::collection::vec(0u32..6, 0..200), b in prop::collection::vec(0u32..7, 0..200)) {
            let mut lcs = Lcs::default();
            prop_assert_eq!(lcs.len(&a, &b), table(&a, &b)[a.len()][b.len()]);
            let mut marked = vec![false; a.len()];
            lcs.mark(&a, &b, &mut marked);
            prop_assert_eq!(marked, walked(&a, &b));
        }
    }
}
