//! `skipbench submit`.

use crate::experiment::{DeviceName, ExperimentArgs};
use crate::plan::{Plan, Weights};
use crate::sweep::script::{self, Resources, Scripts, TEMPLATE};
use crate::sweep::{Jobs, Reach, Sweep, slurm};
use anyhow::bail;
use clap::Args;
use skipbench_record::Folder;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `skipbench submit`.
#[derive(Debug, Args)]
pub struct SubmitArgs {
    #[command(flatten)]
    experiment: ExperimentArgs,
    /// Hand the cells in to Slurm, as an array of jobs and one that collects what they leave
    #[arg(long, required = true)]
    slurm: bool,
    #[command(flatten)]
    resources: Resources,
    /// Shards, each with an equal share of the cells; as many jobs may run at a time
    #[arg(long, value_name = "N", default_value_t = 4)]
    parallel: usize,
    /// Template of the scripts, instead of the one that --print-template prints; a Jinja template, or a script as it is
    #[arg(long, value_name = "FILE")]
    template: Option<PathBuf>,
    /// Print the scripts and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the template of the scripts and do nothing
    #[arg(long)]
    print_template: bool,
}

/// Hands an experiment in to a cluster, shard by shard. What is finished already is not run again.
///
/// # Errors
/// Whatever [`Plan::of`] refuses, a machine without Slurm, jobs of the same folder that have not ended, whatever Slurm refuses.
pub fn run(args: &SubmitArgs) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    if args.print_template {
        write!(out, "{TEMPLATE}")?;
        return Ok(ExitCode::SUCCESS);
    }
    if !(1..=MOST).contains(&args.parallel) {
        bail!("--parallel is a number of shards from 1 to {MOST}");
    }
    if !args.dry_run {
        slurm::check_here()?;
    }
    let template = match &args.template {
        Some(path) => crate::load::read_text(path)?,
        None => TEMPLATE.to_owned(),
    };
    let weights = match args.dry_run {
        true => Weights::LookedAt,
        // Once, and not by every shard on a node without a network.
        false => Weights::Needed,
    };
    let plan = Plan::of(&args.experiment, weights)?;
    let dir = plan.experiment.out_dir();
    let mut sweep = Sweep::at(&dir, args.parallel.min(plan.cells.len()), Reach::Machines)?;
    let scripts = |sweep: &Sweep, shards: &[usize]| {
        Scripts {
            sweep,
            name: &plan.experiment.name,
            resources: &args.resources,
            gpus: match plan.experiment.device {
                DeviceName::Cpu => 0,
                DeviceName::Cuda => plan.experiment.devices.len().max(1),
            },
            times_cpu: plan.experiment.device == DeviceName::Cpu
                && plan.cells.iter().any(|cell| cell.timed),
            shards,
            template: (
                &template,
                args.template
                    .as_deref()
                    .unwrap_or(Path::new("the template")),
            ),
        }
        .render()
    };
    let all: Vec<usize> = (1..=sweep.info.shards).collect();
    let [shards, collect] = scripts(&sweep, &all)?;
    if args.dry_run {
        let [first, second] = script::paths(&sweep);
        let (first, second) = (first.display(), second.display());
        write!(out, "# {first}\n{shards}\n# {second}\n{collect}")?;
        return Ok(ExitCode::SUCCESS);
    }
    if Sweep::unended(&dir)?.is_none() {
        bail!(
            "Slurm does not answer, so whether jobs of {} run is not known; try again",
            dir.display()
        );
    }
    Sweep::check_no_jobs(&dir)?;
    sweep.check(&plan)?;
    let mut folder = Folder::open(&dir, &plan.info()?)?;
    sweep.begin(&plan)?;
    sweep.collect(&mut folder)?;
    let mut left = BTreeSet::new();
    let mut cells = 0;
    for cell in &plan.cells {
        let identity = &cell.identity;
        if !folder.is_done(&identity.answers, identity.times.as_ref(), sweep.ignoring()) {
            left.insert(cell.place % sweep.info.shards + 1);
            cells += 1;
        }
    }
    folder.close()?;
    if left.is_empty() {
        let dir = dir.display();
        writeln!(
            out,
            "All {} cells are done; `skipbench collect {dir}` draws them.",
            plan.cells.len()
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    let left: Vec<usize> = left.into_iter().collect();
    let rendered = scripts(&sweep, &left)?;
    let paths = script::paths(&sweep);
    for (path, text) in std::iter::zip(&paths, rendered) {
        skipbench_fs::write_whole(path, text.as_bytes())?;
    }
    let array = slurm::submit(&paths[0], None)?;
    let last = slurm::submit(&paths[1], Some(&array)).inspect_err(|_| slurm::cancel(&array))?;
    sweep.info.jobs = Some(Jobs {
        shards: array.clone(),
        collect: Some(last.clone()),
    });
    sweep.save()?;
    let (shards, dir) = (left.len(), dir.display());
    writeln!(
        out,
        "Submitted {cells} of {} cells in {shards} shards as job {array}; job {last} collects them.\n`skipbench status {dir}` says how far they are.",
        plan.cells.len()
    )?;
    Ok(ExitCode::SUCCESS)
}

/// The most jobs of an array that Slurm takes as it comes.
const MOST: usize = 1000;
