//! Answers written for programs that run code and score it; none is run here.

use crate::experiment::SamplesFormat;
use crate::plan::Plan;
use crate::task::TaskData;
use serde_json::json;
use skipbench_record::{Record, Run};
use std::path::Path;

/// Writes the answers of every cell whose task asks for it, a file each, whether they were made now or earlier.
///
/// # Errors
/// A folder that cannot be written.
pub(crate) fn write(plan: &Plan, dir: &Path) -> anyhow::Result<()> {
    if plan.tasks.iter().all(|task| task.samples.is_none()) {
        return Ok(());
    }
    let run = Run::read(dir)?;
    for record in &run.records {
        let task = plan.tasks.iter().find(|task| task.name == record.task.name);
        let Some((task, SamplesFormat::Evalplus)) =
            task.and_then(|task| Some((task, task.samples?)))
        else {
            continue;
        };
        let Some(answers) = run.answers(record) else {
            continue;
        };
        let folder = dir.join("evalplus");
        std::fs::create_dir_all(&folder)?;
        let lines = answers.iter().map(|answer| {
            let line = json!({"task_id": answer.id, key(task): answer.text});
            format!("{line}\n")
        });
        let text: String = lines.collect();
        let path = folder.join(format!("{}.jsonl", name(record)));
        skipbench_fs::write_whole(&path, text.as_bytes())?;
        tracing::info!("{} answers written to {}", answers.len(), path.display());
    }
    Ok(())
}

/// What evalplus puts behind the prompt, or what stands for itself, as a chat's answer does.
fn key(task: &TaskData) -> &'static str {
    match task.form.chat {
        None => "completion",
        Some(_) => "solution",
    }
}

/// A file name that tells the cells of a run apart: `m-humaneval-b8-unified@2`.
fn name(record: &Record) -> String {
    let name = format!(
        "{}-{}-b{}-beams{}-{}",
        record.model.name,
        record.task.name,
        record.search.batch_size,
        record.search.beams,
        record.strategy.label
    );
    let kept = |c: char| c.is_alphanumeric() || "-_.@".contains(c);
    name.chars()
        .map(|c| if kept(c) { c } else { '_' })
        .collect()
}
