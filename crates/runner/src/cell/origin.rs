//! What a record says of a cell before it runs: what was asked for, where, when and with what.

use crate::binary;
use crate::plan::{Cell, ModelPlan, Plan};
use crate::task::TaskData;
use skipbench_model::KvType;
use skipbench_record::{Made, ModelRecord, Record, Search, TaskRecord, VERSION, Written};

/// A record with everything that is known before the cell runs.
pub(super) fn blank(plan: &Plan, cell: &Cell) -> Record {
    let experiment = &plan.experiment;
    Record {
        version: VERSION,
        id: cell.id.clone(),
        content: cell.identity.content.id(),
        answers_from: cell.identity.answers.clone(),
        times_from: None,
        experiment: experiment.name.clone(),
        model: model_record(plan, &plan.models[cell.model]),
        task: TaskRecord {
            metrics: plan.metric_names(cell.model, cell.task),
            ..task_record(
                &plan.tasks[cell.task],
                plan.models[cell.model].max_positions,
            )
        },
        strategy: (&cell.strategy).into(),
        search: Search {
            batch_size: cell.batch_size,
            beams: cell.beams,
            length_penalty: experiment.length_penalty,
            no_repeat_ngram: experiment.no_repeat_ngram,
        },
        executed: None,
        quality: None,
        timing: None,
        notes: Vec::new(),
        failure: None,
        made: made(plan),
    }
}

/// A model of the plan, as a record names it.
pub(crate) fn model_record(plan: &Plan, model: &ModelPlan) -> ModelRecord {
    ModelRecord {
        name: model.name.clone(),
        n_layers: model.n_layers,
        weights: model.digest.weights.clone(),
        tokenizer: model.digest.tokenizer.clone(),
        config: model.digest.config.clone(),
        dtype: plan.experiment.dtype_name(&model.entry),
        kv_dtype: plan
            .experiment
            .kv_dtype_of(&model.entry)
            .map(|kept| KvType::from(kept).to_string()),
        device: plan.experiment.device.name().to_owned(),
    }
}

/// A task, as a record names it; of a model with so many positions.
pub(crate) fn task_record(task: &TaskData, positions: Option<usize>) -> TaskRecord {
    TaskRecord {
        name: task.name.clone(),
        texts: task.texts_digest(),
        prompts: task.requests.len(),
        prompts_available: task.available,
        max_new_tokens: task.max_new_tokens,
        metrics: task.metric_names(),
        metric_settings: task.metric_settings(),
        scoring: task.scoring(positions),
    }
}

/// When and by what a `run.json` is written.
pub(crate) fn written(plan: &Plan) -> Written {
    let binary = binary::this();
    Written {
        date: now(),
        device: Some(plan.machine.clone()),
        checkup: None,
        git_commit: binary.commit.clone(),
        versions: [("skipbench".to_owned(), binary.version.clone())].into(),
    }
}

fn now() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

pub(super) fn made(plan: &Plan) -> Made {
    Made {
        at: now(),
        machine: plan.machine.clone(),
        binary: binary::this().clone(),
    }
}
