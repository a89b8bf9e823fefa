//! The quality pass over text that is given: choices of questions and whole texts, scored and not generated; and how far a
//! strategy is from the full network on the full network's own answers.

use super::quality::Pass;
use super::{CellRun, natural_end};
use crate::task::{Question, Text, Windows};
use anyhow::{Context, bail};
use skipbench_engine::{EngineError, Likelihood, ScoreOptions, ScoredText};
use skipbench_metrics::{Choice, Distance, Evidence, TextLikelihood};
use skipbench_record::Answer;
use skipbench_strategy::{Strategy, StrategySpec};
use std::collections::HashMap;

/// The full network's greedy answers to the prompts of a task, by the rows of the batches they were made in; `None` for a prompt
/// that it cannot answer.
pub(crate) type FullAnswers = HashMap<usize, Vec<Option<Vec<u32>>>>;

impl CellRun<'_> {
    /// Scores the choices of every question. A question that cannot be scored has none, and is wrong.
    pub(super) fn questions(
        self,
        spec: &StrategySpec,
        questions: &[Question],
    ) -> anyhow::Result<Pass> {
        let prompter = self.prompter()?;
        let mut pass = Pass::of_given();
        let mut strategy = self.built(spec, &mut pass)?;
        // What cannot be tokenized or does not fit is the question's own failure.
        let mut asked: Vec<Result<Vec<ScoredText>, String>> = Vec::new();
        for question in questions {
            let texts = question.choices.iter().map(|choice| {
                let text = prompter.scored(&choice.context, &choice.continuation)?;
                let alone = std::slice::from_ref(&text);
                self.engine().check_scored(alone, self.task().mode)?;
                Ok(text)
            });
            let texts: anyhow::Result<Vec<ScoredText>> = texts.collect();
            asked.push(texts.map_err(|error| format!("{error:#}")));
        }
        let all: Vec<&ScoredText> = asked.iter().flatten().flatten().collect();
        let how = self.how(self.task().max_new_tokens);
        let mut found = Vec::with_capacity(all.len());
        for batch in all.chunks(self.cell.batch_size) {
            (self.part)("choices", found.len() as u64, all.len() as u64);
            found.extend(self.scored_alone(batch, strategy.as_mut(), how));
        }
        let mut found = found.into_iter();
        for ((id, question), texts) in self.task().ids.iter().zip(questions).zip(&asked) {
            let scored = match texts {
                Err(reason) => Err(reason.clone()),
                Ok(texts) => {
                    let scored: Vec<_> = found.by_ref().take(texts.len()).collect();
                    scored
                        .into_iter()
                        .collect::<Result<Vec<Likelihood>, _>>()
                        .map_err(|error| error.to_string())
                }
            };
            let prompt_tokens = texts.as_ref().ok().and_then(|texts| texts.first());
            pass.answers.push(Answer {
                cell: self.cell.id.clone(),
                id: id.clone(),
                prompt_tokens: prompt_tokens.map_or(0, |text| text.context.len()),
                tokens: Vec::new(),
                text: scored.as_ref().map_or_else(
                    |_| String::new(),
                    |scored| likeliest(question, scored).to_owned(),
                ),
                layers: layers(scored.iter().flatten()),
                end: None,
                evidence: scored
                    .as_ref()
                    .map_or_else(|_| Evidence::default(), |scored| evidence(question, scored)),
                error: scored.err(),
            });
        }
        Ok(pass)
    }

    /// Scores whole texts.
    ///
    /// # Errors
    /// A text that cannot be scored: a perplexity over the others would be another one.
    pub(super) fn texts(
        self,
        spec: &StrategySpec,
        texts: &[Text],
        windows: Windows,
    ) -> anyhow::Result<Pass> {
        let prompter = self.prompter()?;
        let sizes = self.engine().model().sizes();
        let window = windows.window(sizes.max_positions)?;
        let mut pass = Pass::of_given();
        let mut strategy = self.built(spec, &mut pass)?;
        let mut all: Vec<(usize, ScoredText)> = Vec::new();
        for (index, request) in self.task().requests.iter().enumerate() {
            let ids = prompter.ids(request)?;
            let cut = match windows.stride {
                Some(stride) => ScoredText::windows(&ids, window, stride),
                None => ScoredText::rolling(prompter.beginning()?, &ids, window),
            };
            all.extend(cut.into_iter().map(|text| (index, text)));
        }
        let how = self.how(window);
        let mut found = vec![(Likelihood::default(), 0); texts.len()];
        for (nth, batch) in all.chunks(self.cell.batch_size).enumerate() {
            let done = nth * self.cell.batch_size;
            (self.part)("windows", done as u64, all.len() as u64);
            let some: Vec<&ScoredText> = batch.iter().map(|(_, text)| text).collect();
            let scored = self.scored_alone(&some, strategy.as_mut(), how);
            for ((index, _), scored) in batch.iter().zip(scored) {
                let scored = scored.with_context(|| {
                    format!(
                        "text `{}` cannot be scored, and a perplexity over the others would be another one",
                        self.task().ids[*index]
                    )
                })?;
                let (whole, windows) = &mut found[*index];
                *windows += 1;
                whole.log_probabilities.extend(scored.log_probabilities);
                whole.layers.extend(scored.layers);
                whole.divergences.extend(scored.divergences);
                whole.same_choice.extend(scored.same_choice);
            }
        }
        for ((id, text), (scored, _)) in self.task().ids.iter().zip(texts).zip(&found) {
            pass.answers.push(Answer {
                cell: self.cell.id.clone(),
                id: id.clone(),
                prompt_tokens: 0,
                tokens: Vec::new(),
                text: String::new(),
                layers: scored.layers.clone(),
                end: None,
                evidence: Evidence {
                    text: Some(TextLikelihood {
                        logprob: scored.sum(),
                        tokens: scored.log_probabilities.len(),
                        words: text.words,
                        bytes: text.bytes,
                    }),
                    distance: distance([scored]),
                    ..Evidence::default()
                },
                error: None,
            });
        }
        Ok(pass)
    }

    /// Adds to each answer how far the strategy is from the full network on the full network's answer.
    ///
    /// # Errors
    /// An answer that the full network gives and the strategy cannot score.
    pub(super) fn measure_distance(
        self,
        spec: &StrategySpec,
        prompts: &[Vec<u32>],
        pass: &mut Pass,
    ) -> anyhow::Result<()> {
        let mut strategy = spec.build(self.engine().model().sizes().n_layers)?;
        let answers = self.full_answers(prompts)?;
        // A prompt that the full network cannot answer leaves nothing to differ from.
        let texts: Vec<(usize, ScoredText)> = prompts
            .iter()
            .zip(&answers)
            .enumerate()
            .filter_map(|(index, (prompt, answer))| {
                let text = ScoredText {
                    context: prompt.clone(),
                    continuation: answer.clone()?,
                };
                Some((index, text))
            })
            .collect();
        let how = self.how(self.task().max_new_tokens);
        for (nth, batch) in texts.chunks(self.cell.batch_size).enumerate() {
            let done = nth * self.cell.batch_size;
            (self.part)("distances", done as u64, texts.len() as u64);
            let some: Vec<&ScoredText> = batch.iter().map(|(_, text)| text).collect();
            let scored = self.scored_alone(&some, strategy.as_mut(), how);
            for ((index, _), scored) in batch.iter().zip(scored) {
                let scored = scored.with_context(|| {
                    format!(
                        "the full network's answer to `{}` cannot be scored",
                        self.task().ids[*index]
                    )
                })?;
                pass.answers[*index].evidence.distance = distance([&scored]);
            }
        }
        Ok(())
    }

    fn full_answers(self, prompts: &[Vec<u32>]) -> anyhow::Result<Vec<Option<Vec<u32>>>> {
        let rows = self.cell.batch_size;
        if let Some(known) = self.full_answers.borrow().get(&rows) {
            return Ok(known.clone());
        }
        let options = natural_end(&self.loaded.tokenizer, self.task())?;
        let n_layers = self.engine().model().sizes().n_layers;
        let mut full = StrategySpec::full().build(n_layers)?;
        let mut answers = Vec::new();
        for batch in prompts.chunks(rows) {
            (self.part)("full answers", answers.len() as u64, prompts.len() as u64);
            let mut generate = |batch: &[Vec<u32>]| {
                let generation = self.engine().generate(batch, full.as_mut(), &options)?;
                Ok::<_, EngineError>(generation.rows)
            };
            match generate(batch) {
                Ok(rows) => answers.extend(rows.into_iter().map(|row| Some(row.tokens))),
                Err(_) => answers.extend(batch.chunks(1).map(|prompt| {
                    let row = generate(prompt).ok()?.into_iter().next();
                    row.map(|row| row.tokens)
                })),
            }
        }
        self.full_answers.borrow_mut().insert(rows, answers.clone());
        Ok(answers)
    }

    fn how(self, planned_tokens: usize) -> ScoreOptions {
        ScoreOptions {
            mode: self.task().mode,
            planned_tokens: Some(planned_tokens),
            against_full: self.task().asks_for_distance(),
            ..ScoreOptions::default()
        }
    }

    fn built(self, spec: &StrategySpec, pass: &mut Pass) -> anyhow::Result<Box<dyn Strategy>> {
        let strategy = spec.build(self.engine().model().sizes().n_layers)?;
        pass.kv_fill = strategy.needs().kv_fill.to_string();
        Ok(strategy)
    }

    /// Scores a batch; where it cannot be, each text alone, so that one that cannot be does not take its neighbours with it.
    fn scored_alone(
        self,
        batch: &[&ScoredText],
        strategy: &mut dyn Strategy,
        how: ScoreOptions,
    ) -> Vec<anyhow::Result<Likelihood>> {
        let mut score = |texts: &[&ScoredText]| {
            let texts: Vec<ScoredText> = texts.iter().map(|&text| text.clone()).collect();
            self.engine().score(&texts, strategy, how)
        };
        match score(batch) {
            Ok(scored) => scored.into_iter().map(finite).collect(),
            Err(error) if batch.len() == 1 => vec![Err(error.into())],
            Err(_) => batch
                .chunks(1)
                .map(|text| {
                    let scored = score(text)?.into_iter().next();
                    finite(scored.context("a text has a score")?)
                })
                .collect(),
        }
    }
}

/// Refuses what no file can hold.
fn finite(scored: Likelihood) -> anyhow::Result<Likelihood> {
    match scored.sum().is_finite() && scored.divergences.iter().all(|kl| kl.is_finite()) {
        true => Ok(scored),
        false => bail!("a token has the probability 0"),
    }
}

/// The likeliest choice; of equal ones the first.
fn likeliest<'q>(question: &'q Question, scored: &[Likelihood]) -> &'q str {
    let mut best: Option<(f64, &str)> = None;
    for (choice, scored) in question.choices.iter().zip(scored) {
        let sum = scored.sum();
        if best.is_none_or(|(highest, _)| sum > highest) {
            best = Some((sum, &choice.text));
        }
    }
    best.map_or("", |(_, text)| text)
}

fn evidence(question: &Question, scored: &[Likelihood]) -> Evidence {
    let choices = question.choices.iter().zip(scored);
    let choices = choices.map(|(choice, scored)| Choice {
        logprob: scored.sum(),
        tokens: scored.log_probabilities.len(),
        characters: choice.text.chars().count(),
    });
    Evidence {
        choices: choices.collect(),
        distance: distance(scored),
        ..Evidence::default()
    }
}

/// Summed over all tokens; `None` where it was not asked for.
fn distance<'l>(scored: impl IntoIterator<Item = &'l Likelihood>) -> Option<Distance> {
    let mut sum = Distance::default();
    for scored in scored {
        sum.tokens += scored.divergences.len();
        sum.kl += scored.divergences.iter().sum::<f64>();
        sum.same += scored.same_choice.iter().filter(|&&same| same).count();
    }
    (sum.tokens > 0).then_some(sum)
}

fn layers<'l>(scored: impl IntoIterator<Item = &'l Likelihood>) -> Vec<f64> {
    let layers = scored.into_iter().flat_map(|scored| &scored.layers);
    layers.copied().collect()
}
