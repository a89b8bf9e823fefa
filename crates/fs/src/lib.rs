//! Files that are written whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Ends the name of a file that is being written.
const SUFFIX: &str = ".tmp";

/// Writes `bytes` to `path` such that a reader finds the old file or the whole new one, even after a kill or a loss of
/// power: the bytes go to a temporary name in the same folder and are synced, the file is renamed, the folder is synced.
///
/// What stands at `path` and is not a file, such as `/dev/stdout` or a named pipe, is written to as it is.
///
/// # Errors
/// A missing or read-only folder, a full disk. The error names the path; the old file is untouched and the temporary
/// one removed.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let naming = |error| cannot_write(path, &error);
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return fs::write(path, bytes).map_err(naming);
    }
    write_whole_with(path, |temporary| {
        File::create(temporary)
            .and_then(|mut file| file.write_all(bytes))
            .map_err(naming)
    })
}

/// [`write_whole`] for a writer that takes a path: `write` is given the temporary name.
///
/// # Errors
/// Those of [`write_whole`], and those of `write` unchanged.
pub fn write_whole_with<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    Ok(Staged::write(path, write)?.put_in_place()?)
}

/// A whole file under a temporary name, beside the one that it is to replace; removed if it is dropped. Where several
/// files belong together, all are staged before the first is put in place.
#[derive(Debug)]
pub struct Staged {
    temporary: PathBuf,
    path: PathBuf,
}

impl Staged {
    /// Writes and syncs the file for `path`; `write` is given the temporary name.
    ///
    /// # Errors
    /// A missing or read-only folder, a full disk, and those of `write` unchanged.
    pub fn write<E: From<io::Error>>(
        path: &Path,
        write: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Self, E> {
        let staged = Self {
            temporary: temporary(path)?,
            path: path.to_path_buf(),
        };
        let naming = |error| cannot_write(path, &error);
        let ordinary = File::create(&staged.temporary)
            .and_then(|file| file.metadata())
            .map_err(naming)?;
        write(&staged.temporary)?;
        OpenOptions::new()
            .write(true)
            .open(&staged.temporary)
            .and_then(|file| {
                // A writer of safetensors leaves a file that nobody but its owner may read.
                file.set_permissions(ordinary.permissions())?;
                file.sync_all()
            })
            .map_err(naming)?;
        Ok(staged)
    }

    /// Replaces what stands at the path.
    ///
    /// # Errors
    /// A folder that stands there, a file system that fails.
    pub fn put_in_place(self) -> io::Result<()> {
        fs::rename(&self.temporary, &self.path)
            .and_then(|()| sync_folder(&self.path))
            .map_err(|error| cannot_write(&self.path, &error))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Nothing is there once it is in place; and an error before this one is the one to report.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Takes `folder` for this process through the file `.lock` in it; `None` if another process has it. It is let go when
/// the file is dropped, and when the process ends in whatever way.
///
/// # Errors
/// A folder that is missing or cannot be written.
pub fn lock(folder: &Path) -> io::Result<Option<File>> {
    let path = folder.join(".lock");
    let naming = |error| cannot_write(&path, &error);
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&path)
        .map_err(naming)?;
    for attempt in 0..4 {
        if attempt > 0 {
            // Whoever looks whether it is taken lets go at once.
            std::thread::sleep(Duration::from_millis(20));
        }
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(naming(error)),
        }
    }
    Ok(None)
}

/// Whether a process has taken `folder`; `false` too where that cannot be told.
pub fn is_locked(folder: &Path) -> bool {
    let file = File::open(folder.join(".lock"));
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Removes the temporary files that killed processes left in `folder`; gives their number. Call it while no other
/// process writes there.
///
/// # Errors
/// A folder that cannot be read, a file that cannot be removed.
pub fn remove_leftovers(folder: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(folder).map_err(|error| naming("read", folder, &error))? {
        let path = entry?.path();
        if is_temporary(&path) {
            fs::remove_file(&path).map_err(|error| naming("remove", &path, &error))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// `NAME.PID.tmp` beside `path`.
fn temporary(path: &Path) -> io::Result<PathBuf> {
    let Some(name) = path.file_name() else {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "the path names no file");
        return Err(cannot_write(path, &error));
    };
    let mut temporary = OsString::from(name);
    temporary.push(format!(".{}{SUFFIX}", std::process::id()));
    Ok(path.with_file_name(temporary))
}

fn is_temporary(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.strip_suffix(SUFFIX)?.rsplit_once('.'))
        .is_some_and(|(_, process)| process.parse::<u32>().is_ok())
}

/// Makes a rename to `path` survive a loss of power.
#[cfg(unix)]
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    match File::open(folder)?.sync_all() {
        // Some network file systems cannot sync a folder; the file is in place all the same.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

/// Folders cannot be synced here.
#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

fn cannot_write(path: &Path, error: &io::Error) -> io::Error {
    naming("write", path, error)
}

fn naming(what: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("cannot {what} {}: {error}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_written_and_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_whole(&path, b"a long first text").unwrap();
        write_whole(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(names(dir.path()), ["a.json"]);
    }

    #[test]
    fn a_writer_that_fails_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights");
        write_whole(&path, b"old").unwrap();
        let failed = write_whole_with(&path, |temporary| {
            assert_eq!(temporary.parent(), path.parent());
            fs::write(temporary, b"half of the ne")?;
            Err(io::Error::other("the writer's own words"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "the writer's own words");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["weights"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_of_the_writers_own_is_readable_like_any_other() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("weights"), dir.path().join("other"));
        write_whole_with(&path, |temporary| {
            let own = tempfile::NamedTempFile::new_in(dir.path())?;
            own.persist(temporary)
                .map(drop)
                .map_err(|error| error.error)
        })
        .unwrap();
        fs::write(&other, b"").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&other));
    }

    #[test]
    fn an_error_keeps_its_kind_and_names_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing/a.json");
        let error = write_whole(&path, b"").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(
            error.to_string().contains(&path.display().to_string()),
            "{error}"
        );
        let error = write_whole(Path::new("/"), b"").unwrap_err();
        assert!(error.to_string().contains("cannot write /"), "{error}");
    }

    #[test]
    fn a_folder_in_the_way_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::create_dir(&path).unwrap();
        let error = write_whole(&path, b"text").unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
        let renamed = write_whole_with(&path, |temporary| fs::write(temporary, b"text"));
        assert!(renamed.unwrap_err().to_string().contains("taken"));
        assert!(path.is_dir());
        assert_eq!(names(dir.path()), ["taken"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_device_is_written_to_and_not_replaced() {
        let before = fs::metadata("/dev/null").unwrap().file_type();
        write_whole(Path::new("/dev/null"), b"text").unwrap();
        assert_eq!(fs::metadata("/dev/null").unwrap().file_type(), before);
        assert_eq!(
            write_whole(Path::new("/dev/full"), b"text")
                .unwrap_err()
                .kind(),
            io::ErrorKind::StorageFull
        );
    }

    #[test]
    fn files_that_belong_together_are_put_in_place_together_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| dir.path().join(name));
        let stage = |path: &Path, text: &str| {
            Staged::write(path, |temporary| fs::write(temporary, text)).unwrap()
        };
        let staged = paths.each_ref().map(|path| stage(path, "dropped"));
        assert_eq!(names(dir.path()).len(), 2);
        drop(staged);
        assert!(names(dir.path()).is_empty());
        for staged in paths.each_ref().map(|path| stage(path, "placed")) {
            staged.put_in_place().unwrap();
        }
        assert_eq!(names(dir.path()), ["a", "b"]);
    }

    #[test]
    fn a_folder_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        assert!(held.is_some() && lock(dir.path()).unwrap().is_none());
        assert!(is_locked(dir.path()));
        drop(held);
        assert!(!is_locked(dir.path()) && !is_locked(&dir.path().join("missing")));
        assert!(lock(dir.path()).unwrap().is_some());
        let error = lock(&dir.path().join("missing")).unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
    }

    #[test]
    fn leftovers_of_killed_processes_are_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights.safetensors");
        fs::write(temporary(&path).unwrap(), b"half").unwrap();
        for name in ["weights.safetensors", "notes.tmp", "a.b.tmp", "12.txt"] {
            fs::write(dir.path().join(name), b"").unwrap();
        }
        assert_eq!(remove_leftovers(dir.path()).unwrap(), 1);
        assert_eq!(
            names(dir.path()),
            ["12.txt", "a.b.tmp", "notes.tmp", "weights.safetensors"]
        );
    }
}
