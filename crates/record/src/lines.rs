//! JSON lines that are only ever appended to, and that survive being cut off.

use crate::error::{RecordError, Result};
use crate::record::VERSION;
use flate2::read::MultiGzDecoder;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// What was wrong with a file of lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Damage {
    /// Lines that are nothing we know, counted from 1.
    pub(crate) broken: Vec<usize>,
    /// The last line was cut off.
    pub(crate) torn: bool,
}

impl Damage {
    /// What a user is told; a torn line costs nothing that was finished.
    pub(crate) fn warning(&self, path: &Path) -> Option<String> {
        let lines: Vec<String> = self
            .broken
            .iter()
            .take(5)
            .map(ToString::to_string)
            .collect();
        let more = match self.broken.len() {
            0..=5 => String::new(),
            n => format!(" and {} more", n - 5),
        };
        (!lines.is_empty()).then(|| {
            format!(
                "{}: line {}{more} cannot be read and is left out; what it held is run again",
                path.display(),
                lines.join(", ")
            )
        })
    }
}

/// Reads every line of `path`, or of `path.gz` where only that is there; a file that is not there has no lines.
///
/// A line that was cut off at the end is left out, one that is broken in the middle (or was overwritten by zero bytes
/// when power was lost) is counted in [`Damage`]. A line with a format version that is newer than this program is an error.
///
/// # Errors
/// A file that cannot be read, or that another version wrote.
pub(crate) fn read<T: DeserializeOwned>(path: &Path, mut each: impl FnMut(T)) -> Result<Damage> {
    let mut damage = Damage::default();
    let Some(mut reader) = open(path)? else {
        return Ok(damage);
    };
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let failed = RecordError::read(path);
        if reader.read_until(b'\n', &mut line).map_err(failed)? == 0 {
            break;
        }
        let whole = line.last() == Some(&b'\n');
        let zeros = line.iter().take_while(|&&byte| byte == 0).count();
        let text = line[zeros..].trim_ascii();
        if text.is_empty() {
            continue;
        }
        match serde_json::from_slice(text) {
            // A line that lacks nothing but its end is whole: no beginning of a JSON object is one.
            Ok(value) => each(value),
            Err(_) => {
                check_version(path, number, text)?;
                match whole {
                    true => damage.broken.push(number),
                    false => damage.torn = true,
                }
            }
        }
    }
    Ok(damage)
}

/// Values as JSON, a line each.
pub(crate) fn bytes<T: Serialize>(values: &[T]) -> std::io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    for value in values {
        serde_json::to_writer(&mut lines, value)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

pub(crate) fn compressed(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".gz");
    name.into()
}

fn open(path: &Path) -> Result<Option<Box<dyn BufRead>>> {
    let packed = compressed(path);
    let reader: Box<dyn Read> = match File::open(path) {
        Ok(file) => Box::new(file),
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(RecordError::read(path)(error));
        }
        Err(_) => match File::open(&packed) {
            Ok(file) => Box::new(MultiGzDecoder::new(file)),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(RecordError::read(&packed)(error)),
        },
    };
    Ok(Some(Box::new(BufReader::with_capacity(1 << 16, reader))))
}

/// Tells a line of another version from one that is broken.
fn check_version(path: &Path, number: usize, text: &[u8]) -> Result<()> {
    let Ok(serde_json::Value::Object(object)) = serde_json::from_slice(text) else {
        return Ok(());
    };
    // Records had no version before version 4.
    if object.contains_key("executed") && !object.contains_key("version") {
        return Err(RecordError::Older {
            path: path.to_path_buf(),
        });
    }
    check_number(path, Some(number), object.get("version"))
}

/// Refuses the `version` of another format.
pub(crate) fn check_number(
    path: &Path,
    line: Option<usize>,
    version: Option<&serde_json::Value>,
) -> Result<()> {
    match version.and_then(serde_json::Value::as_u64) {
        Some(found) if found > u64::from(VERSION) => Err(RecordError::Newer {
            path: match line {
                Some(line) => PathBuf::from(format!("{}: line {line}", path.display())),
                None => path.to_path_buf(),
            },
            found,
            known: VERSION,
        }),
        _ => Ok(()),
    }
}

/// A file of JSON lines, open for appending.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    /// Length of the whole lines.
    len: u64,
}

impl Log {
    /// Opens or creates a file, cutting off an unfinished last line; gives what it holds, with a warning for each part that
    /// cannot be read.
    ///
    /// # Errors
    /// A file that cannot be read or written, or that another version wrote.
    pub fn open<T: DeserializeOwned>(
        path: &Path,
        each: impl FnMut(T),
    ) -> std::result::Result<(Self, Option<String>), RecordError> {
        let damage = read(path, each)?;
        let failed = || RecordError::write(path);
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(failed())?;
        let mut len = file.metadata().map_err(failed())?.len();
        if damage.torn {
            len = last_line_start(&mut file, len).map_err(failed())?;
            file.set_len(len).map_err(failed())?;
        } else if ends_without_newline(&mut file, len).map_err(failed())? {
            file.write_all(b"\n").map_err(failed())?;
            len += 1;
        }
        let log = Self {
            path: path.to_path_buf(),
            file,
            len,
        };
        Ok((log, damage.warning(path)))
    }

    /// Reads a file that another process may be appending to; lines that cannot be read are left out.
    ///
    /// # Errors
    /// A file that cannot be read, or that another version wrote.
    pub fn read<T: DeserializeOwned>(
        path: &Path,
        each: impl FnMut(T),
    ) -> std::result::Result<(), RecordError> {
        read(path, each).map(|_| ())
    }

    /// Appends lines and waits until they are on the disk; where that fails, what was written of them is taken back.
    ///
    /// # Errors
    /// A full or missing disk, naming the file.
    pub fn append<T: Serialize>(&mut self, values: &[T]) -> std::result::Result<(), RecordError> {
        let lines = bytes(values).map_err(RecordError::write(&self.path))?;
        let written = self
            .file
            .write_all(&lines)
            .and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => {
                self.len += lines.len() as u64;
                Ok(())
            }
            Err(error) => {
                // A half line would be cut off at the next opening all the same.
                let _ = self.file.set_len(self.len);
                Err(RecordError::write(&self.path)(error))
            }
        }
    }
}

fn ends_without_newline(file: &mut File, len: u64) -> std::io::Result<bool> {
    Ok(len > 0 && read_at(file, len - 1, 1)? != b"\n")
}

/// Where the last line starts, looking backwards.
fn last_line_start(file: &mut File, len: u64) -> std::io::Result<u64> {
    const STEP: u64 = 1 << 16;
    let mut end = len;
    while end > 0 {
        let start = end.saturating_sub(STEP);
        let bytes = read_at(file, start, end - start)?;
        if let Some(at) = bytes.iter().rposition(|&byte| byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

fn read_at(file: &mut File, start: u64, len: u64) -> std::io::Result<Vec<u8>> {
    use std::io::{Seek, SeekFrom};
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(len).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Line {
        id: usize,
        text: String,
    }

    fn lines(path: &Path) -> (Vec<Line>, Damage) {
        let mut found = Vec::new();
        let damage = read(path, |line| found.push(line)).unwrap();
        (found, damage)
    }

    fn line(id: usize) -> Line {
        Line {
            id,
            text: "Größe 中文 🚀 \"quoted\"\n".to_owned(),
        }
    }

    proptest! {
        /// A file that is cut at any byte, inside a character too, and perhaps filled up with zero bytes as after a power
        /// loss, gives its whole lines; what is appended then is read too.
        #[test]
        fn a_cut_at_any_byte_costs_the_cut_line_alone(count in 1..5usize, cut in 0.0..1.0f64, zeros in 0..3usize) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("lines.jsonl");
            let all: Vec<Line> = (0..count).map(line).collect();
            Log::open::<Line>(&path, |_| ()).unwrap().0.append(&all).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            let cut = (cut * bytes.len() as f64) as usize;
            let mut left = bytes[..cut].to_vec();
            left.extend(std::iter::repeat_n(0, 7 * zeros));
            std::fs::write(&path, left).unwrap();

            let mut found = Vec::new();
            let (mut log, warning) = Log::open(&path, |line: Line| found.push(line)).unwrap();
            // A line that has lost its line feed alone may be kept.
            let whole = bytes[..cut].iter().filter(|&&byte| byte == b'\n').count();
            prop_assert!(found.len() == whole || found.len() == whole + 1);
            prop_assert_eq!(&found[..], &all[..found.len()]);
            prop_assert_eq!(warning, None);
            log.append(&[line(99)]).unwrap();
            let (again, damage) = lines(&path);
            prop_assert_eq!(again.last(), Some(&line(99)));
            prop_assert_eq!(again.len(), found.len() + 1);
            prop_assert!(damage.broken.is_empty());
        }
    }

    #[test]
    fn a_broken_line_in_the_middle_costs_that_line_and_is_said() {
        for broken in [
            &b"{\"id\": 1, \"te"[..],
            b"\0",
            b"{\"id\": 1, \"text\": \"\xff\"}",
            b"[]",
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("lines.jsonl");
            let mut bytes = serde_json::to_vec(&line(0)).unwrap();
            bytes.push(b'\n');
            bytes.extend(broken);
            bytes.push(b'\n');
            bytes.extend(serde_json::to_vec(&line(2)).unwrap());
            bytes.push(b'\n');
            std::fs::write(&path, &bytes).unwrap();
            let (found, damage) = lines(&path);
            assert_eq!(found, [line(0), line(2)]);
            // Zero bytes alone held nothing.
            let expected: &[usize] = if broken == b"\0" { &[] } else { &[2] };
            assert_eq!(damage.broken, expected);
        }
    }

    #[test]
    fn zero_bytes_in_front_of_a_line_do_not_cost_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines.jsonl");
        let mut bytes = vec![0; 5];
        bytes.extend(serde_json::to_vec(&line(1)).unwrap());
        bytes.push(b'\n');
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(lines(&path), (vec![line(1)], Damage::default()));
    }

    #[test]
    fn a_newer_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines.jsonl");
        std::fs::write(&path, "{\"version\": 99, \"new\": 1}\n").unwrap();
        let error = read::<Line>(&path, |_| ()).unwrap_err().to_string();
        assert!(error.contains("line 1 has format version 99"), "{error}");
    }

    #[test]
    fn a_compressed_file_is_read_where_the_plain_one_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines.jsonl");
        let file = File::create(compressed(&path)).unwrap();
        let mut packed = flate2::write::GzEncoder::new(file, flate2::Compression::default());
        serde_json::to_writer(&mut packed, &line(3)).unwrap();
        packed.write_all(b"\n").unwrap();
        packed.finish().unwrap();
        assert_eq!(lines(&path).0, [line(3)]);
    }
}
