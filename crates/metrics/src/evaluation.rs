//! Texts in, scores out.

use crate::resample::{Interval, Paired, Resampling, Table};
use crate::segment::Segment;
use crate::{Hypotheses, Metric, MetricError, Reads, References, Scratch, mcnemar};
use rayon::prelude::*;

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
/// Hypotheses and references that do not pair up, or none at all; a segment without what the metric reads.
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
    let all: Vec<Segment<'_>> = hypotheses
        .0
        .iter()
        .zip(&references.0)
        .map(|(hypothesis, reference)| Segment {
            hypothesis,
            reference,
        })
        .collect();
    let reads = metric.reads();
    let lacking = all.iter().position(|segment| !segment.has(reads));
    // Some texts may leave nothing to compare; all of them have no score.
    let is_lacking = match reads {
        Reads::Distance => all.iter().all(|segment| !segment.has(reads)),
        _ => true,
    };
    if let Some(index) = lacking.filter(|_| is_lacking) {
        return Err(MetricError::NotScored {
            metric: metric.to_string(),
            index,
            reads,
        });
    }
    let width = metric.counts().width();
    let mut counts = vec![0.0; segments * width];
    counts
        .par_chunks_exact_mut(width)
        .zip(all.par_iter())
        .for_each_init(Scratch::default, |scratch, (out, segment)| {
            metric.counts().count(scratch, *segment, out);
        });
    Ok(Evaluation {
        metric: metric.clone(),
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

    /// The signature, in sacrebleu's form, which names everything that the score depends on; with `resampling` also the number
    /// of resamples and shuffles and their stream.
    pub fn signature(&self, resampling: Option<&Resampling>) -> String {
        let metric = self.metric.counts();
        let mut pairs = Vec::new();
        if metric.reads() == Reads::Answer {
            let references = self.references.map_or("var".to_owned(), |n| n.to_string());
            pairs.push(("nrefs", references));
        }
        if let Some(resampling) = resampling {
            pairs.push(("bs", resampling.resamples.to_string()));
            if resampling.shuffles > 0 {
                pairs.push(("ar", resampling.shuffles.to_string()));
            }
            pairs.push(("seed", format!("chacha8-{}", resampling.seed)));
        }
        pairs.extend(metric.signature());
        pairs.push(("version", metric.version()));
        let pairs: Vec<String> = pairs
            .iter()
            .map(|(key, value)| format!("{key}:{value}"))
            .collect();
        pairs.join("|")
    }

    /// sacrebleu's score line: name, signature, score with its interval if `resampling` is given, and details.
    pub fn line(&self, resampling: Option<&Resampling>) -> String {
        let metric = self.metric.counts();
        let digits = match metric.unit() {
            crate::Unit::Percent => 2,
            _ => 4,
        };
        let mut line = format!("{}|{}", metric.label(), self.signature(resampling));
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
    comparable(baseline, system)?;
    Ok(baseline.table().compare(&system.table(), resampling))
}

fn comparable(baseline: &Evaluation, system: &Evaluation) -> Result<(), MetricError> {
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
    Ok(())
}

/// The name of the test of what is not right or wrong.
pub const RANDOMISATION: &str = "paired approximate randomisation";

/// A system against a baseline, under the test that suits the metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Change {
    /// Score of the system minus that of the baseline.
    pub difference: f64,
    /// The two-sided p-value of there being no difference.
    pub p: f64,
    /// Name of the test.
    pub test: &'static str,
}

/// Tests a system against a baseline on the same segments: McNemar's exact test where each segment is right or wrong, and
/// paired approximate randomisation otherwise.
///
/// # Errors
/// As [`paired`].
pub fn tested(
    baseline: &Evaluation,
    system: &Evaluation,
    resampling: &Resampling,
) -> Result<Change, MetricError> {
    if baseline.metric.counts().is_right_or_wrong() && comparable(baseline, system).is_ok() {
        let pairs = baseline.counts.iter().zip(&system.counts);
        return Ok(Change {
            difference: system.score() - baseline.score(),
            p: mcnemar(pairs.map(|(old, new)| (*old > 0.5, *new > 0.5))).p,
            test: "McNemar, exact",
        });
    }
    let outcome = paired(baseline, system, resampling)?;
    Ok(Change {
        difference: outcome.difference,
        p: outcome.randomisation_p,
        test: RANDOMISATION,
    })
}
