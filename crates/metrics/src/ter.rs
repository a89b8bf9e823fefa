//! TER.

use crate::ngrams::Words;
use crate::text::{surround, surround_ascii, trim_end, words};
use crate::tokenizer::{is_western_symbol, separate_stops};
use crate::{Counts, SACREBLEU_VERSION, Scratch, Segment, Unit, yes_no};
use std::ops::Range;

const MAX_SHIFT_LEN: usize = 10;
const MAX_SHIFT_DISTANCE: usize = 50;
const MAX_SHIFT_CANDIDATES: usize = 1000;
const BEAM_WIDTH: usize = 25;

/// Translation edit rate (Snover et al. 2006, "A Study of Translation Edit Rate with Targeted Human Annotation"), as
/// sacrebleu 2.6.0 computes it after Tercom: insertions, deletions, substitutions and shifts of word blocks that turn the
/// hypothesis into the nearest reference, over the mean reference length; 0 is best, 100 is a rewrite, and it has no upper
/// end. Shifts are found greedily.
///
/// Kept of sacrebleu: the edit distance looks only at a beam around the diagonal, no more than 1,000 shifts are tried for
/// a segment, and the shift whose trial reaches that number is not carried out; against an empty reference each word of
/// the hypothesis is an edit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ter {
    /// Punctuation stands alone and XML escapes are undone, as Tercom's `-N` does.
    pub normalized: bool,
    /// Punctuation is dropped.
    pub no_punct: bool,
    /// With `normalized` Asian characters are tokens; with `no_punct` their punctuation is dropped too.
    pub asian_support: bool,
    /// Case counts.
    pub case_sensitive: bool,
}

impl Ter {
    fn tokenized(&self, segment: &str) -> String {
        let segment = trim_end(segment);
        let mut text = match self.case_sensitive {
            true => segment.to_owned(),
            false => segment.to_lowercase(),
        };
        if self.normalized && !text.is_empty() {
            text = normalized(&text);
            if self.asian_support {
                text = split_asian(&text);
            }
        }
        if self.no_punct {
            text.retain(|c| !matches!(c, '.' | ',' | '?' | ':' | ';' | '!' | '"' | '(' | ')'));
            if self.asian_support {
                text.retain(|c| !is_asian_punctuation(c));
            }
        }
        words(&text).collect::<Vec<_>>().join(" ")
    }
}

/// Tercom's normalization of Western text. sacrebleu also means to part runs of kana from what surrounds them, but its
/// expressions match at the start of the text alone, where the normalized text has a space.
fn normalized(text: &str) -> String {
    let text = text
        .replace("\n-", "")
        .replace('\n', " ")
        .replace("&quot;", "\"")
        .replace("&amp;", "&")
        .replace("&lt;", "<")
        .replace("&gt;", ">");
    let text = surround_ascii(&format!(" {text} "), is_western_symbol);
    separate_stops(&text.replace("'s ", " 's "))
}

fn split_asian(text: &str) -> String {
    // One class after the other, as sacrebleu does it; a character of two classes only gets more spaces.
    surround(text, |c| {
        is_asian_punctuation(c)
            || matches!(c,
                '\u{4e00}'..='\u{9fff}' | '\u{3400}'..='\u{4dbf}'
                | '\u{31c0}'..='\u{31ef}' | '\u{2e80}'..='\u{2eff}'
                | '\u{3300}'..='\u{33ff}' | '\u{f900}'..='\u{faff}' | '\u{fe30}'..='\u{fe4f}'
                // Meant to end at U+32FF; sacrebleu's range ends here.
                | '\u{3200}'..='\u{3f22}')
    })
}

fn is_asian_punctuation(c: char) -> bool {
    matches!(c,
        '\u{3001}' | '\u{3002}' | '\u{3008}'..='\u{3011}' | '\u{3014}'..='\u{301f}'
        | '\u{ff61}'..='\u{ff65}' | '\u{30fb}'
        | '\u{ff0e}' | '\u{ff0c}' | '\u{ff1f}' | '\u{ff1a}' | '\u{ff1b}' | '\u{ff01}' | '\u{ff02}'
        | '\u{ff08}' | '\u{ff09}')
}

impl Counts for Ter {
    fn label(&self) -> String {
        "TER".to_owned()
    }

    fn unit(&self) -> Unit {
        Unit::Percent
    }

    fn higher_is_better(&self) -> bool {
        false
    }

    fn width(&self) -> usize {
        2
    }

    /// Edits to the nearest reference, mean length of the references.
    fn count(&self, _: &mut Scratch, segment: Segment<'_>, out: &mut [f64]) {
        let (hypothesis, references) = (segment.text(), segment.references());
        let hypothesis = self.tokenized(hypothesis);
        // sacrebleu tokenizes references twice, which tells where normalization is not idempotent.
        let references: Vec<String> = references
            .iter()
            .map(|text| self.tokenized(&self.tokenized(text)))
            .collect();
        let mut ids = Words::default();
        let hypothesis: Vec<u32> = words(&hypothesis).map(|word| ids.id(word)).collect();
        let (mut fewest, mut total_len) = (usize::MAX, 0);
        for reference in &references {
            let reference: Vec<u32> = words(reference).map(|word| ids.id(word)).collect();
            fewest = fewest.min(edits(&hypothesis, &reference));
            total_len += reference.len();
        }
        out[0] = fewest as f64;
        out[1] = total_len as f64 / references.len() as f64;
    }

    fn score(&self, sum: &[f64], _segments: usize) -> f64 {
        let (edits, reference_len) = (sum[0], sum[1]);
        match reference_len > 0.0 {
            true => 100.0 * (edits / reference_len),
            false if edits > 0.0 => 100.0,
            false => 0.0,
        }
    }

    fn parts(&self, sum: &[f64], _segments: usize) -> Vec<(&'static str, f64)> {
        vec![("edits", sum[0]), ("reference_len", sum[1])]
    }

    fn signature(&self) -> Vec<(&'static str, String)> {
        let case = if self.case_sensitive { "mixed" } else { "lc" };
        vec![
            ("case", case.to_owned()),
            ("tok", "tercom".to_owned()),
            ("norm", yes_no(self.normalized)),
            ("punct", yes_no(!self.no_punct)),
            ("asian", yes_no(self.asian_support)),
        ]
    }

    fn version(&self) -> String {
        SACREBLEU_VERSION.to_owned()
    }
}

/// Shifts and other edits that turn `hypothesis` into `reference`.
fn edits(hypothesis: &[u32], reference: &[u32]) -> usize {
    if reference.is_empty() {
        return hypothesis.len();
    }
    let mut table = Table::new(hypothesis.len(), reference);
    let mut words = hypothesis.to_vec();
    let (mut shifts, mut tried) = (0, 0);
    loop {
        let distance = table.fill(&words, 0);
        let best = best_shift(&mut table, &words, distance, &mut tried);
        match best {
            Some(shift) if tried < MAX_SHIFT_CANDIDATES && shift.gain > 0 => {
                words = shift.words;
                shifts += 1;
            }
            _ => return shifts + distance,
        }
    }
}

struct Shift {
    gain: isize,
    len: usize,
    start: usize,
    target: usize,
    words: Vec<u32>,
}

impl Shift {
    /// Tercom's order: the larger gain, the longer block, the earlier start, the earlier target.
    fn rank(&self) -> impl Ord + use<> {
        let (start, target) = (self.start as isize, self.target as isize);
        (self.gain, self.len, -start, -target)
    }
}

/// The best shift of `words`, whose distance in `table` is `distance`. A block may shift where both it and the place it
/// matches are wrong as yet.
fn best_shift(
    table: &mut Table<'_>,
    words: &[u32],
    distance: usize,
    tried: &mut usize,
) -> Option<Shift> {
    let alignment = table.alignment();
    let base = table.cells.clone();
    let mut best: Option<Shift> = None;
    for start in 0..words.len() {
        for reference_start in 0..table.reference.len() {
            if reference_start.abs_diff(start) > MAX_SHIFT_DISTANCE {
                continue;
            }
            let matching = words[start..]
                .iter()
                .zip(&table.reference[reference_start..])
                .take(MAX_SHIFT_LEN)
                .take_while(|(a, b)| a == b)
                .count();
            for len in 1..=matching {
                if !alignment.may_shift(start, reference_start, len) {
                    continue;
                }
                for target in alignment.targets(reference_start, len) {
                    let shifted = shifted(words, start, len, target);
                    let same = words
                        .iter()
                        .zip(&shifted)
                        .take_while(|(a, b)| a == b)
                        .count();
                    // What lies above the last row that both share is not read.
                    let row = table.row(same);
                    table.cells[row.clone()].copy_from_slice(&base[row]);
                    let gain = distance as isize - table.fill(&shifted, same) as isize;
                    let candidate = Shift {
                        gain,
                        len,
                        start,
                        target,
                        words: shifted,
                    };
                    *tried += 1;
                    if best
                        .as_ref()
                        .is_none_or(|best| candidate.rank() > best.rank())
                    {
                        best = Some(candidate);
                    }
                }
                if *tried >= MAX_SHIFT_CANDIDATES {
                    return best;
                }
            }
        }
    }
    best
}

/// `words` with the block of `len` at `start` moved before what stands at `target`, or by so much further on where the
/// target lies within the block.
fn shifted(words: &[u32], start: usize, len: usize, target: usize) -> Vec<u32> {
    let block = &words[start..start + len];
    let rest: Vec<u32> = [&words[..start], &words[start + len..]].concat();
    let at = match target {
        target if target < start => target,
        target if target > start + len => target - len,
        target => target.min(rest.len()),
    };
    [&rest[..at], block, &rest[at..]].concat()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Edit {
    None,
    Substitute,
    /// A word of the reference is put in.
    Insert,
    /// A word of the hypothesis is left out.
    Delete,
    Unreached,
}

#[derive(Clone, Copy)]
struct Cell {
    cost: u32,
    edit: Edit,
}

/// The edit distance matrix: rows over the hypothesis, columns over the reference, of which only the beam is held.
struct Table<'a> {
    reference: &'a [u32],
    /// The columns that each row holds; the others are unreached.
    beams: Vec<Range<usize>>,
    /// Where each row begins in `cells`.
    starts: Vec<usize>,
    cells: Vec<Cell>,
}

const UNREACHED: Cell = Cell {
    cost: u32::MAX / 2,
    edit: Edit::Unreached,
};

impl<'a> Table<'a> {
    fn new(n_words: usize, reference: &'a [u32]) -> Self {
        let width = reference.len() + 1;
        let beams: Vec<Range<usize>> = std::iter::once(0..width)
            .chain(beams(n_words, reference.len()))
            .collect();
        let mut starts = vec![0];
        for beam in &beams {
            starts.push(starts[starts.len() - 1] + beam.len());
        }
        let mut cells = vec![UNREACHED; starts[starts.len() - 1]];
        for (column, cell) in cells[..width].iter_mut().enumerate() {
            *cell = Cell {
                cost: column as u32,
                edit: Edit::Insert,
            };
        }
        Self {
            reference,
            beams,
            starts,
            cells,
        }
    }

    /// Where a row lies in `cells`.
    fn row(&self, row: usize) -> Range<usize> {
        self.starts[row]..self.starts[row + 1]
    }

    fn cell(&self, row: usize, column: usize) -> Cell {
        self.held(self.row(row), self.beams[row].start, column)
    }

    /// The cell of `column` in a row that lies at `row` and holds columns from `first` on.
    fn held(&self, row: Range<usize>, first: usize, column: usize) -> Cell {
        match column.checked_sub(first) {
            Some(offset) if offset < row.len() => self.cells[row.start + offset],
            _ => UNREACHED,
        }
    }

    /// The distance of `words`, of which the rows of the first `known` are in the table already.
    fn fill(&mut self, words: &[u32], known: usize) -> usize {
        for (index, &word) in words.iter().enumerate().skip(known) {
            let (above, first_above) = (self.row(index), self.beams[index].start);
            let start = self.starts[index + 1];
            let beam = self.beams[index + 1].clone();
            let first = beam.start;
            let mut left = UNREACHED;
            let mut above_left = match first {
                0 => UNREACHED,
                first => self.held(above.clone(), first_above, first - 1),
            };
            for column in beam {
                let over = self.held(above.clone(), first_above, column);
                let delete = Cell {
                    cost: over.cost + 1,
                    edit: Edit::Delete,
                };
                left = if column == 0 {
                    delete
                } else {
                    let same = word == self.reference[column - 1];
                    let keep = Cell {
                        cost: above_left.cost + u32::from(!same),
                        edit: if same { Edit::None } else { Edit::Substitute },
                    };
                    let insert = Cell {
                        cost: left.cost + 1,
                        edit: Edit::Insert,
                    };
                    // Of equal costs the first; what costs more than an unreached cell leaves it so.
                    [keep, delete, insert]
                        .into_iter()
                        .fold(UNREACHED, |best, next| match next.cost < best.cost {
                            true => next,
                            false => best,
                        })
                };
                above_left = over;
                self.cells[start + column - first] = left;
            }
        }
        self.cell(words.len(), self.reference.len()).cost as usize
    }

    /// The alignment that the table's path stands for.
    fn alignment(&self) -> Alignment {
        let (mut row, mut column) = (self.beams.len() - 1, self.reference.len());
        let mut alignment = Alignment {
            of_reference: vec![0; column],
            reference_wrong: vec![false; column],
            hypothesis_wrong: vec![false; row],
        };
        while row > 0 || column > 0 {
            let edit = self.cell(row, column).edit;
            let wrong = edit != Edit::None;
            if edit != Edit::Insert && row > 0 {
                row -= 1;
                alignment.hypothesis_wrong[row] = wrong;
            }
            if edit != Edit::Delete && column > 0 {
                column -= 1;
                alignment.reference_wrong[column] = wrong;
                // One past the word, so that "before the first" is 0.
                alignment.of_reference[column] = match edit {
                    Edit::Insert => row,
                    _ => row + 1,
                };
            }
        }
        alignment
    }
}

/// The columns that are looked at for each word of the hypothesis: a beam around the diagonal, and all that is left for
/// the last word.
fn beams(n_words: usize, n_reference: usize) -> impl Iterator<Item = Range<usize>> {
    let ratio = n_reference as f64 / n_words.max(1) as f64;
    // Wide enough that the beams of two rows meet.
    let beam = match (BEAM_WIDTH as f64) < ratio / 2.0 {
        true => (ratio / 2.0 + BEAM_WIDTH as f64).ceil() as usize,
        false => BEAM_WIDTH,
    };
    (1..=n_words).map(move |row| {
        let diagonal = (row as f64 * ratio).floor() as usize;
        let to = match row == n_words {
            true => n_reference + 1,
            false => (n_reference + 1).min(diagonal + beam),
        };
        diagonal.saturating_sub(beam).min(to)..to
    })
}

struct Alignment {
    /// For each reference word one past the hypothesis word that it stands at.
    of_reference: Vec<usize>,
    reference_wrong: Vec<bool>,
    hypothesis_wrong: Vec<bool>,
}

impl Alignment {
    fn may_shift(&self, start: usize, reference_start: usize, len: usize) -> bool {
        let within = start + 1..start + len + 1;
        self.hypothesis_wrong[start..start + len].contains(&true)
            && self.reference_wrong[reference_start..reference_start + len].contains(&true)
            && !within.contains(&self.of_reference[reference_start])
    }

    /// Where a block may go: behind the words that its place in the reference, and the place before it, stand at.
    fn targets(&self, reference_start: usize, len: usize) -> impl Iterator<Item = usize> {
        let mut last = None;
        (0..=len)
            .map(move |offset| match reference_start + offset {
                0 => 0,
                place => self.of_reference[place - 1],
            })
            .filter(move |&target| last.replace(target) != Some(target))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(hypothesis: &str, reference: &str) -> usize {
        let mut ids = Words::default();
        let mut of =
            |text: &'static str| words(text).map(|word| ids.id(word)).collect::<Vec<u32>>();
        let hypothesis = of(Box::leak(hypothesis.to_owned().into_boxed_str()));
        let reference = of(Box::leak(reference.to_owned().into_boxed_str()));
        edits(&hypothesis, &reference)
    }

    #[test]
    fn a_moved_block_is_one_edit() {
        assert_eq!(count("c d a b", "a b c d"), 1);
        assert_eq!(count("a b c", "a b c"), 0);
        assert_eq!(count("a x c", "a b c"), 1);
        assert_eq!(count("", "a b"), 2);
        assert_eq!(count("a b", ""), 2);
    }

    #[test]
    fn blocks_land_where_they_are_told() {
        let words = [0, 1, 2, 3, 4, 5];
        assert_eq!(shifted(&words, 3, 2, 1), [0, 3, 4, 1, 2, 5]);
        assert_eq!(shifted(&words, 1, 2, 5), [0, 3, 4, 1, 2, 5]);
        assert_eq!(shifted(&words, 1, 2, 2), [0, 3, 1, 2, 4, 5]);
        assert_eq!(shifted(&words, 1, 2, 3), [0, 3, 4, 1, 2, 5]);
    }
}
