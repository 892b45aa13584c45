//! Writes the report: tables to standard output or into a document, plots into a folder.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    Options, plots,
    report::{Report, write as write_file},
    tables, targets,
};

/// The markers in a document between which the figures are replaced.
const BEGIN: &str =
    "<!-- figures: written by `cargo bench --bench side_by_side -- --report FILE --into THIS` -->";
const END: &str = "<!-- end of the figures -->";

/// Writes tables and plots. False if a run had failed.
pub fn write(report: &Report, options: &Options) -> Result<bool, String> {
    // The plots of a document are in a folder of its name beside it.
    let folder = match &options.into {
        Some(document) => document.with_extension(""),
        None => options.plots.clone(),
    };
    let mut pictures = vec![];
    for plot in plots::all(report) {
        let file = folder.join(format!("{}.svg", plot.name));
        write_file(&file, &plot.svg)?;
        pictures.push((plot.title, file));
    }
    let base = options.into.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
    let text = text(report, &pictures, base);
    match &options.into {
        Some(document) => into(document, &text)?,
        None => println!("\n{text}"),
    }
    Ok(report.failures.is_empty())
}

fn text(report: &Report, pictures: &[(String, PathBuf)], base: &Path) -> String {
    let pictures: Vec<String> = pictures
        .iter()
        .map(|(title, file)| {
            format!("![{title}]({})", file.strip_prefix(base).unwrap_or(file).display())
        })
        .collect();
    format!(
        "## The run\n\n{}\n## The targets\n\n{}\n## The plots\n\n{}\n\n## The tables\n{}",
        tables::conditions(report),
        targets::table(report),
        pictures.join("\n\n"),
        tables::all(report)
    )
}

fn into(document: &Path, text: &str) -> Result<(), String> {
    let problem = |why: &dyn std::fmt::Display| format!("{}: {why}", document.display());
    let old = fs::read_to_string(document).map_err(|error| problem(&error))?;
    let (before, rest) = old.split_once(BEGIN).ok_or_else(|| problem(&format!("lacks {BEGIN}")))?;
    let (_, after) = rest.split_once(END).ok_or_else(|| problem(&format!("lacks {END}")))?;
    write_file(document, &format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", text.trim()))
}
