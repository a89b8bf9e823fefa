//! Scores of answers, and how the rows of a table compare with the full network.

use crate::answers;
use crate::error::{ReportError, Result};
use crate::row::Row;
use skipbench_metrics::{
    Evaluation, Hypotheses, Metric, MetricError, References, Resampling, evaluate, holm, tested,
};
use skipbench_record::{Answer, Prompt, Run, Scored as Given};

/// Random sets of the same target from which on they are shown as a band.
pub const BAND: usize = 3;

/// A score with its 95% interval.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// Name of the metric.
    pub metric: String,
    /// Its settings.
    pub kind: Metric,
    /// The score of all answers as one corpus.
    pub score: f64,
    /// Low end of the interval.
    pub lo: f64,
    /// High end.
    pub hi: f64,
    /// Its standard error: the standard deviation over the resamples; `None` of a single prompt.
    pub standard_error: Option<f64>,
    /// Everything that the score depends on, in sacrebleu's form.
    pub signature: String,
    /// Paired test against the full network, Holm-corrected over the strategies.
    pub p_value: Option<f64>,
    /// It is no better than random sets of the same target.
    pub is_within_band: bool,
}

/// A row with what it is compared by.
pub(crate) struct Graded<'a> {
    pub(crate) row: Row<'a>,
    run: &'a Run,
    /// In the order of the prompts.
    answers: Vec<&'a Answer>,
    /// By metric.
    evaluations: Vec<Evaluation>,
}

impl<'a> Graded<'a> {
    /// Scores a row's answers.
    pub(crate) fn new(mut row: Row<'a>) -> Result<Self> {
        let (record, run) = (row.record, row.source);
        let scored = |source| ReportError::Score {
            cell: record.name(),
            source,
        };
        let answers = run.answers(record).unwrap_or_default();
        let evaluations = match answers.is_empty() {
            true => Vec::new(),
            false => evaluations(run, &row, &answers).map_err(scored)?,
        };
        let resampling = resampling(run);
        let names = record.task.metrics.iter();
        row.scores = names
            .zip(&evaluations)
            .map(|(name, evaluation)| {
                let interval = evaluation.interval(&resampling);
                Scored {
                    metric: name.clone(),
                    kind: evaluation.metric().clone(),
                    score: evaluation.score(),
                    lo: interval.lo,
                    hi: interval.hi,
                    standard_error: (evaluation.segments() > 1).then_some(interval.standard_error),
                    signature: signature(&row, evaluation),
                    p_value: None,
                    is_within_band: false,
                }
            })
            .collect();
        if row.given().is_none() {
            row.truncated = answers::truncated(&answers, record.task.max_new_tokens);
            row.repetition = answers::repetition(&answers);
        }
        row.notes.extend(failures(&answers));
        Ok(Self {
            row,
            run,
            answers,
            evaluations,
        })
    }
}

fn evaluations(
    run: &Run,
    row: &Row<'_>,
    answers: &[&Answer],
) -> std::result::Result<Vec<Evaluation>, MetricError> {
    let hypotheses = Hypotheses::new(answers.iter().copied());
    let references = References::of(run.prompts(row.record).iter().map(Prompt::reference));
    let task = &row.record.task;
    task.metrics
        .iter()
        .map(|name| evaluate(&task.metric(name)?, &hypotheses, &references))
        .collect()
}

/// The metric's signature, and how what it reads was scored where a model scored it.
fn signature(row: &Row<'_>, evaluation: &Evaluation) -> String {
    let signature = evaluation.signature(None);
    let record = row.record;
    match &record.task.scoring {
        Some(scoring) if evaluation.metric().reads().is_evidence() => {
            let tokenizer = crate::fields::short(&record.model.tokenizer);
            format!("{scoring}|tokenizer:{tokenizer}|{signature}")
        }
        _ => signature,
    }
}

fn resampling(run: &Run) -> Resampling {
    Resampling {
        seed: run.info.seed,
        ..Resampling::default()
    }
}

fn failures(answers: &[&Answer]) -> Option<String> {
    let mut failed = answers
        .iter()
        .filter_map(|answer| Some((&answer.id, answer.error.as_ref()?)));
    let count = failed.clone().count();
    let (id, error) = failed.next()?;
    Some(format!(
        "{count} of {} prompts failed and count as empty answers; the first is {id}: {error}",
        answers.len()
    ))
}

/// Compares the rows of a table: each with the full network of the same run.
pub(crate) fn compare(rows: &mut [Graded<'_>]) -> Result<()> {
    number_repeats(rows);
    for family in families(rows) {
        mark_bands(rows, &family);
        let is_full = |&index: &usize| rows[index].row.is_full() && !rows[index].answers.is_empty();
        let same_run = |&index: &usize| std::ptr::eq(rows[index].run, rows[family[0]].run);
        let mut elsewhere = (0..rows.len()).filter(same_run);
        let full = family.iter().copied().find(|index| is_full(index));
        if let Some(full) = full.or_else(|| elsewhere.find(|index| is_full(index))) {
            mark_same(rows, &family, full);
            test(rows, &family, full)?;
        }
    }
    Ok(())
}

/// Of a cell that several machines have measured, each record gets its number.
fn number_repeats(rows: &mut [Graded<'_>]) {
    for index in 0..rows.len() {
        let (earlier, rest) = rows.split_at_mut(index);
        let Some(graded) = rest.first_mut() else {
            continue;
        };
        let same = |other: &&Graded<'_>| {
            std::ptr::eq(other.run, graded.run)
                && other.row.record.content == graded.row.record.content
        };
        graded.row.repeat = earlier.iter().filter(same).count();
    }
}

/// Rows of the same run that hold each cell once: whichever machines have made them, a score is a score.
fn families(rows: &[Graded<'_>]) -> Vec<Vec<usize>> {
    let mut families: Vec<Vec<usize>> = Vec::new();
    for (index, graded) in rows.iter().enumerate() {
        let related = |&other: &usize| {
            let other = &rows[other];
            std::ptr::eq(other.run, graded.run) && other.row.repeat == graded.row.repeat
        };
        match families.iter_mut().find(|family| related(&family[0])) {
            Some(family) => family.push(index),
            None => families.push(vec![index]),
        }
    }
    families
}

/// Random sets that differ in their seed alone are shown as a band where there are enough of them; other strategies of
/// the same target that are no better are marked.
fn mark_bands(rows: &mut [Graded<'_>], family: &[usize]) {
    let band = |index: usize| rows[index].row.record.strategy.band.as_deref();
    let bands: Vec<_> = family
        .iter()
        .map(|&index| {
            let alike = family.iter().filter(|&&other| band(other) == band(index));
            let scored = alike.filter(|&&other| !rows[other].answers.is_empty());
            band(index).filter(|_| scored.count() >= BAND)
        })
        .collect();
    for (&index, band) in family.iter().zip(bands) {
        rows[index].row.band = band;
    }
    let members: Vec<Row<'_>> = family
        .iter()
        .map(|&index| rows[index].row.clone())
        .collect();
    for band in collapsed(&members).iter().filter(|row| row.sets.is_some()) {
        let others = family.iter().filter(|&&index| {
            let row = &rows[index].row;
            row.band.is_none() && !row.is_full() && row.target() == band.target()
        });
        for index in others.copied().collect::<Vec<_>>() {
            if let (Some(score), Some(random)) =
                (rows[index].row.scores.first_mut(), band.scores.first())
            {
                score.is_within_band = match score.kind.higher_is_better() {
                    true => score.score <= random.hi,
                    false => score.score >= random.lo,
                };
            }
        }
    }
}

/// How many answers are the full network's, token for token; a strategy that promises all of them and does not give them
/// gets a note.
fn mark_same(rows: &mut [Graded<'_>], family: &[usize], full: usize) {
    let reference = rows[full].answers.clone();
    let texts = &rows[full].row.record.task.texts;
    for &index in family {
        let Graded { row, answers, .. } = &mut rows[index];
        let given = row.given();
        // A text that was given is the same whatever is made of it.
        if answers.is_empty() || row.record.task.texts != *texts || given == Some(Given::Texts) {
            continue;
        }
        let pairs = answers.iter().zip(&reference);
        let same = pairs
            .filter(|(answer, full)| match given {
                None => answer.tokens == full.tokens,
                Some(_) => answer.text == full.text,
            })
            .count();
        let all = answers.len();
        row.same_as_full = Some(same as f64 / all as f64);
        if row.record.strategy.is_lossless && same < all {
            row.notes.push(format!(
                "{} of {all} answers differ from the full network's: where two tokens are as likely to the last digits, a \
                 verification of several positions may round to the other one",
                all - same
            ));
        }
    }
}

/// Paired tests ([`tested`]) of every strategy against the full network, corrected over the strategies of the family (Holm 1979).
fn test(rows: &mut [Graded<'_>], family: &[usize], full: usize) -> Result<()> {
    for metric in 0..rows[full].evaluations.len() {
        let baseline = &rows[full].evaluations[metric];
        let mut compared = Vec::new();
        let mut p_values = Vec::new();
        for &index in family.iter().filter(|&&index| index != full) {
            let Graded { row, run, .. } = &rows[index];
            let same_texts = row.record.task == rows[full].row.record.task;
            let evaluation = rows[index].evaluations.get(metric);
            let Some(evaluation) = evaluation.filter(|_| same_texts && row.band.is_none()) else {
                continue;
            };
            let outcome = tested(baseline, evaluation, &resampling(run));
            let outcome = outcome.map_err(|source| ReportError::Score {
                cell: row.record.name(),
                source,
            })?;
            compared.push(index);
            p_values.push(outcome.p);
        }
        for (index, p_value) in compared.into_iter().zip(holm(&p_values)) {
            if let Some(score) = rows[index].row.scores.get_mut(metric) {
                score.p_value = Some(p_value);
            }
        }
    }
    Ok(())
}

/// The rows, where one stands for all sets of a band: the one that was timed, with their median scores and the range that
/// holds 95% of them.
pub(crate) fn collapsed<'a>(rows: &[Row<'a>]) -> Vec<Row<'a>> {
    let (bands, mut collapsed): (Vec<&Row<'a>>, Vec<&Row<'a>>) =
        rows.iter().partition(|row| row.band.is_some());
    let mut collapsed: Vec<Row<'a>> = collapsed.drain(..).cloned().collect();
    let key = |row: &Row<'a>| (row.run.clone(), row.repeat, row.band);
    let mut seen = Vec::new();
    for first in &bands {
        if seen.contains(&key(first)) {
            continue;
        }
        seen.push(key(first));
        let sets: Vec<&&Row<'a>> = bands.iter().filter(|row| key(row) == key(first)).collect();
        let timed = sets.iter().find(|row| row.speedup.is_some());
        let mut row = (**timed.copied().unwrap_or(first)).clone();
        for score in &mut row.scores {
            let of = |set: &&&Row<'a>| Some(set.score(&score.metric)?.score);
            let mut scores: Vec<f64> = sets.iter().filter_map(of).collect();
            scores.sort_by(f64::total_cmp);
            score.score = percentile(&scores, 0.5);
            (score.lo, score.hi) = (percentile(&scores, 0.025), percentile(&scores, 0.975));
        }
        let mean = |of: fn(&Row<'a>) -> Option<f64>| {
            let shares: Vec<f64> = sets.iter().filter_map(|set| of(set)).collect();
            (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64)
        };
        row.truncated = mean(|row| row.truncated);
        row.repetition = mean(|row| row.repetition);
        row.sets = Some(sets.len());
        row.same_as_full = None;
        collapsed.push(row);
    }
    collapsed
}

/// Between neighbours where it falls there; NaN of nothing.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let place = share * last as f64;
    let below = place as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_lie_between_neighbours() {
        let scores: Vec<f64> = (0..=40).map(f64::from).collect();
        assert_eq!(percentile(&scores, 0.025), 1.0);
        assert_eq!(percentile(&scores, 0.5), 20.0);
        assert!((percentile(&[10.0, 20.0], 0.025) - 10.25).abs() < 1e-9);
        assert_eq!(percentile(&[7.0], 0.975), 7.0);
    }
}
