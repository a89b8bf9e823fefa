//! In what a paper and a run may differ, so that a reader knows which of their figures compare.

use crate::row::Row;
use skipbench_record::{Beside, Paper, grouped};
use std::collections::BTreeSet;

/// Something in which the paper and the run may differ.
pub(super) struct Aspect {
    pub(super) name: &'static str,
    /// It bears on scores, on speeds.
    pub(super) score: bool,
    pub(super) speed: bool,
    /// Both in words, where they differ.
    pub(super) differs: Option<String>,
}

/// In what the paper and the run may differ, and where they do.
pub(super) fn aspects(beside: &Beside, rows: &[&Row<'_>]) -> Vec<Aspect> {
    let Paper { setting, .. } = &beside.paper;
    let record = rows[0].record;
    let aspect = |name, (score, speed), same: bool, paper: &str, here: String| Aspect {
        name,
        score,
        speed,
        differs: (!same).then(|| format!("the paper has {paper}; here {here}")),
    };
    let model = &record.model;
    let known = setting.model.known_as.iter().chain([&setting.model.name]);
    let known: Vec<String> = known.map(|name| name.to_lowercase()).collect();
    let models: BTreeSet<(&str, usize)> = rows
        .iter()
        .map(|row| (row.model(), row.record.model.n_layers))
        .collect();
    let same_model = models.iter().all(|(name, layers)| {
        known.contains(&name.to_lowercase()) && *layers == setting.model.layers
    });
    let layers = |name: &str, layers: usize| format!("{name} ({layers} layers)");
    let models: Vec<String> = models.iter().map(|(name, n)| layers(name, *n)).collect();

    let fine_tuning = beside.fine_tuning.as_deref().map(str::trim);

    let mut tasks: Vec<(&str, usize, Option<String>)> = Vec::new();
    for task in rows.iter().map(|row| &row.record.task) {
        let task = (task.name.as_str(), task.prompts, task.limit());
        if !tasks.contains(&task) {
            tasks.push(task);
        }
    }
    let sets: BTreeSet<(&str, usize)> = tasks.iter().map(|task| (task.0, task.1)).collect();
    let printed = setting.data.prompts.iter();
    let printed: BTreeSet<(&str, usize)> = printed
        .map(|(name, count)| (name.as_str(), *count))
        .collect();
    let prompts = |name: &str, count: &str| format!("{name} ({count})");
    let sets_here: Vec<String> = tasks
        .iter()
        .map(|(name, count, limit)| {
            prompts(name, &limit.clone().unwrap_or_else(|| grouped(*count)))
        })
        .collect();
    let sets_printed: Vec<String> = printed
        .iter()
        .map(|(name, count)| prompts(name, &grouped(*count)))
        .collect();

    let search = |beams: usize, ngram: usize, longest: usize| {
        let beams = match beams {
            1 => "greedy decoding".to_owned(),
            beams => format!("{beams} beams"),
        };
        let ngram = match ngram {
            0 => String::new(),
            ngram => format!(", no {ngram}-gram twice"),
        };
        format!("{beams}{ngram}, at most {longest} new tokens")
    };
    let printed_search = &setting.search;
    let printed_search = search(
        printed_search.beams,
        printed_search.no_repeat_ngram,
        printed_search.max_new_tokens,
    );
    let search_here = search(
        record.search.beams,
        record.search.no_repeat_ngram,
        record.task.max_new_tokens,
    );

    let machine = &record.measured().machine;
    let same_gpu = machine
        .gpu
        .as_ref()
        .is_some_and(|gpu| gpu.name.contains(&setting.hardware.gpu));
    let timing = rows.iter().find_map(|row| row.record.timing.as_ref());

    let (both, score, speed) = ((true, true), (true, false), (false, true));
    vec![
        aspect(
            "model",
            both,
            same_model,
            &layers(&setting.model.name, setting.model.layers),
            models.join(", "),
        ),
        aspect(
            "fine-tuning",
            score,
            fine_tuning == Some(setting.fine_tuning.trim()),
            &setting.fine_tuning,
            fine_tuning
                .unwrap_or("nobody said how the checkpoint was trained")
                .to_owned(),
        ),
        aspect(
            "data",
            score,
            sets == printed,
            &format!("{}: {}", setting.data.name, sets_printed.join(", ")),
            sets_here.join(", "),
        ),
        aspect(
            "search",
            both,
            printed_search == search_here,
            &printed_search,
            search_here,
        ),
        aspect(
            "weights",
            both,
            model.dtype == setting.dtype,
            &setting.dtype,
            model.dtype.clone(),
        ),
        aspect(
            "hardware",
            speed,
            same_gpu,
            &setting.hardware.name,
            machine.to_string(),
        ),
        aspect(
            "length",
            speed,
            false,
            &setting.length,
            timing.map_or_else(
                || "nothing was timed".to_owned(),
                |timing| format!("every row is timed over {} new tokens", timing.new_tokens),
            ),
        ),
    ]
}
