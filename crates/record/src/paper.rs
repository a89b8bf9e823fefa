//! Figures that a paper printed. They are data with a source, and stand beside what a run measured, never among it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A table of a paper, and what a reader must know to set a run beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Paper {
    /// What it is called: `Table 4 of arXiv 2404.06954`.
    pub title: String,
    /// Where the figures were read.
    pub source: String,
    /// Name of the metric of its scores.
    pub metric: String,
    /// What its figures were measured on.
    pub setting: PaperSetting,
    /// Its rows, the full network first.
    pub rows: Vec<PaperRow>,
}

/// What the figures of a paper were measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PaperSetting {
    /// The model.
    pub model: PaperModel,
    /// How it was trained for the table.
    pub fine_tuning: String,
    /// The test sets.
    pub data: PaperData,
    /// How tokens were searched.
    pub search: PaperSearch,
    /// Element type, as in [`ModelRecord::dtype`](crate::ModelRecord::dtype).
    pub dtype: String,
    /// The machine.
    pub hardware: PaperHardware,
    /// How long the answers were that were timed.
    pub length: String,
}

/// A paper's model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PaperModel {
    /// As the paper calls it.
    pub name: String,
    /// What it is called elsewhere, in small letters.
    #[serde(default)]
    pub known_as: Vec<String>,
    /// Decoder layers.
    pub layers: usize,
}

/// A paper's test sets; its score is the mean of theirs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PaperData {
    /// As the paper calls them.
    pub name: String,
    /// Prompts of each set.
    pub prompts: BTreeMap<String, usize>,
}

/// How a paper searched for tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PaperSearch {
    /// Beams; 1 is greedy decoding.
    pub beams: usize,
    /// No n-gram of this length occurs twice; 0 for no such rule.
    pub no_repeat_ngram: usize,
    /// Longest answer in tokens.
    pub max_new_tokens: usize,
}

/// A paper's machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PaperHardware {
    /// As the paper calls it.
    pub name: String,
    /// What stands in the names of all such GPUs.
    pub gpu: String,
}

/// A row of a paper's table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PaperRow {
    /// As the paper calls it.
    pub approach: String,
    /// Name of the strategy here.
    pub strategy: String,
    /// Its variant here, where only one will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Target speedup; 1 for the full network.
    pub target: f64,
    /// Its score.
    pub score: f64,
    /// Tokens per second at each batch size, as the paper counts them: prompt and output over the whole time.
    #[serde(default)]
    pub tokens_per_s: BTreeMap<usize, f64>,
    /// What a reader must know of the row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A paper's table beside a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Beside {
    /// The table.
    pub paper: Paper,
    /// How the checkpoints were trained that ran here, where somebody said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fine_tuning: Option<String>,
    /// Where each approach has a checkpoint of its own, as in a paper that trains for each: the model here whose full network
    /// is the paper's. The rows of all models are then one table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_of: Option<String>,
}

impl Paper {
    /// What makes the table unusable, if anything: every figure is compared with those of the full network.
    ///
    /// # Errors
    /// No row of the full network, two rows that are the same, a figure that is not a positive number.
    pub fn check(&self) -> Result<(), String> {
        let full = self.rows.iter().filter(|row| row.is_full()).count();
        if full != 1 {
            return Err(format!(
                "`rows` holds {full} rows of the full network (strategy `full`, target 1); it needs one, which the others are \
                 compared with"
            ));
        }
        for (index, row) in self.rows.iter().enumerate() {
            let figures = [("target", row.target), ("score", row.score)];
            let rates = row.tokens_per_s.values();
            let figures = figures
                .into_iter()
                .chain(rates.map(|&rate| ("tokens-per-s", rate)));
            for (key, value) in figures {
                if !(value.is_finite() && value > 0.0) {
                    return Err(format!(
                        "`{key}` of {} at {}x is {value}; it is a positive number",
                        row.approach, row.target
                    ));
                }
            }
            let is_same = |other: &PaperRow| {
                (&other.strategy, &other.variant, other.target)
                    == (&row.strategy, &row.variant, row.target)
            };
            if self.rows[..index].iter().any(is_same) {
                return Err(format!(
                    "`rows` holds {} at {}x twice",
                    row.strategy, row.target
                ));
            }
        }
        Ok(())
    }
}

impl PaperRow {
    /// Whether it is the full network.
    pub fn is_full(&self) -> bool {
        self.strategy == "full"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(strategy: &str, target: f64) -> PaperRow {
        PaperRow {
            approach: strategy.to_uppercase(),
            strategy: strategy.to_owned(),
            variant: None,
            target,
            score: 20.0,
            tokens_per_s: [(1, 50.0)].into(),
            note: None,
        }
    }

    fn paper(rows: Vec<PaperRow>) -> Paper {
        Paper {
            title: "Table 1".to_owned(),
            source: "made up".to_owned(),
            metric: "bleu".to_owned(),
            setting: PaperSetting {
                model: PaperModel {
                    name: "M".to_owned(),
                    known_as: Vec::new(),
                    layers: 4,
                },
                fine_tuning: "none".to_owned(),
                data: PaperData {
                    name: "D".to_owned(),
                    prompts: BTreeMap::new(),
                },
                search: PaperSearch {
                    beams: 1,
                    no_repeat_ngram: 0,
                    max_new_tokens: 8,
                },
                dtype: "f16".to_owned(),
                hardware: PaperHardware {
                    name: "a GPU".to_owned(),
                    gpu: "GPU".to_owned(),
                },
                length: "as it comes".to_owned(),
            },
            rows,
        }
    }

    #[test]
    fn a_table_needs_one_full_network_and_figures_that_are_numbers() {
        assert_eq!(
            paper(vec![row("full", 1.0), row("top", 2.0)]).check(),
            Ok(())
        );
        let refused = |rows, what: &str| {
            let message = paper(rows).check().unwrap_err();
            assert!(message.contains(what), "{message}");
        };
        refused(vec![row("top", 2.0)], "0 rows of the full network");
        refused(vec![row("full", 1.0), row("full", 1.0)], "2 rows");
        refused(
            vec![row("full", 1.0), row("top", 2.0), row("top", 2.0)],
            "top at 2x twice",
        );
        let mut slow = row("full", 1.0);
        slow.tokens_per_s.insert(8, 0.0);
        refused(vec![slow], "`tokens-per-s` of FULL at 1x is 0");
        let mut unknown = row("full", 1.0);
        unknown.score = f64::NAN;
        refused(vec![unknown], "`score`");
    }
}
