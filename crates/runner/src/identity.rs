//! What the result of a cell depends on.
//!
//! What is asked for (weights, texts, strategy, search) determines a cell's `content`; with what computes it (the program,
//! the instruction set, the GPU) it determines the answers; with the machine, its threads and the timing settings it
//! determines the times.

use crate::binary;
use crate::experiment::{DeviceName, Experiment, Match};
use crate::plan::ModelPlan;
use crate::prompter;
use crate::task::TaskData;
use serde_json::json;
use skipbench_machine::Machine;
use skipbench_record::Identity;
use skipbench_strategy::StrategySpec;

/// Everything that determines a cell, split by what it determines.
#[derive(Debug, Clone)]
pub(crate) struct CellIdentity {
    /// What is asked for.
    pub(crate) content: Identity,
    /// What the answers depend on.
    pub(crate) answers: Identity,
    /// What the times depend on beside that; `None` for a cell that is not timed.
    pub(crate) times: Option<Identity>,
}

/// What a cell asks for.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) experiment: &'a Experiment,
    pub(crate) model: &'a ModelPlan,
    pub(crate) task: &'a TaskData,
    pub(crate) strategy: &'a StrategySpec,
    pub(crate) batch_size: usize,
    pub(crate) beams: usize,
    pub(crate) timed: bool,
}

/// The parts of an identity that say where something was computed.
pub(crate) const MACHINE: [&str; 7] = [
    "instruction set",
    "GPU",
    "host",
    "processor",
    "cores",
    "threads",
    "GPU driver",
];

/// The machine that computes now.
pub(crate) fn this_machine(device: DeviceName) -> Machine {
    Machine::here(
        rayon::current_num_threads(),
        skipbench_model::instruction_set(),
        device == DeviceName::Cuda,
    )
}

impl CellIdentity {
    pub(crate) fn of(asked: Asked<'_>, machine: &Machine) -> Self {
        let Asked {
            experiment,
            model,
            task,
            strategy,
            ..
        } = asked;
        let timing = |identity: Identity| {
            identity
                .with("timing settings", &experiment.timing)
                .with("seed", experiment.seed)
        };
        let mut content = on_text(experiment, model, task)
            .with("task texts", task.texts_digest())
            .with("strategy", strategy)
            .with("batch size", asked.batch_size)
            .with("beams", asked.beams)
            .with("length-penalty", experiment.length_penalty)
            .with("no-repeat-ngram", experiment.no_repeat_ngram)
            .with("match", experiment.matching);
        if strategy.is_oracle() {
            // An oracle of answers goes by the task's main metric.
            content = content.with("metric", task.metrics.first());
        }
        let mut answers = computed_by(content.clone(), machine);
        if experiment.matching == Match::Wallclock {
            // The clock settles the layers.
            content = timing(content);
            answers = clocked_by(timing(answers), machine);
        }
        let times = asked
            .timed
            .then(|| timing(clocked_by(Identity::default(), machine)));
        Self {
            content,
            answers,
            times,
        }
    }
}

/// What is found on the calibration text of a task depends on this.
pub(crate) fn on_text(experiment: &Experiment, model: &ModelPlan, task: &TaskData) -> Identity {
    let identity = Identity::default()
        .with("weights", &model.digest.weights)
        .with("tokenizer", &model.digest.tokenizer)
        .with("config", &model.digest.config)
        .with("dtype", experiment.dtype_of(&model.entry))
        .with("device", experiment.device)
        .with("calibration texts", task.calibration_digest())
        .with("max-new-tokens", task.max_new_tokens);
    // What is not set is not named, so that results of before it could be set stay what they are.
    let form = &task.form;
    let kv_dtype = experiment.kv_dtype_of(&model.entry);
    let settings = [
        ("kv-dtype", kv_dtype.map(|kept| json!(kept))),
        ("stop", (!task.stop.is_empty()).then(|| json!(task.stop))),
        ("chat", form.chat.as_ref().map(|chat| json!(chat))),
        (
            "special-tokens",
            (!form.special_tokens.is_auto()).then(|| json!(form.special_tokens)),
        ),
        (
            "scoring",
            task.scoring(model.max_positions)
                .map(|scoring| json!(scoring)),
        ),
        (
            "day",
            prompter::day(&model.entry.path, form).map(|day| json!(day)),
        ),
    ];
    settings
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .fold(identity, |identity, (name, value)| {
            identity.with(name, value)
        })
}

/// With what can change an answer beside what is asked for.
pub(crate) fn computed_by(identity: Identity, machine: &Machine) -> Identity {
    identity
        .with("binary", binary::this().digest.as_str())
        .with("instruction set", &machine.instruction_set)
        .with("GPU", machine.gpu.as_ref().map(|gpu| &gpu.name))
}

/// With what can change a time beside that.
pub(crate) fn clocked_by(identity: Identity, machine: &Machine) -> Identity {
    computed_by(identity, machine)
        .with("host", &machine.host)
        .with("processor", &machine.cpu)
        .with("cores", machine.cores)
        .with("threads", machine.threads)
        .with("GPU driver", machine.gpu.as_ref().map(|gpu| &gpu.driver))
}
