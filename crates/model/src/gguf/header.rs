//! The header of a GGUF file: metadata and where each tensor lies.
//!
//! Every length is held against what is left of the file before anything is allocated or skipped, so that a damaged or
//! hostile file costs no more memory than it has bytes. Arrays stay in the file until they are asked for.
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use super::types::BlockType;
use std::collections::{BTreeMap, HashMap};
use std::io::{BufReader, Read, Seek, SeekFrom};

/// What a file may have of each; a model has a few dozen entries and a few thousand tensors.
const MOST_ENTRIES: u64 = 1 << 16;
/// `GGML_MAX_DIMS`.
const MOST_DIMENSIONS: u32 = 4;
/// Arrays in arrays are legal, and no model has them.
const MOST_NESTED: usize = 4;
/// Where tensors begin at multiples of, if `general.alignment` does not say.
const ALIGNMENT: u64 = 32;
/// Key, kind and one byte of value.
const LEAST_ENTRY_BYTES: u64 = 8 + 4 + 1;
/// Name, one dimension, type and offset.
const LEAST_TENSOR_BYTES: u64 = 8 + 4 + 8 + 4 + 8;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Array(Array),
}

/// An array that is still in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Array {
    pub(crate) kind: Kind,
    pub(crate) len: u64,
    /// Byte of the file at which the elements begin.
    pub(crate) at: u64,
}

/// The kind of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    fn of(code: u32) -> Option<Self> {
        use Kind::{Array, Bool, F32, F64, I8, I16, I32, I64, Text, U8, U16, U32, U64};
        let kinds = [
            U8, I8, U16, I16, U32, I32, F32, Bool, Text, Array, U64, I64, F64,
        ];
        kinds.get(code as usize).copied()
    }

    /// Bytes of a value, where all values of the kind have as many.
    pub(crate) fn width(self) -> Option<u64> {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => Some(1),
            Kind::U16 | Kind::I16 => Some(2),
            Kind::U32 | Kind::I32 | Kind::F32 => Some(4),
            Kind::U64 | Kind::I64 | Kind::F64 => Some(8),
            Kind::Text | Kind::Array => None,
        }
    }

    /// The fewest bytes that a value can have.
    fn least(self) -> u64 {
        self.width().unwrap_or(match self {
            Kind::Array => 12,
            _ => 8,
        })
    }

    /// A value of a fixed width from its little-endian bytes.
    pub(crate) fn value(self, bytes: &[u8]) -> Option<Value> {
        let mut wide = [0; 8];
        wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
        let bits = u64::from_le_bytes(wide);
        Some(match self {
            Kind::U8 | Kind::U16 | Kind::U32 | Kind::U64 => Value::Unsigned(bits),
            Kind::I8 => Value::Signed(i64::from(bits as u8 as i8)),
            Kind::I16 => Value::Signed(i64::from(bits as u16 as i16)),
            Kind::I32 => Value::Signed(i64::from(bits as u32 as i32)),
            Kind::I64 => Value::Signed(bits as i64),
            Kind::F32 => Value::Float(shortest(f32::from_bits(bits as u32))),
            Kind::F64 => Value::Float(f64::from_bits(bits)),
            Kind::Bool => Value::Bool(bits != 0),
            Kind::Text | Kind::Array => return None,
        })
    }
}

/// The number that was meant: 1e-5 was written as the f32 next to it, and reads as `9.99999974e-6` in f64.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorInfo {
    pub(crate) blocks: BlockType,
    /// Outermost dimension first, as in Hugging Face's files.
    pub(crate) shape: Vec<usize>,
    /// Byte of the file at which it begins.
    pub(crate) at: u64,
}

/// Everything before the tensors.
#[derive(Debug, Default)]
pub(crate) struct Header {
    pub(crate) metadata: BTreeMap<String, Value>,
    pub(crate) tensors: HashMap<String, TensorInfo>,
}

type Checked<T> = std::result::Result<T, String>;

/// A reader that knows how much is left.
struct Cursor<R> {
    reader: BufReader<R>,
    at: u64,
    end: u64,
}

impl<R: Read + Seek> Cursor<R> {
    fn left(&self) -> u64 {
        self.end - self.at
    }

    fn need(&self, bytes: u64, what: &str) -> Checked<()> {
        match bytes <= self.left() {
            true => Ok(()),
            false => Err(format!(
                "{what} at byte {} would take {bytes} bytes, and the file ends after {} more; it was cut off",
                self.at,
                self.left()
            )),
        }
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Checked<[u8; N]> {
        self.need(N as u64, what)?;
        let mut bytes = [0; N];
        let read = self.reader.read_exact(&mut bytes);
        read.map_err(|error| format!("{what} at byte {}: {error}", self.at))?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Checked<u32> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Checked<u64> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    fn text(&mut self, what: &str) -> Checked<String> {
        let len = self.u64(what)?;
        self.need(len, what)?;
        let mut bytes = vec![0; len as usize];
        let read = self.reader.read_exact(&mut bytes);
        read.map_err(|error| format!("{what} at byte {}: {error}", self.at))?;
        self.at += len;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn skip(&mut self, bytes: u64, what: &str) -> Checked<()> {
        self.need(bytes, what)?;
        let step = i64::try_from(bytes).map_err(|error| error.to_string())?;
        let moved = self.reader.seek_relative(step);
        moved.map_err(|error| format!("{what} at byte {}: {error}", self.at))?;
        self.at += bytes;
        Ok(())
    }

    fn kind(&mut self, what: &str) -> Checked<Kind> {
        let code = self.u32(what)?;
        Kind::of(code).ok_or_else(|| format!("{what} has the unknown kind {code}"))
    }

    fn value(&mut self, key: &str) -> Checked<Value> {
        match self.kind(key)? {
            Kind::Text => self.text(key).map(Value::Text),
            Kind::Array => self.array(key, 0).map(Value::Array),
            kind => {
                let width = kind.width().unwrap_or(0);
                self.need(width, key)?;
                let mut bytes = [0; 8];
                let bytes = &mut bytes[..width as usize];
                let read = self.reader.read_exact(bytes);
                read.map_err(|error| format!("`{key}` at byte {}: {error}", self.at))?;
                self.at += width;
                kind.value(bytes)
                    .ok_or_else(|| format!("`{key}` cannot be read"))
            }
        }
    }

    fn array(&mut self, key: &str, depth: usize) -> Checked<Array> {
        if depth > MOST_NESTED {
            return Err(format!("`{key}` is an array in arrays in arrays"));
        }
        let kind = self.kind(key)?;
        let len = self.u64(key)?;
        let least = len.saturating_mul(kind.least());
        self.need(least, &format!("the array `{key}` of {len} elements"))?;
        let array = Array {
            kind,
            len,
            at: self.at,
        };
        match kind {
            Kind::Text => {
                for _ in 0..len {
                    let bytes = self.u64(key)?;
                    self.skip(bytes, key)?;
                }
            }
            Kind::Array => {
                for _ in 0..len {
                    self.array(key, depth + 1)?;
                }
            }
            _ => self.skip(least, key)?,
        }
        Ok(array)
    }

    /// A number of things of at least `least` bytes each.
    fn count(&mut self, what: &str, least: u64) -> Checked<u64> {
        let count = self.u64(what)?;
        if count.saturating_mul(least) > self.left() {
            return Err(format!(
                "it claims {count} {what}, which the {} bytes after that cannot hold",
                self.left()
            ));
        }
        if count > MOST_ENTRIES {
            return Err(format!(
                "it has {count} {what}; no model has more than {MOST_ENTRIES}"
            ));
        }
        Ok(count)
    }

    fn tensor(&mut self, alignment: u64) -> Checked<(String, TensorInfo)> {
        let name = self.text("the name of a tensor")?;
        let dimensions = self.u32(&name)?;
        if dimensions > MOST_DIMENSIONS {
            return Err(format!(
                "tensor `{name}` has {dimensions} dimensions; at most {MOST_DIMENSIONS} are possible"
            ));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64(&name)?;
            let size = usize::try_from(size).ok().filter(|&size| size > 0);
            shape.push(size.ok_or_else(|| format!("tensor `{name}` has an impossible size"))?);
        }
        let code = self.u32(&name)?;
        let blocks = BlockType::of(code).map_err(|kind| {
            format!(
                "tensor `{name}` has the type {kind}, which is not read; {} are",
                BlockType::names()
            )
        })?;
        let row = shape.first().copied().unwrap_or(1);
        if !row.is_multiple_of(blocks.elements()) {
            return Err(format!(
                "tensor `{name}` has rows of {row} values, which are no whole number of {} blocks of {}",
                blocks.name(),
                blocks.elements()
            ));
        }
        let offset = self.u64(&name)?;
        if !offset.is_multiple_of(alignment) {
            return Err(format!(
                "tensor `{name}` lies at offset {offset}, which is no multiple of {alignment}"
            ));
        }
        shape.reverse();
        let info = TensorInfo {
            blocks,
            shape,
            at: offset,
        };
        Ok((name, info))
    }
}

impl Header {
    /// Reads and checks the header of a file of `end` bytes.
    pub(crate) fn read<R: Read + Seek>(mut reader: R, end: u64) -> Checked<Self> {
        reader
            .seek(SeekFrom::Start(0))
            .map_err(|error| error.to_string())?;
        let mut cursor = Cursor {
            reader: BufReader::with_capacity(1 << 18, reader),
            at: 0,
            end,
        };
        let magic: [u8; 4] = cursor.bytes("the first four bytes")?;
        if magic != *b"GGUF" {
            return Err(format!(
                "it begins with {:?} and not with \"GGUF\"",
                String::from_utf8_lossy(&magic)
            ));
        }
        match cursor.u32("the version")? {
            2 | 3 => {}
            version if version.swap_bytes() <= 3 => {
                return Err("it is big-endian; convert it again without `--bigendian`".to_owned());
            }
            version => {
                return Err(format!(
                    "it has version {version} of the format; 2 and 3 are read, so convert it again with a llama.cpp of today"
                ));
            }
        }
        let tensors = cursor.count("tensors", LEAST_TENSOR_BYTES)?;
        let entries = cursor.count("metadata entries", LEAST_ENTRY_BYTES)?;
        let mut header = Self::default();
        for _ in 0..entries {
            let key = cursor.text("the key of a metadata entry")?;
            let value = cursor.value(&key)?;
            if header.metadata.insert(key.clone(), value).is_some() {
                return Err(format!("it has the metadata entry `{key}` twice"));
            }
        }
        let alignment = match header.metadata.get("general.alignment") {
            None => ALIGNMENT,
            Some(Value::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 20 => *n,
            Some(other) => {
                return Err(format!(
                    "`general.alignment` is {other:?}, which is no power of two"
                ));
            }
        };
        for _ in 0..tensors {
            let (name, info) = cursor.tensor(alignment)?;
            if header.tensors.insert(name.clone(), info).is_some() {
                return Err(format!("it has the tensor `{name}` twice"));
            }
        }
        let data = cursor.at.next_multiple_of(alignment);
        for (name, info) in &mut header.tensors {
            let bytes = info
                .bytes()
                .ok_or_else(|| format!("tensor `{name}` is larger than any memory"))?;
            info.at = info.at.saturating_add(data);
            let last = info.at.saturating_add(bytes);
            if last > end {
                return Err(format!(
                    "tensor `{name}` lies at bytes {} to {last}, and the file has {end}; it was cut off or is damaged",
                    info.at
                ));
            }
        }
        Ok(header)
    }
}

impl TensorInfo {
    /// Number of values.
    pub(crate) fn elements(&self) -> Option<usize> {
        self.shape
            .iter()
            .try_fold(1usize, |product, &size| product.checked_mul(size))
    }

    /// Bytes in the file.
    fn bytes(&self) -> Option<u64> {
        let blocks = self.elements()? / self.blocks.elements();
        (blocks as u64).checked_mul(self.blocks.bytes() as u64)
    }
}
