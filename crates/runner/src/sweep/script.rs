//! The scripts that are handed to a cluster: one template, rendered for the shards and for the job that collects.

use super::Sweep;
use anyhow::{Context, bail};
use clap::Args;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value, context};
use std::path::{Path, PathBuf};

/// The template that is used if no other is given.
pub(crate) const TEMPLATE: &str = include_str!("template.sh");

/// What a shard's job asks of the cluster; each as `sbatch` takes it.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Resources {
    /// Partition of the jobs; the cluster's default if not given
    #[arg(long, value_name = "NAME")]
    partition: Option<String>,
    /// Account that pays
    #[arg(long, value_name = "NAME")]
    account: Option<String>,
    /// GPUs of each shard, as in `1` or `a100:1`; one if the experiment computes on a GPU
    #[arg(long, value_name = "SPEC")]
    gpus: Option<String>,
    /// Processors of each shard
    #[arg(long, value_name = "N")]
    cpus: Option<usize>,
    /// Memory of each shard, as in `32G`
    #[arg(long, value_name = "SIZE")]
    mem: Option<String>,
    /// Time limit of each shard, as in `2:00:00`; what it has finished by then is kept
    #[arg(long, value_name = "LIMIT")]
    time: Option<String>,
}

impl Resources {
    /// Refuses what would break out of its line of a script.
    fn check(&self) -> anyhow::Result<()> {
        let given = [
            ("--partition", &self.partition),
            ("--account", &self.account),
            ("--gpus", &self.gpus),
            ("--mem", &self.mem),
            ("--time", &self.time),
        ];
        for (option, value) in given {
            if let Some(value) = value
                && (value.is_empty() || value.contains(|c: char| c.is_control() || c == '\''))
            {
                bail!("{option} {value:?} is nothing that sbatch takes");
            }
        }
        Ok(())
    }
}

/// Everything that the scripts of a sweep say.
pub(crate) struct Scripts<'a> {
    pub(crate) sweep: &'a Sweep,
    /// Name of the experiment.
    pub(crate) name: &'a str,
    pub(crate) resources: &'a Resources,
    /// Devices that a shard computes on; none is a GPU where this is 0.
    pub(crate) gpus: usize,
    /// Whether anything is timed on the processor.
    pub(crate) times_cpu: bool,
    /// The numbers of the shards that are to run.
    pub(crate) shards: &'a [usize],
    /// The template, and where it came from.
    pub(crate) template: (&'a str, &'a Path),
}

impl Scripts<'_> {
    /// The script of the shards, and the one that collects.
    ///
    /// # Errors
    /// A template that is none, or that asks for what there is not.
    pub(crate) fn render(&self) -> anyhow::Result<[String; 2]> {
        self.resources.check()?;
        let sweep = self.sweep;
        let of = sweep.info.shards;
        let program = std::env::current_exe().context("where this program lies is not known")?;
        let (program, dir) = (quoted_path(&program)?, quoted_path(sweep.dir())?);
        let run = format!(
            "{program} run {} --sweep {dir} --shard \"$SLURM_ARRAY_TASK_ID/{of}\"",
            quoted_path(&sweep.experiment())?
        );
        let collect = format!("{program} collect {dir}");
        let numbers: Vec<String> = self.shards.iter().map(ToString::to_string).collect();
        let array = match self.shards.len() == of {
            true => format!("1-{of}"),
            false => numbers.join(","),
        };
        let asked = self.resources;
        let gpus = (self.gpus > 0).then(|| self.gpus.to_string());
        let common = context! {
            name => self.name,
            dir => sweep.dir().display().to_string(),
            logs => sweep.dir().join("logs").display().to_string(),
            partition => asked.partition,
            account => asked.account,
        };
        let shards = context! {
            purpose => format!("shard by shard, the cells of `{}`", self.name),
            array => array,
            shards => of,
            gpus => asked.gpus.clone().or(gpus),
            cpus => asked.cpus,
            memory => asked.mem,
            time => asked.time,
            exclusive => self.times_cpu,
            command => run,
            ..common.clone()
        };
        let last = context! {
            purpose => format!("one run of what the shards of `{}` have left", self.name),
            command => collect,
            ..common
        };
        Ok([self.fill(shards)?, self.fill(last)?])
    }

    fn fill(&self, values: Value) -> anyhow::Result<String> {
        let (text, path) = self.template;
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::SemiStrict);
        environment.set_keep_trailing_newline(true);
        environment.add_filter("sh", quoted);
        let filled = environment.render_str(text, values);
        filled.map_err(|error| {
            let line = error.line().map_or_else(String::new, |line| format!(":{line}"));
            let hint = match error.kind() {
                ErrorKind::UndefinedError => "; the names that it may use are those of --print-template, and the job that collects has none of the array's: they stand within `{% if array %}`",
                _ => "",
            };
            let (path, what) = (path.display(), error.kind());
            let detail = error.detail().map_or_else(String::new, |detail| format!(": {detail}"));
            anyhow::anyhow!("{path}{line}: {what}{detail}{hint}")
        })
    }
}

/// One word of a shell, and of an `#SBATCH` line.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=,%+@".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

fn quoted_path(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str();
    let fit = text.filter(|text| !text.contains(|c: char| c.is_control() || "%\\'".contains(c)));
    match fit {
        Some(text) => Ok(quoted(text)),
        None => bail!(
            "{} has a character that scripts of Slurm cannot take in a path (%, \\, ', or one that cannot be seen); use another folder",
            path.display()
        ),
    }
}

/// Where the scripts of a sweep are kept.
pub(crate) fn paths(sweep: &Sweep) -> [PathBuf; 2] {
    ["shards.sh", "collect.sh"].map(|name| sweep.dir().join(name))
}
