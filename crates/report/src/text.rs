//! Tables as text: Markdown, LaTeX, and plain for a terminal.

use crate::head::Head;
use crate::table::{Kind, Table, legend};
use comfy_table::{CellAlignment, presets};

/// GitHub-flavoured Markdown.
pub(crate) fn markdown(head: &Head, main: &[Table], cost: &[Table]) -> String {
    let mut text = format!("# {}\n\n", head.title);
    for (name, value) in &head.facts {
        text.push_str(&format!("- {name}: {value}\n"));
    }
    text.push('\n');
    for note in &head.notes {
        text.push_str(&format!("> {note}\n\n"));
    }
    for (kind, tables) in [(Kind::Main, main), (Kind::Cost, cost)] {
        tables
            .iter()
            .for_each(|table| markdown_table(&mut text, table));
        text.push_str(&legend(kind, tables));
        text.push_str("\n\n");
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn markdown_table(text: &mut String, table: &Table) {
    text.push_str(&format!("## {}\n\n", table.title));
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    text.push_str(&line(&table.header));
    let mut rule = vec!["---:".to_owned(); table.header.len()];
    rule[..1].fill("---".to_owned());
    text.push_str(&line(&rule));
    for row in &table.rows {
        text.push_str(&line(row));
    }
    text.push('\n');
    for note in &table.notes {
        text.push_str(&format!("- {note}\n"));
    }
    if !table.notes.is_empty() {
        text.push('\n');
    }
}

/// LaTeX with booktabs, a `table` each, to be read by `\input`.
pub(crate) fn latex(tables: &[Table]) -> String {
    let mut text = "% Needs \\usepackage{booktabs}.\n".to_owned();
    for table in tables {
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|cell| escape(cell)).collect();
            format!("{} \\\\\n", cells.join(" & "))
        };
        text.push_str(&format!(
            "\n\\begin{{table}}\n\\centering\n\\caption{{{}}}\n\\begin{{tabular}}{{l{}}}\n\\toprule\n{}\\midrule\n",
            escape(&table.title),
            "r".repeat(table.header.len().saturating_sub(1)),
            line(&table.header)
        ));
        for row in &table.rows {
            text.push_str(&line(row));
        }
        text.push_str("\\bottomrule\n\\end{tabular}\n");
        for note in &table.notes {
            text.push_str(&format!("\\par\\footnotesize {}\n", escape(note)));
        }
        text.push_str("\\end{table}\n");
    }
    text
}

/// Text that LaTeX prints as it is.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        match c {
            '\\' => escaped.push_str("\\textbackslash{}"),
            '~' => escaped.push_str("\\textasciitilde{}"),
            '^' => escaped.push_str("\\textasciicircum{}"),
            '<' => escaped.push_str("\\textless{}"),
            '>' => escaped.push_str("\\textgreater{}"),
            '|' => escaped.push_str("\\textbar{}"),
            '°' => escaped.push_str("$^\\circ$"),
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => escaped.extend(['\\', c]),
            // Behind a line's end it would be taken for that one's option.
            '[' | '*' if at == 0 => escaped.extend(['{', c, '}']),
            _ => escaped.push(c),
        }
    }
    escaped
}

/// Plain text for a terminal.
pub(crate) fn plain(tables: &[Table]) -> String {
    let mut text = String::new();
    for data in tables {
        let mut table = comfy_table::Table::new();
        table.load_preset(presets::NOTHING).set_header(&data.header);
        for row in &data.rows {
            table.add_row(row);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        text.push_str(&format!("{}\n{}\n", data.title, table.trim_fmt()));
        for note in &data.notes {
            text.push_str(&format!("  {note}\n"));
        }
        text.push('\n');
    }
    text
}

/// What stands below all tables on a terminal: what marks and columns mean, and the notes of the runs.
pub(crate) fn plain_notes(head: &Head, tables: &[Table]) -> String {
    let mut text = legend(Kind::Main, tables).replace('`', "");
    text.push('\n');
    if head.machines.len() > 1 {
        for (name, machine) in &head.machines {
            text.push_str(&format!("{name}: {machine}\n"));
        }
    }
    for note in &head.notes {
        text.push_str(&format!("Note: {note}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn what_latex_would_read_is_escaped() {
        assert_eq!(
            escape(r"a_b & 50% #1 {x} $y$ ~^\ 2<3 [1]"),
            r"a\_b \& 50\% \#1 \{x\} \$y\$ \textasciitilde{}\textasciicircum{}\textbackslash{} 2\textless{}3 [1]"
        );
        assert_eq!(escape("[1.0, 2.0]"), "{[}1.0, 2.0]");
        assert_eq!(escape("48.0*° [46.1, 49.9]"), r"48.0*$^\circ$ [46.1, 49.9]");
    }
}
