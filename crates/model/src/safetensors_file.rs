//! A safetensors file. It is read and not mapped: pages of a map stay in memory beside what was made of them.

use crate::error::{ModelError, Result};
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
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

    /// Type, shape and place of a tensor.
    pub(crate) fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.header.info(name)
    }

    /// Numbers of a tensor of type f64, f32, f16 or bf16; `range` lies in it.
    ///
    /// # Errors
    /// A file that can no longer be read.
    pub(crate) fn values(&self, info: &TensorInfo, range: Range<usize>) -> Result<Vec<f32>> {
        let width = info.dtype.bitsize() / 8;
        let mut bytes = vec![0; range.len() * width];
        let at = info.data_offsets.0 + range.start * width;
        read_at(&self.file, &self.path, self.data + at as u64, &mut bytes)?;
        let halves = || -> Vec<u16> {
            let pairs = bytes.as_chunks().0.iter();
            pairs.map(|pair| u16::from_le_bytes(*pair)).collect()
        };
        let (fours, eights) = (bytes.as_chunks().0, bytes.as_chunks().0);
        Ok(match info.dtype {
            Dtype::BF16 => halves().reinterpret_into::<bf16>().to_f32_vec(),
            Dtype::F16 => halves().reinterpret_into::<f16>().to_f32_vec(),
            Dtype::F64 => eights
                .iter()
                .map(|x| f64::from_le_bytes(*x) as f32)
                .collect(),
            _ => fours.iter().map(|x| f32::from_le_bytes(*x)).collect(),
        })
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
