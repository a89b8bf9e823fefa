//! What a report is made of.

use serde::{Deserialize, Serialize};

/// One cell of an experiment: a row of `results.csv`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResultRow {
    /// Name of the experiment.
    pub experiment: String,
    /// Name of the model.
    pub model: String,
    /// Name of the task.
    pub task: String,
    /// Name of the strategy, such as `unified`.
    pub strategy: String,
    /// Its variant, such as `published`.
    pub variant: String,
    /// Short form, such as `unified@2`.
    pub label: String,
    /// The strategy as it ran, with what calibration found.
    pub executed: String,
    /// How skipped positions were filled in the KV cache.
    pub kv_fill: String,
    /// Rows of a batch.
    pub batch_size: usize,
    /// Beams of the search.
    pub beams: usize,
    /// Speedup asked for.
    pub target_speedup: Option<f64>,
    /// Layers of the model.
    pub n_layers: usize,
    /// Mean layers run for a decoded token.
    pub layers_per_token: f64,
    /// Speedup that the bytes read allow.
    pub bound_speedup: f64,
    /// Speedup measured.
    pub achieved_speedup: Option<f64>,
    /// Low end of its 95% interval.
    pub achieved_lo: Option<f64>,
    /// High end of its 95% interval.
    pub achieved_hi: Option<f64>,
    /// Achieved over target, minus 1.
    pub target_error: Option<f64>,
    /// Mean time to the first token, milliseconds.
    pub ttft_ms: Option<f64>,
    /// Mean time of a decode step, milliseconds.
    pub tpot_ms: Option<f64>,
    /// Decoded tokens over decode time.
    pub tokens_per_s: Option<f64>,
    /// Prompt and generated tokens over total time: the count of arXiv 2404.06954.
    pub paper_tokens_per_s: Option<f64>,
    /// What a decoded token costs.
    pub cost: TokenCost,
    /// Share of the strategy's decode time in the timing pass that the bytes read there do not explain, were all of the full
    /// network's explained by its own.
    pub unexplained: Option<f64>,
    /// Share of the (token, layer) pairs that ran for rows which were done already.
    pub wasted_row_layers: f64,
    /// Made-up keys and values read per decoded token, over all layers; a position that should have been seen and was not
    /// counts too.
    pub holes_read_per_token: f64,
    /// Mean relative L2 distance of the made-up keys and values from those of a full-depth replay.
    pub kv_distance: Option<f64>,
    /// Share of the drafted tokens that the verification left standing; `None` where nothing is drafted.
    pub acceptance: Option<f64>,
    /// Tokens that a row gets from one verification, on average.
    pub tokens_per_verification: Option<f64>,
    /// Share of the decode time that drafting took.
    pub draft_time: Option<f64>,
    /// Share of the answers that are the full network's, token for token; `None` without the full network's.
    pub same_as_full: Option<f64>,
    /// Largest KV cache.
    pub peak_kv_bytes: u64,
    /// Prompts scored, failures included.
    pub n_prompts: usize,
    /// Prompts that failed.
    pub n_failed: usize,
    /// Scores by metric, the main one first.
    pub metrics: Vec<(String, MetricValue)>,
    /// What several random sets that are shown together as a band have in common, for one of them: `random@2`.
    pub band: Option<String>,
    /// What a reader must know of this row.
    pub note: Option<String>,
}

/// What one decoded token costs on average; millions of bytes read and of floating-point operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenCost {
    /// Floating-point operations.
    pub mflops: f64,
    /// Bytes of everything below.
    pub mbytes: f64,
    /// Weights of the layers.
    pub layers_mbytes: f64,
    /// Keys and values.
    pub kv_read_mbytes: f64,
    /// The LM head, for tokens.
    pub head_mbytes: f64,
    /// The LM head, for exit checks.
    pub checks_mbytes: f64,
    /// Keys and values made up for skipped layers.
    pub kv_fill_mbytes: f64,
    /// Of all that, drafting.
    pub draft_mbytes: f64,
    /// Of all that, verifying.
    pub verify_mbytes: f64,
}

/// A score with its 95% interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MetricValue {
    /// The corpus score.
    pub score: f64,
    /// Low end.
    pub lo: f64,
    /// High end.
    pub hi: f64,
    /// Paired test against the full network, Holm-corrected over the strategies.
    pub p_value: Option<f64>,
    /// Whether a larger score is the better one.
    pub higher_is_better: bool,
}

/// The head of a report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReportMeta {
    /// Name of the experiment.
    pub experiment: String,
    /// Heading.
    pub title: String,
    /// Models, described.
    pub models: Vec<String>,
    /// Machine, described.
    pub device: String,
    /// Date and time.
    pub date: String,
    /// Commit of the harness, where known.
    pub git_commit: Option<String>,
    /// Version of the harness.
    pub version: String,
    /// Seed of orders and resamples.
    pub seed: u64,
    /// What a reader must know.
    pub notes: Vec<String>,
}

impl ResultRow {
    /// Which table a row belongs to: model, task, batch size, beams.
    pub(crate) fn group(&self) -> (&str, &str, usize, usize) {
        (&self.model, &self.task, self.batch_size, self.beams)
    }

    /// The strategy with its variant and settings, but without its target: the series of a plot.
    pub(crate) fn series(&self) -> String {
        match self.label.split_once('@') {
            None => self.label.clone(),
            Some((name, rest)) => match rest.split_once(' ') {
                None => name.to_owned(),
                Some((_, settings)) => format!("{name} {settings}"),
            },
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.strategy == "full"
    }
}

/// Groups of rows in order of first appearance.
pub(crate) fn groups(rows: &[ResultRow]) -> Vec<Vec<&ResultRow>> {
    let mut groups: Vec<Vec<&ResultRow>> = Vec::new();
    for row in rows {
        match groups
            .iter_mut()
            .find(|group| group[0].group() == row.group())
        {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups
}

/// Where the scores of a random band lie.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Band {
    pub(crate) lo: f64,
    pub(crate) median: f64,
    pub(crate) hi: f64,
}

impl Band {
    /// Median, 2.5th and 97.5th percentile, between neighbours where they fall there; `None` without scores.
    pub(crate) fn of(mut scores: Vec<f64>) -> Option<Self> {
        scores.sort_by(f64::total_cmp);
        let last = scores.len().checked_sub(1)?;
        let at = |share: f64| {
            let place = share * last as f64;
            let below = place as usize;
            let above = (below + 1).min(last);
            scores[below] + (scores[above] - scores[below]) * (place - below as f64)
        };
        Some(Self {
            lo: at(0.025),
            median: at(0.5),
            hi: at(0.975),
        })
    }

    /// Whether a score is no better than what the band holds.
    pub(crate) fn reaches(&self, score: f64, higher_is_better: bool) -> bool {
        match higher_is_better {
            true => score <= self.hi,
            false => score >= self.lo,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Band;

    #[test]
    fn percentiles_lie_between_neighbours() {
        let band = Band::of((0..=40).rev().map(f64::from).collect()).unwrap();
        assert_eq!((band.lo, band.median, band.hi), (1.0, 20.0, 39.0));
        let two = Band::of(vec![10.0, 20.0]).unwrap();
        assert!((two.lo - 10.25).abs() < 1e-9 && two.median == 15.0);
        assert!(band.reaches(39.0, true) && !band.reaches(39.1, true));
        assert!(band.reaches(1.0, false) && !band.reaches(0.9, false));
        assert_eq!(Band::of(Vec::new()), None);
    }
}
