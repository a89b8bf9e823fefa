//! Texts in, scores out.

use crate::resample::{Interval, Paired, Resampling, Table};
use crate::{Metric, MetricError, Scratch};
use rayon::prelude::*;

/// The sacrebleu whose scores ours are.
const SACREBLEU_VERSION: &str = "2.6.0";

/// What a system wrote, a text per segment. A segment may be empty: it scores 0 and counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hypotheses(Vec<String>);

/// What is right: one or more texts per segment, not necessarily equally many.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct References(Vec<Vec<String>>);

impl Hypotheses {
    /// From a text per segment.
    pub fn new<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Self {
        Self(texts.into_iter().map(Into::into).collect())
    }
}

impl References {
    /// From the texts of each segment.
    ///
    /// # Errors
    /// A segment without any.
    pub fn new(texts: Vec<Vec<String>>) -> Result<Self, MetricError> {
        match texts.iter().position(Vec::is_empty) {
            Some(index) => Err(MetricError::NoReference { index }),
            None => Ok(Self(texts)),
        }
    }

    /// From one text per segment.
    ///
    /// # Errors
    /// None; the signature is that of [`References::new`].
    pub fn single<T: Into<String>>(
        texts: impl IntoIterator<Item = T>,
    ) -> Result<Self, MetricError> {
        Self::new(texts.into_iter().map(|text| vec![text.into()]).collect())
    }

    /// References per segment, where all have as many.
    fn number(&self) -> Option<usize> {
        let first = self.0.first()?.len();
        self.0
            .iter()
            .all(|texts| texts.len() == first)
            .then_some(first)
    }
}

/// A system's counts under one metric: its score and what significance needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    metric: Metric,
    /// `[segments, width]`
    counts: Vec<f64>,
    segments: usize,
    references: Option<usize>,
}

/// Counts every segment.
///
/// # Errors
/// Hypotheses and references that do not pair up, or none at all.
pub fn evaluate(
    metric: &Metric,
    hypotheses: &Hypotheses,
    references: &References,
) -> Result<Evaluation, MetricError> {
    let segments = hypotheses.0.len();
    if segments != references.0.len() {
        return Err(MetricError::Lengths {
            found: references.0.len(),
            expected: segments,
        });
    }
    if segments == 0 {
        return Err(MetricError::Empty);
    }
    let width = metric.counts().width();
    let mut counts = vec![0.0; segments * width];
    counts
        .par_chunks_exact_mut(width)
        .zip(hypotheses.0.par_iter().zip(&references.0))
        .for_each_init(
            Scratch::default,
            |scratch, (out, (hypothesis, references))| {
                metric.counts().count(scratch, hypothesis, references, out);
            },
        );
    Ok(Evaluation {
        metric: *metric,
        counts,
        segments,
        references: references.number(),
    })
}

impl Evaluation {
    /// The metric.
    pub fn metric(&self) -> &Metric {
        &self.metric
    }

    /// Number of segments.
    pub fn segments(&self) -> usize {
        self.segments
    }

    /// The corpus score.
    pub fn score(&self) -> f64 {
        self.metric
            .counts()
            .score(&self.table().sum(), self.segments)
    }

    /// The score of each segment as a corpus of its own.
    pub fn segment_scores(&self) -> Vec<f64> {
        let metric = self.metric.counts();
        self.counts
            .chunks_exact(metric.width())
            .map(|counts| metric.score(counts, 1))
            .collect()
    }

    /// The 95% bootstrap interval of the corpus score.
    pub fn interval(&self, resampling: &Resampling) -> Interval {
        self.table().interval(resampling)
    }

    /// sacrebleu's signature, which names everything that the score depends on; with `resampling` also the number of
    /// resamples and shuffles and their stream. `None` for a metric that sacrebleu does not have.
    pub fn signature(&self, resampling: Option<&Resampling>) -> Option<String> {
        let settings = self.metric.counts().signature()?;
        let references = self.references.map_or("var".to_owned(), |n| n.to_string());
        let mut pairs = vec![("nrefs", references)];
        if let Some(resampling) = resampling {
            pairs.push(("bs", resampling.resamples.to_string()));
            if resampling.shuffles > 0 {
                pairs.push(("ar", resampling.shuffles.to_string()));
            }
            pairs.push(("seed", format!("chacha8-{}", resampling.seed)));
        }
        pairs.extend(settings);
        pairs.push(("version", SACREBLEU_VERSION.to_owned()));
        let pairs: Vec<String> = pairs
            .iter()
            .map(|(key, value)| format!("{key}:{value}"))
            .collect();
        Some(pairs.join("|"))
    }

    /// sacrebleu's score line: name, signature, score with its interval if `resampling` is given, and details.
    pub fn line(&self, resampling: Option<&Resampling>) -> String {
        let metric = self.metric.counts();
        let digits = match metric.unit() {
            crate::Unit::Percent => 2,
            crate::Unit::Fraction => 4,
        };
        let mut line = metric.label();
        if let Some(signature) = self.signature(resampling) {
            line.push_str(&format!("|{signature}"));
        }
        line.push_str(&format!(" = {:.digits$}", self.score()));
        if let Some(resampling) = resampling {
            let interval = self.interval(resampling);
            line.push_str(&format!(
                " (μ = {:.digits$} ± {:.digits$})",
                interval.mean,
                interval.half_width()
            ));
        }
        if let Some(details) = self.details() {
            line.push_str(&format!(" {details}"));
        }
        line
    }

    /// The numbers that the score is made of, by name: BLEU's brevity penalty and lengths, TER's edits, ROUGE's precision,
    /// recall and F1.
    pub fn parts(&self) -> Vec<(&'static str, f64)> {
        self.metric
            .counts()
            .parts(&self.table().sum(), self.segments)
    }

    /// What stands behind the score in a score line: BLEU's precisions and lengths, ROUGE's precision and recall.
    pub fn details(&self) -> Option<String> {
        self.metric
            .counts()
            .details(&self.table().sum(), self.segments)
    }

    fn table(&self) -> Table<'_> {
        Table {
            metric: self.metric.counts(),
            counts: &self.counts,
        }
    }
}

/// Compares a system with a baseline on the same segments.
///
/// # Errors
/// Different metrics, or different numbers of segments.
pub fn paired(
    baseline: &Evaluation,
    system: &Evaluation,
    resampling: &Resampling,
) -> Result<Paired, MetricError> {
    if baseline.metric != system.metric {
        return Err(MetricError::Different {
            baseline: format!("{:?}", baseline.metric),
            system: format!("{:?}", system.metric),
        });
    }
    if baseline.segments != system.segments {
        return Err(MetricError::Lengths {
            found: system.segments,
            expected: baseline.segments,
        });
    }
    Ok(baseline.table().compare(&system.table(), resampling))
}
