//! Files that a command writes: none of them may be one that it reads, under whatever name.

use anyhow::{Context, bail};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

/// A file as the command line names it.
pub(crate) struct Named<'a> {
    /// The option, such as `--trace`.
    pub(crate) option: &'static str,
    pub(crate) path: &'a Path,
}

/// Refuses an output that is an input or another output, a folder, or that cannot be written. What is there stays as it is.
pub(crate) fn check(inputs: &[Named<'_>], outputs: &[Named<'_>]) -> anyhow::Result<()> {
    for (index, output) in outputs.iter().enumerate() {
        let same = |other: &&Named<'_>| is_same(output.path, other.path);
        let (option, path) = (output.option, output.path.display());
        if let Some(input) = inputs.iter().find(same) {
            bail!(
                "{option} {path} would overwrite what {} reads; give it another name",
                input.option
            );
        }
        if let Some(other) = outputs[..index].iter().find(same) {
            bail!(
                "{option} {path} and {} {} are the same file; give each its own name",
                other.option,
                other.path.display()
            );
        }
        if output.path.is_dir() {
            bail!("{option} {path} is a folder; give the name of a file in it");
        }
    }
    outputs
        .iter()
        .try_for_each(|output| check_writable(output.path))
}

/// Whether two paths lead to the same file, there or not there yet. What is no regular file (`/dev/null`, a pipe) takes
/// several writers.
pub(crate) fn is_same(a: &Path, b: &Path) -> bool {
    match (std::fs::metadata(a), std::fs::metadata(b)) {
        (Ok(a_meta), Ok(b_meta)) => {
            let plain = |meta: &std::fs::Metadata| meta.is_file() || meta.is_dir();
            plain(&a_meta) && plain(&b_meta) && is_same_inode((a, &a_meta), (b, &b_meta))
        }
        (Err(_), Err(_)) => resolved(a) == resolved(b),
        _ => false,
    }
}

#[cfg(unix)]
fn is_same_inode(a: (&Path, &std::fs::Metadata), b: (&Path, &std::fs::Metadata)) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.1.dev(), a.1.ino()) == (b.1.dev(), b.1.ino())
}

#[cfg(not(unix))]
fn is_same_inode(a: (&Path, &std::fs::Metadata), b: (&Path, &std::fs::Metadata)) -> bool {
    resolved(a.0) == resolved(b.0)
}

/// The path without links and `..`, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let target = std::fs::read_link(path).map(|target| parent(path).join(target));
    let path = target.as_deref().unwrap_or(path);
    match (parent(path).canonicalize(), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Says so before the work if a file cannot be written.
fn check_writable(path: &Path) -> anyhow::Result<()> {
    let folder = parent(path);
    if !folder.is_dir() {
        bail!(
            "{}: there is no folder {}; make it first",
            failed(path),
            folder.display()
        );
    }
    match std::fs::metadata(path) {
        // Opening a pipe would wait for its reader.
        Ok(meta) if !meta.is_file() => Ok(()),
        Ok(_) => OpenOptions::new()
            .append(true)
            .open(path)
            .map(drop)
            .with_context(|| failed(path)),
        Err(_) => {
            create(path)?;
            std::fs::remove_file(path).with_context(|| failed(path))
        }
    }
}

/// Opens a file to be written anew.
pub(crate) fn create(path: &Path) -> anyhow::Result<File> {
    File::create(path).with_context(|| failed(path))
}

/// What to say where writing a file fails.
pub(crate) fn failed(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_file_is_found_under_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("sub")).unwrap();
        std::fs::write(at("a"), "").unwrap();
        std::fs::write(at("b"), "").unwrap();
        std::fs::hard_link(at("a"), at("hard")).unwrap();
        assert!(is_same(&at("a"), &at("sub/../a")));
        assert!(is_same(&at("a"), &at("hard")));
        assert!(!is_same(&at("a"), &at("b")));
        // Not there yet.
        assert!(is_same(&at("new"), &at("sub/.././new")));
        assert!(!is_same(&at("new"), &at("sub/new")));
        assert!(!is_same(&at("new"), &at("a")));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(at("a"), at("soft")).unwrap();
            std::os::unix::fs::symlink(at("new"), at("dangling")).unwrap();
            assert!(is_same(&at("a"), &at("soft")));
            assert!(is_same(&at("new"), &at("dangling")));
            assert!(!is_same(Path::new("/dev/null"), Path::new("/dev/null")));
        }
    }

    #[test]
    fn what_cannot_be_written_is_refused_and_nothing_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("input"), "text").unwrap();
        let (input, other) = (at("input"), at("./input"));
        let named = |option, path| Named { option, path };
        let error = check(&[named("--input", &input)], &[named("--trace", &other)]).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("would overwrite what --input reads")
        );
        let error = check(&[], &[named("--trace", folder.path())]).unwrap_err();
        assert!(error.to_string().contains("is a folder"));
        let missing = at("no such/t");
        let error = check(&[], &[named("--trace", &missing)]).unwrap_err();
        assert!(error.to_string().contains("there is no folder"));
        let (new, same) = (at("new"), at("./new"));
        let error = check(&[], &[named("--trace", &new), named("--audit", &same)]).unwrap_err();
        assert!(error.to_string().contains("are the same file"));
        check(&[], &[named("--trace", &new)]).unwrap();
        assert!(!new.exists());
        assert_eq!(std::fs::read_to_string(&input).unwrap(), "text");
    }
}
