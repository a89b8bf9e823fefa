//! What a run leaves behind: one [`Record`] per cell, and the folder that holds the records of a run.
//!
//! A result travels in no other form than its [`Record`]. The folder of a run stands alone: [`Run::read`] needs neither
//! checkpoint nor data, so that a report can be drawn again and two runs can be compared anywhere.
//!
//! | file | holds |
//! | --- | --- |
//! | `run.json` | [`RunInfo`]: the experiment, and its cells in order |
//! | `cells.jsonl` | a [`Record`] a line |
//! | `samples.jsonl` | an [`Answer`] a line |
//! | `prompts.jsonl` | a [`Prompt`] a line: what was asked, and the references |
//!
//! Each of them may be compressed (`cells.jsonl.gz`), as in an archive.

mod archive;
mod error;
mod folder;
mod identity;
mod lines;
mod paper;
mod record;
mod run;

pub use error::RecordError;
pub use folder::{Folder, Standing};
pub use identity::Identity;
pub use lines::Log;
pub use paper::{
    Beside, Paper, PaperData, PaperHardware, PaperModel, PaperRow, PaperSearch, PaperSetting,
};
pub use record::{
    Answer, Binary, Calibration, Executed, KvAuditRecord, Made, ModelRecord, Prompt, Quality,
    Record, Score, Scored, Scoring, Search, StrategyRecord, TaskRecord, Timing, VERSION, grouped,
    layer_counts,
};
pub use run::{PlannedCell, Run, RunInfo, Written, records};
