//! Answers of one cell in two runs.

use super::estimate::{Bias, Estimate};
use anyhow::{Context, bail};
use skipbench_metrics::{
    Hypotheses, Metric, RANDOMISATION, References, Resampling, Unit, evaluate, mcnemar, paired,
};
use skipbench_record::{Answer, Prompt, Record, Run};
use std::collections::HashMap;

/// The answers of two runs to the prompts that both were asked.
pub(super) struct QualityChange {
    /// Name of the metric.
    pub(super) metric: String,
    pub(super) old: f64,
    pub(super) new: f64,
    /// In points ([`Metric::points`]), whatever its own scale is.
    pub(super) estimate: Option<Estimate>,
    /// Prompts in common.
    pub(super) prompts: usize,
    /// Answers whose text is not the same.
    pub(super) changed: usize,
    /// Name of the test that there is no change at all.
    pub(super) test: &'static str,
}

/// A prompt that both were asked.
struct Common<'a> {
    old: &'a Answer,
    new: &'a Answer,
    /// Of the new run.
    prompt: &'a Prompt,
    /// Its place in either run.
    places: (usize, usize),
}

impl QualityChange {
    /// Compares the answers under the main metric of the baseline's task, against the references of the new run.
    ///
    /// # Errors
    /// No prompts in common, answers that are missing, a metric that is not known: why nothing can be told.
    pub(super) fn of(
        (baseline, old): (&Run, &Record),
        (run, new): (&Run, &Record),
        resampling: &Resampling,
    ) -> anyhow::Result<Self> {
        let common = common((baseline, old), (run, new))?;
        let metric = old.task.metrics.first().context("the task has no metric")?;
        let changed = common
            .iter()
            .filter(|Common { old, new, .. }| old.text != new.text || old.evidence != new.evidence)
            .count();
        let mut change = match new.task.metric(metric).or_else(|_| old.task.metric(metric)) {
            Ok(metric) => from_texts(metric, &common, resampling)?,
            Err(_) => from_recorded_scores(metric, (old, new), &common)?,
        };
        change.changed = changed;
        if changed == 0 {
            change.estimate = None;
        }
        Ok(change)
    }
}

/// Prompts with the same text; one that is asked twice is paired in the order in which it stands.
fn common<'a>(
    (baseline, old): (&'a Run, &Record),
    (run, new): (&'a Run, &Record),
) -> anyhow::Result<Vec<Common<'a>>> {
    let missing = |side: &str| format!("{side} has no answers");
    let old_answers = baseline
        .answers(old)
        .with_context(|| missing("the baseline"))?;
    let new_answers = run.answers(new).with_context(|| missing("the new run"))?;
    let mut asked: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, prompt) in baseline.prompts(old).iter().enumerate().rev() {
        asked.entry(&prompt.prompt).or_default().push(index);
    }
    let mut common = Vec::new();
    for (index, prompt) in run.prompts(new).iter().enumerate() {
        if let Some(earlier) = asked.get_mut(prompt.prompt.as_str()).and_then(Vec::pop) {
            common.push(Common {
                old: old_answers[earlier],
                new: new_answers[index],
                prompt,
                places: (earlier, index),
            });
        }
    }
    if common.is_empty() {
        bail!("no prompt is in both runs");
    }
    Ok(common)
}

fn from_texts(
    metric: Metric,
    common: &[Common<'_>],
    resampling: &Resampling,
) -> anyhow::Result<QualityChange> {
    let references = References::of(common.iter().map(|common| common.prompt.reference()));
    let old = Hypotheses::new(common.iter().map(|prompt| prompt.old));
    let new = Hypotheses::new(common.iter().map(|prompt| prompt.new));
    let old = evaluate(&metric, &old, &references)?;
    let new = evaluate(&metric, &new, &references)?;
    let points = |change: f64| metric.points(change, old.score());
    let n = common.len();
    let change = QualityChange {
        metric: metric.to_string(),
        old: old.score(),
        new: new.score(),
        estimate: None,
        prompts: n,
        changed: 0,
        test: RANDOMISATION,
    };
    let fraction = metric.unit() == Unit::Fraction;
    if let Some(pairs) = right_or_wrong(&old.segment_scores(), &new.segment_scores())
        && fraction
    {
        return Ok(change.with_mcnemar(&pairs));
    }
    let test = paired(&old, &new, resampling)?;
    let estimate = Estimate {
        gain: points(test.difference),
        // The bootstrap's is that of a sample of n, which is too small by this.
        standard_error: points(test.standard_error).abs() * (n as f64 / (n as f64 - 1.0)).sqrt(),
        degrees: n as f64 - 1.0,
        units: n,
        p_of_no_change: Some(test.randomisation_p),
        bias: Bias::default(),
    };
    Ok(QualityChange {
        estimate: (n > 1).then_some(estimate),
        ..change
    })
}

/// Of a metric that this program does not know, the scores that the runs recorded, where each is right or wrong.
fn from_recorded_scores(
    metric: &str,
    (old, new): (&Record, &Record),
    common: &[Common<'_>],
) -> anyhow::Result<QualityChange> {
    let scores = |record: &Record| {
        let scores = record.quality.iter().flat_map(|quality| &quality.scores);
        let mut found = scores.filter(|score| score.metric == metric);
        found.next().map(|score| score.by_prompt.clone())
    };
    let of_both = scores(old).zip(scores(new)).and_then(|(old, new)| {
        common
            .iter()
            .map(|prompt| Some((*old.get(prompt.places.0)?, *new.get(prompt.places.1)?)))
            .collect::<Option<(Vec<f64>, Vec<f64>)>>()
    });
    let pairs = of_both
        .as_ref()
        .and_then(|(old, new)| right_or_wrong(old, new));
    let pairs = pairs.with_context(|| {
        format!(
            "metric `{metric}` is not known to this skipbench, and not every answer has a recorded score of 0 or 1"
        )
    })?;
    let share = |right: fn(&(bool, bool)) -> bool| {
        pairs.iter().filter(|pair| right(pair)).count() as f64 / pairs.len() as f64
    };
    let change = QualityChange {
        metric: metric.to_owned(),
        old: share(|pair| pair.0),
        new: share(|pair| pair.1),
        estimate: None,
        prompts: pairs.len(),
        changed: 0,
        test: "",
    };
    Ok(change.with_mcnemar(&pairs))
}

/// Whether each answer is right under either, where no score is anything but 0 or 1.
fn right_or_wrong(old: &[f64], new: &[f64]) -> Option<Vec<(bool, bool)>> {
    let mut all = old.iter().chain(new);
    all.all(|score| [0.0, 1.0].contains(score)).then(|| {
        old.iter()
            .zip(new)
            .map(|(old, new)| (*old == 1.0, *new == 1.0))
            .collect()
    })
}

impl QualityChange {
    fn with_mcnemar(self, pairs: &[(bool, bool)]) -> Self {
        let n = pairs.len() as f64;
        let test = mcnemar(pairs.iter().copied());
        // A half more of each outcome, so that a few answers are not taken for certainty (Agresti and Min 2005, "Simple
        // improved confidence intervals for comparing matched proportions").
        let (gained, lost) = (test.gained as f64 + 0.5, test.lost as f64 + 0.5);
        let variance = gained + lost - (gained - lost).powi(2) / (n + 2.0);
        let estimate = Estimate {
            gain: 100.0 * (test.gained as f64 - test.lost as f64) / n,
            standard_error: 100.0 * variance.sqrt() / (n + 2.0),
            degrees: n - 1.0,
            units: pairs.len(),
            p_of_no_change: Some(test.p),
            bias: Bias::default(),
        };
        Self {
            estimate: (n > 1.0).then_some(estimate),
            test: "McNemar, exact",
            ..self
        }
    }
}
