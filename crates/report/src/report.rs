//! A report: the rows of some runs, and everything that is drawn from them.

use crate::error::{ReportError, Result};
use crate::findings::is_unsteady;
use crate::frame::Frame;
use crate::head::Head;
use crate::image;
use crate::paper::{self, Comparison};
use crate::plots::{self, Plot};
use crate::row::Row;
use crate::scores::{Graded, compare};
use crate::svg::Look;
use crate::table::{Kind, Table};
use crate::{html, text};
use skipbench_engine::speedup;
use skipbench_fs::write_whole;
use skipbench_machine::Machine;
use skipbench_record::{Record, Run};
use std::path::{Path, PathBuf};

/// Every result of some runs, side by side.
pub struct Report<'a> {
    runs: &'a [Run],
    head: Head,
    /// Rows of the same model, task, batch size and beams.
    groups: Vec<Vec<Row<'a>>>,
}

impl<'a> Report<'a> {
    /// Derives what there is to say of the records of `runs`: scores from answers and references, speedups from timed blocks,
    /// differences from the full network.
    ///
    /// # Errors
    /// A metric that is not known or refuses its input.
    pub fn of(runs: &'a [Run]) -> Result<Self> {
        let machines = machines(runs);
        let names: Vec<String> = runs.iter().map(|run| run_name(run, runs)).collect();
        let mut groups: Vec<Vec<Graded<'a>>> = Vec::new();
        let mut numbers = 0..;
        for (run, name) in runs.iter().zip(&names) {
            for record in &run.records {
                let number = numbers.next().unwrap_or(0);
                let row = row(record, run, (name, number), &machines);
                let graded = Graded::new(row)?;
                let group = groups
                    .iter_mut()
                    .find(|group| group[0].row.group() == graded.row.group());
                match group {
                    Some(group) => group.push(graded),
                    None => groups.push(vec![graded]),
                }
            }
        }
        for group in &mut groups {
            compare(group)?;
        }
        let rows = |group: Vec<Graded<'a>>| group.into_iter().map(|graded| graded.row).collect();
        let groups: Vec<Vec<Row<'a>>> = groups.into_iter().map(rows).collect();
        let all: Vec<&Row<'a>> = groups.iter().flatten().collect();
        Ok(Self {
            runs,
            head: Head::new(runs, &names, &all, &machines),
            groups,
        })
    }

    /// All rows, group by group.
    pub fn rows(&self) -> impl Iterator<Item = &Row<'a>> {
        self.groups.iter().flatten()
    }

    /// The tables as plain text for a terminal, and what they mean.
    pub fn terminal(&self) -> String {
        self.terminal_tables() + &self.terminal_notes()
    }

    /// The tables alone, for a terminal.
    pub fn terminal_tables(&self) -> String {
        text::plain(&self.tables(Kind::Main))
    }

    /// Papers' tables with the runs' figures beside them, what all tables mean and what a reader must know, for a terminal.
    pub fn terminal_notes(&self) -> String {
        let papers: Vec<Table> = self.papers().iter().map(Comparison::table).collect();
        text::plain(&papers) + &text::plain_notes(&self.head, &self.tables(Kind::Main))
    }

    /// What the runs are to be set beside.
    fn papers(&self) -> Vec<Comparison<'_>> {
        paper::comparisons(self.runs, &self.groups)
    }

    /// Tables of scores and speeds, and papers' beside them.
    fn main_tables(&self) -> Vec<Table> {
        let papers = self.papers();
        let papers = papers.iter().map(Comparison::table);
        self.tables(Kind::Main).into_iter().chain(papers).collect()
    }

    fn plots(&self) -> Vec<Plot> {
        plots::all(&self.groups, &self.papers())
    }

    /// `table.md`
    pub fn markdown(&self) -> String {
        text::markdown(&self.head, &self.main_tables(), &self.tables(Kind::Cost))
    }

    /// `table.tex`
    pub fn latex(&self) -> String {
        let mut tables = self.main_tables();
        tables.extend(self.tables(Kind::Cost));
        text::latex(&tables)
    }

    /// Writes `results.csv`, `results.parquet`, `table.md`, `table.tex`, `plots/*.svg` with a `.png` beside each, and a
    /// self-contained `report.html`; gives the paths.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn write(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        let mut frame = Frame::of(&self.rows().collect::<Vec<_>>())?;
        let plots = self.plots();
        let mut paths = self.write_small(dir, &mut frame, &plots)?;
        let more = [
            ("results.parquet", frame.parquet()?),
            ("table.tex", self.latex().into_bytes()),
        ];
        paths.extend(write_all(dir, more)?);
        for plot in &plots {
            let path = plot_path(dir, plot).with_extension("png");
            let picture = image::png(&plot.name, &plot.chart.svg(Look::File))?;
            write_whole(&path, &picture)?;
            paths.push(path);
        }
        Ok(paths)
    }

    /// Writes what an archive holds: `results.csv`, `table.md`, `plots/*.svg` and `report.html`.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn write_archive(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        let mut frame = Frame::of(&self.rows().collect::<Vec<_>>())?;
        self.write_small(dir, &mut frame, &self.plots())
    }

    fn write_small(&self, dir: &Path, frame: &mut Frame, plots: &[Plot]) -> Result<Vec<PathBuf>> {
        let page = html::page(self.runs, &self.head, &self.groups, plots, &self.papers())?;
        let files = [
            ("results.csv", frame.csv()?),
            ("table.md", self.markdown().into_bytes()),
            ("report.html", page.into_bytes()),
        ];
        make_folder(&dir.join("plots"))?;
        let mut paths = write_all(dir, files)?;
        for plot in plots {
            let path = plot_path(dir, plot);
            write_whole(&path, plot.chart.svg(Look::File).as_bytes())?;
            paths.push(path);
        }
        Ok(paths)
    }

    fn tables(&self, kind: Kind) -> Vec<Table> {
        self.groups
            .iter()
            .map(|group| Table::new(kind, group))
            .collect()
    }
}

/// A record as a row. `name`: of its run; `number`: its place among all rows.
fn row<'a>(
    record: &'a Record,
    source: &'a Run,
    (name, number): (&str, usize),
    machines: &[&Machine],
) -> Row<'a> {
    let index = machines.iter().position(|machine| is_of(record, machine));
    let timing = record.timing.as_ref();
    let timing_notes = timing.iter().flat_map(|timing| &timing.notes);
    let mut row = Row {
        run: name.to_owned(),
        record,
        source,
        number,
        machine: index.map_or(0, |index| index + 1),
        machine_name: spelled(&record.measured().machine, machines),
        repeat: 0,
        speedup: timing.and_then(|timing| speedup(&timing.blocks)),
        scores: Vec::new(),
        same_as_full: None,
        truncated: None,
        repetition: None,
        band: None,
        sets: None,
        notes: record.notes.iter().chain(timing_notes).cloned().collect(),
    };
    if is_unsteady(&row) {
        row.notes.push(
            "its speedup over itself is not 1: the machine was not steady, and times of this table are not to be trusted"
                .to_owned(),
        );
    }
    row
}

/// What a run is called: the name of its experiment, or its folder where several have that name.
fn run_name(run: &Run, runs: &[Run]) -> String {
    match runs
        .iter()
        .filter(|other| other.info.name == run.info.name)
        .count()
    {
        1 => run.info.name.clone(),
        _ => run.dir.display().to_string(),
    }
}

/// Every machine that something was measured on, in order of appearance; those that have only made answers come last.
fn machines(runs: &[Run]) -> Vec<&Machine> {
    let mut machines: Vec<&Machine> = Vec::new();
    let all = || runs.iter().flat_map(|run| &run.records);
    let timed = all().filter(|record| record.timing.is_some());
    for record in timed.chain(all()) {
        if !machines.iter().any(|machine| is_of(record, machine)) {
            machines.push(&record.measured().machine);
        }
    }
    machines
}

/// A machine in words, with its name in the network where the report has machines of several names.
pub(crate) fn spelled(machine: &Machine, machines: &[&Machine]) -> String {
    match machines.iter().any(|other| other.host != machine.host) {
        true => format!("{}: {machine}", machine.host),
        false => machine.to_string(),
    }
}

/// Whether a record counts as this machine's: threads matter for its times alone.
fn is_of(record: &Record, machine: &Machine) -> bool {
    let own = &record.measured().machine;
    let gpu = |machine: &Machine| machine.gpu.as_ref().map(|gpu| gpu.name.clone());
    match record.timing {
        Some(_) => own.differences(machine).is_empty(),
        None => {
            (&own.host, &own.instruction_set) == (&machine.host, &machine.instruction_set)
                && gpu(own) == gpu(machine)
        }
    }
}

fn plot_path(dir: &Path, plot: &Plot) -> PathBuf {
    dir.join("plots").join(format!("{}.svg", plot.name))
}

fn make_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|source| ReportError::Folder {
        path: path.to_path_buf(),
        source,
    })
}

fn write_all<const N: usize>(dir: &Path, files: [(&str, Vec<u8>); N]) -> Result<Vec<PathBuf>> {
    let write = |(name, bytes): (&str, Vec<u8>)| {
        let path = dir.join(name);
        write_whole(&path, &bytes)?;
        Ok(path)
    };
    files.into_iter().map(write).collect()
}
