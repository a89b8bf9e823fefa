//! GGUF, llama.cpp's file of one model, presented as the Hugging Face folder that it was made from: its metadata as a
//! `config.json` ([`config`]), its tensors under Hugging Face's names and in Hugging Face's layout ([`names`]), its
//! tokenizer as one of the `tokenizers` library ([`tokens`]).

mod config;
mod header;
mod names;
mod pre;
mod sentencepiece;
mod tokens;
mod types;

use crate::error::{ModelError, Result};
use crate::safetensors_file::{Origin, Place, read_at};
use header::{Array, Header, Kind, TensorInfo, Value};
use names::{Architecture, Layout};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

pub(crate) use names::Order;
pub(crate) use sentencepiece::PieceTokenizer;
pub(crate) use tokens::{special_tokens, tokenizer};

/// An open GGUF file whose header has been checked.
pub(crate) struct Gguf {
    path: PathBuf,
    file: Mutex<File>,
    header: Header,
    architecture: Architecture,
}

/// Whether a path names a GGUF file: by its name, or by its first bytes if it is a file.
pub(crate) fn is_gguf(path: &Path) -> bool {
    if path
        .extension()
        .is_some_and(|end| end.eq_ignore_ascii_case("gguf"))
    {
        return !path.is_dir();
    }
    let mut magic = [0; 4];
    path.is_file()
        && File::open(path).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok())
        && magic == *b"GGUF"
}

impl Gguf {
    /// Opens a file and checks its header against its size.
    ///
    /// # Errors
    /// A file that cannot be read, is damaged, or holds a model or an element type that is not supported.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let read = |source| ModelError::Read {
            path: path.to_path_buf(),
            source,
        };
        let mut file = File::open(path).map_err(read)?;
        let end = file.metadata().map_err(read)?.len();
        let wrong = |message: String| ModelError::Gguf {
            path: path.to_path_buf(),
            message,
        };
        let header = Header::read(&mut file, end).map_err(wrong)?;
        if let Some(Value::Unsigned(parts @ 2..)) = header.metadata.get("split.count") {
            return Err(wrong(format!(
                "it is one of {parts} parts; join them with `llama-gguf-split --merge`"
            )));
        }
        let architecture = match header.metadata.get("general.architecture") {
            Some(Value::Text(name)) => Architecture::of(name).ok_or_else(|| {
                wrong(format!(
                    "`general.architecture` is `{name}`, which is not supported; {} are",
                    Architecture::names()
                ))
            })?,
            _ => return Err(wrong("`general.architecture` is missing".to_owned())),
        };
        Ok(Self {
            path: path.to_path_buf(),
            file: Mutex::new(file),
            header,
            architecture,
        })
    }

    /// What `config.json` would say.
    ///
    /// # Errors
    /// A key that is missing or of the wrong kind.
    pub(crate) fn config(&self) -> Result<serde_json::Value> {
        config::of(self)
    }

    pub(crate) fn error(&self, message: impl Into<String>) -> ModelError {
        ModelError::Gguf {
            path: self.path.clone(),
            message: message.into(),
        }
    }

    /// Whether it has what Hugging Face calls `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The shape of what Hugging Face calls `name`.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.find(name).map(|(info, _)| info.shape.as_slice())
    }

    fn find(&self, name: &str) -> Option<(&TensorInfo, Layout)> {
        let (own, layout) = self.architecture.find(name)?;
        Some((self.header.tensors.get(&own)?, layout))
    }

    /// Where the numbers of what Hugging Face calls `name` lie, and in which order; what each has to have added to it to be
    /// Hugging Face's.
    ///
    /// # Errors
    /// Rows that do not divide into heads.
    pub(crate) fn place(&self, name: &str) -> Result<Option<(Place<'_>, Order, f32)>> {
        let Some((info, layout)) = self.find(name) else {
            return Ok(None);
        };
        let order = layout
            .order(self, info.shape.first().copied().unwrap_or(0))
            .map_err(|message| self.error(format!("tensor `{name}`: {message}")))?;
        Ok(Some((self.lies(info), order, layout.add())))
    }

    fn lies(&self, info: &TensorInfo) -> Place<'_> {
        Place {
            origin: Origin::File {
                file: &self.file,
                path: &self.path,
                at: info.at,
            },
            stored: info.blocks.stored(),
        }
    }

    /// The values of a tensor under its own name, as they are.
    fn own_tensor(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(info) = self.header.tensors.get(name) else {
            return Ok(None);
        };
        let place = self.lies(info);
        let mut bytes = vec![0; place.stored.bytes(info.elements().unwrap_or(0))];
        place.read(0, &mut bytes)?;
        place.stored.widen(&bytes).map(Some)
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        read_at(&self.file, &self.path, at, bytes)
    }

    /// The value under `key` with the name of the architecture in front.
    fn own(&self, key: &str) -> Option<&Value> {
        self.get(&self.architecture.key(key))
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.header.metadata.get(key)
    }

    fn wrong_kind(&self, key: &str, wanted: &str) -> ModelError {
        self.error(format!("`{key}` is not {wanted}"))
    }

    fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong_kind(key, "true or false")),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(value)) => Ok(Some(value)),
            Some(_) => Err(self.wrong_kind(key, "a text")),
        }
    }

    fn id(&self, key: &str) -> Result<Option<u32>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(id)) => u32::try_from(*id)
                .map(Some)
                .map_err(|_| self.wrong_kind(key, "a token's id")),
            // Some converters write -1 for no such token.
            Some(Value::Signed(id)) => Ok(u32::try_from(*id).ok()),
            Some(_) => Err(self.wrong_kind(key, "a token's id")),
        }
    }

    fn array(&self, key: &str) -> Result<Option<Array>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(*array)),
            Some(_) => Err(self.wrong_kind(key, "an array")),
        }
    }

    /// The bytes of the elements of an array: the header has been walked over them.
    fn array_bytes(&self, array: Array, bytes: u64) -> Result<Vec<u8>> {
        let mut found = vec![0; bytes as usize];
        self.read(array.at, &mut found)?;
        Ok(found)
    }

    /// Numbers of any kind.
    fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let Some(array) = self.array(key)? else {
            return Ok(None);
        };
        let Some(width) = array.kind.width() else {
            return Err(self.wrong_kind(key, "an array of numbers"));
        };
        let bytes = self.array_bytes(array, array.len * width)?;
        let number = |bytes: &[u8]| match array.kind.value(bytes)? {
            Value::Unsigned(value) => Some(value as f64),
            Value::Signed(value) => Some(value as f64),
            Value::Float(value) => Some(value),
            Value::Bool(value) => Some(f64::from(u8::from(value))),
            Value::Text(_) | Value::Array(_) => None,
        };
        Ok(bytes.chunks_exact(width as usize).map(number).collect())
    }

    /// An array of texts; what is not UTF-8 in them reads as U+FFFD.
    fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(array) = self.array(key)? else {
            return Ok(None);
        };
        if array.kind != Kind::Text {
            return Err(self.wrong_kind(key, "an array of texts"));
        }
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |source| ModelError::Read {
            path: self.path.clone(),
            source,
        };
        file.seek(SeekFrom::Start(array.at)).map_err(failed)?;
        let mut reader = std::io::BufReader::with_capacity(1 << 18, &mut *file);
        let mut texts = Vec::new();
        for _ in 0..array.len {
            let mut len = [0; 8];
            reader.read_exact(&mut len).map_err(failed)?;
            let mut bytes = Vec::new();
            // Read by what is there: the file may have been changed since its header was checked.
            let mut text = reader.by_ref().take(u64::from_le_bytes(len));
            text.read_to_end(&mut bytes).map_err(failed)?;
            texts.push(match String::from_utf8(bytes) {
                Ok(text) => text,
                Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
            });
        }
        Ok(Some(texts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// What `scripts/fixtures/make_gguf_fixtures.py` writes.
    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/gguf")
            .join(name)
    }

    #[test]
    fn every_type_is_unpacked_as_the_gguf_package_does() {
        let expected = std::fs::read_to_string(fixture("blocks.json")).unwrap();
        let expected: BTreeMap<String, Vec<f32>> = serde_json::from_str(&expected).unwrap();
        assert_eq!(expected.len(), 13);
        let gguf = Gguf::open(&fixture("blocks.gguf")).unwrap();
        for (kind, expected) in expected {
            let values = gguf.own_tensor(&format!("{kind}.weight")).unwrap().unwrap();
            assert_eq!(values.len(), 1024, "{kind}");
            let found = values.iter().step_by(37);
            for (index, (found, expected)) in found.zip(&expected).enumerate() {
                assert!(
                    (found - expected).abs() <= 1e-5 * expected.abs().max(1e-3),
                    "{kind}: value {} is {found}, expected {expected}",
                    37 * index
                );
            }
        }
    }
}
