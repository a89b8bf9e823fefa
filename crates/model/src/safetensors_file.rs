//! A safetensors file. It is read and not mapped: pages of a map stay in memory beside what was made of them.

use crate::error::{ModelError, Result};
use crate::shape::Made;
use crate::stored::Stored;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// An open file whose header has been checked against its size.
pub(crate) struct SafetensorsFile {
    path: PathBuf,
    file: Mutex<File>,
    header: Metadata,
    /// Where the header ends.
    data: u64,
}

impl SafetensorsFile {
    /// Opens a file. A truncated download is the commonest damage; the header knows how long the file must be.
    ///
    /// # Errors
    /// A file that cannot be read, or is damaged.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let damaged = |message: String| ModelError::Damaged {
            path: path.to_path_buf(),
            message,
        };
        let read = |source| ModelError::Read {
            path: path.to_path_buf(),
            source,
        };
        let mut file = File::open(path).map_err(read)?;
        let found = file.metadata().map_err(read)?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length)
            .map_err(|_| damaged(format!("{found} bytes, shorter than its own header")))?;
        let header_len = u64::from_le_bytes(length);
        if header_len > found.saturating_sub(8) {
            return Err(damaged(format!(
                "the header claims {header_len} bytes, the file has {found}"
            )));
        }
        let mut header = vec![0; header_len as usize];
        file.read_exact(&mut header).map_err(read)?;
        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|error| damaged(format!("the header cannot be used: {error}")))?;
        let data = 8 + header_len;
        let expected = data.saturating_add(header.data_len() as u64);
        if found != expected {
            let truncated = if found < expected { "truncated: " } else { "" };
            return Err(damaged(format!(
                "{truncated}{found} bytes, where its header calls for {expected}"
            )));
        }
        Ok(Self {
            path: path.to_path_buf(),
            file: Mutex::new(file),
            header,
            data,
        })
    }

    /// Names of its tensors.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.header.tensors().into_keys().collect();
        names.sort();
        names
    }

    /// Whether there is a tensor `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.header.info(name).is_some()
    }

    /// Shape of the tensor `name`, and where its numbers lie.
    ///
    /// # Errors
    /// The name of an element type that holds no plain numbers.
    pub(crate) fn find(
        &self,
        name: &str,
    ) -> Option<(&[usize], std::result::Result<Place<'_>, String>)> {
        let info = self.header.info(name)?;
        let stored = match info.dtype {
            Dtype::F64 => Ok(Stored::F64),
            Dtype::F32 => Ok(Stored::F32),
            Dtype::F16 => Ok(Stored::F16),
            Dtype::BF16 => Ok(Stored::Bf16),
            other => Err(format!("{other:?}")),
        };
        let place = stored.map(|stored| Place {
            origin: Origin::File {
                file: &self.file,
                path: &self.path,
                at: self.data + info.data_offsets.0 as u64,
            },
            stored,
        });
        Some((&info.shape, place))
    }
}

/// Where the numbers of a tensor lie.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) origin: Origin<'a>,
    pub(crate) stored: Stored,
}

/// Where the bytes of a tensor come from.
#[derive(Clone, Copy)]
pub(crate) enum Origin<'a> {
    File {
        file: &'a Mutex<File>,
        path: &'a Path,
        /// Byte of the file at which they begin.
        at: u64,
    },
    /// They are made as they are asked for.
    Made(Made),
}

impl Place<'_> {
    /// Bytes of the tensor, from byte `from` of it on.
    ///
    /// # Errors
    /// A file that can no longer be read.
    pub(crate) fn read(&self, from: usize, bytes: &mut [u8]) -> Result<()> {
        match self.origin {
            Origin::File { file, path, at } => read_at(file, path, at + from as u64, bytes),
            Origin::Made(made) => {
                made.fill(from, bytes);
                Ok(())
            }
        }
    }
}

/// Reads bytes of an open file at a place.
///
/// # Errors
/// What the operating system says, or a file that ends before.
pub(crate) fn read_at(file: &Mutex<File>, path: &Path, at: u64, bytes: &mut [u8]) -> Result<()> {
    let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
    file.seek(SeekFrom::Start(at))
        .and_then(|_| file.read_exact(bytes))
        .map_err(|source| ModelError::Read {
            path: path.to_path_buf(),
            source,
        })
}
