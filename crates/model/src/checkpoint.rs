//! A checkpoint: a Hugging Face folder or a GGUF file, and which file holds which tensor.

use crate::blocks::Kind;
use crate::config::ConfigFile;
use crate::element::Element;
use crate::error::{ModelError, Result};
use crate::families::Family;
use crate::form::{Form, WeightType};
use crate::gguf::{self, Gguf, Order};
use crate::lora::{Adapter, LowRank};
use crate::matrix::Matrix;
use crate::memory;
use crate::safetensors_file::{Place, SafetensorsFile};
use crate::scratch::{Pool, Scratch};
use crate::shape::{Made, Shape};
use crate::stored::Stored;
use crate::weights::LayerWeights;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Values that are unpacked at a time: the wide ones stay small beside a tensor, and in the cache of a core.
pub(crate) const CHUNK: usize = 1 << 16;

/// Tensors under Hugging Face's names, read on demand.
pub(crate) struct Checkpoint {
    path: PathBuf,
    weights: Weights,
    keep: WeightType,
    dtype: DType,
    device: Device,
    pool: Pool,
    /// Added to the weights that it adapts, with the family whose names it has.
    adapter: Option<(Adapter, Family)>,
}

enum Weights {
    Safetensors(Vec<SafetensorsFile>),
    Gguf(Gguf),
    /// Of a model that is a shape alone.
    Made,
}

/// Rows of a tensor, in Hugging Face's order, wherever they lie.
pub(crate) struct Source<'a> {
    place: Place<'a>,
    columns: usize,
    order: Order,
    /// To be added to each value.
    add: f32,
    /// To be added to each row.
    low_rank: Option<&'a LowRank>,
}

impl Checkpoint {
    /// `keep`: what matrices are kept in; `dtype` and `device`: of all that is made a tensor.
    pub(crate) fn open(
        model: &Path,
        keep: WeightType,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let weights = match (Shape::of(model)?, gguf::is_gguf(model)) {
            (Some(_), _) => Weights::Made,
            (None, true) => Weights::Gguf(Gguf::open(model)?),
            (None, false) => Weights::open(model)?,
        };
        Ok(Self {
            path: model.to_path_buf(),
            weights,
            keep,
            dtype,
            device: device.clone(),
            pool: Pool::default(),
            adapter: None,
        })
    }

    /// The same with an adapter added to its weights, under the names of `family`.
    pub(crate) fn adapted(self, adapter: Adapter, family: Family) -> Self {
        Self {
            adapter: Some((adapter, family)),
            ..self
        }
    }

    /// Refuses an adapter of what is no matrix of these layers.
    ///
    /// # Errors
    /// It is of another model.
    pub(crate) fn check_adapter(&self, layers: &[LayerWeights]) -> Result<()> {
        let Some((adapter, family)) = &self.adapter else {
            return Ok(());
        };
        let linears = layers.iter().flat_map(LayerWeights::linears);
        let modules: Vec<String> = linears
            .map(|linear| &linear.weight)
            .map(|matrix| matrix.name.strip_suffix(".weight").unwrap_or(&matrix.name))
            .map(|module| family.module_name(module))
            .collect();
        adapter.check(modules.iter().map(String::as_str))
    }

    /// What weights are read and converted in.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        match &self.weights {
            Weights::Safetensors(files) => files.iter().any(|file| file.has(name)),
            Weights::Gguf(gguf) => gguf.has(name),
            Weights::Made => Made::has(name),
        }
    }

    /// The tensor `name`, checked against the shape that the config implies.
    pub(crate) fn tensor(&self, name: &str, expected: &[usize]) -> Result<Tensor> {
        if self.makes_on_device() {
            return Made::of(name, expected).tensor(expected, self.dtype, &self.device);
        }
        let source = self.source(name, expected)?;
        let values: usize = expected.iter().product();
        let rows = values / source.columns.max(1);
        self.read(&source, rows, |row| row, expected)
    }

    /// A matrix as a tensor.
    pub(crate) fn matrix(&self, matrix: &Matrix) -> Result<Tensor> {
        let shape = [matrix.rows(), matrix.columns()];
        if self.makes_on_device() {
            return Made::of(&matrix.name, &shape).tensor(&shape, self.dtype, &self.device);
        }
        let source = self.source_of(matrix)?;
        self.read(&source, matrix.rows(), |row| matrix.place(row), &shape)
    }

    /// Random weights need not come from the host.
    fn makes_on_device(&self) -> bool {
        matches!(self.weights, Weights::Made) && !self.device.is_cpu()
    }

    fn read(
        &self,
        source: &Source<'_>,
        rows: usize,
        place: impl Fn(usize) -> usize + Sync,
        shape: &[usize],
    ) -> Result<Tensor> {
        let tensor = match self.dtype {
            DType::BF16 => Tensor::from_vec(
                source.narrowed::<bf16>(&self.pool, rows, place)?,
                shape,
                &Device::Cpu,
            )?,
            DType::F16 => Tensor::from_vec(
                source.narrowed::<f16>(&self.pool, rows, place)?,
                shape,
                &Device::Cpu,
            )?,
            dtype => Tensor::from_vec(
                source.narrowed::<f32>(&self.pool, rows, place)?,
                shape,
                &Device::Cpu,
            )?
            .to_dtype(dtype)?,
        };
        Ok(tensor.to_device(&self.device)?)
    }

    /// What a matrix is kept in. `embeds`: it is the embedding or the LM head.
    pub(crate) fn form(&self, matrix: &Matrix, embeds: bool) -> Result<Form> {
        self.form_in(self.keep, matrix, embeds)
    }

    /// What a matrix would be kept in where weights were kept in `keep`.
    pub(crate) fn form_in(&self, keep: WeightType, matrix: &Matrix, embeds: bool) -> Result<Form> {
        let source = self.source_of(matrix)?;
        let form = keep.form(source.stored(), embeds);
        let block = form.stored().elements();
        match matrix.columns().is_multiple_of(block) {
            true => Ok(form),
            false => Err(ModelError::Width {
                name: matrix.name.clone(),
                dir: self.path.clone(),
                columns: matrix.columns(),
                dtype: keep,
                block,
            }),
        }
    }

    /// Rows of the whole that a matrix is part of.
    pub(crate) fn source_of(&self, matrix: &Matrix) -> Result<Source<'_>> {
        self.source(&matrix.name, &matrix.whole)
    }

    /// Rows of the tensor `name`, checked against the shape that the config implies; what the first dimension counts, or
    /// the whole of a vector.
    pub(crate) fn source(&self, name: &str, expected: &[usize]) -> Result<Source<'_>> {
        let missing = || ModelError::MissingTensor {
            name: name.to_owned(),
            dir: self.path.clone(),
        };
        let (place, order, add) = match &self.weights {
            Weights::Safetensors(files) => {
                let found = files.iter().find_map(|file| file.find(name));
                let (shape, place) = found.ok_or_else(missing)?;
                self.check(name, shape, expected)?;
                let place = place.map_err(|dtype| ModelError::Quantized {
                    name: name.to_owned(),
                    dir: self.path.clone(),
                    dtype,
                })?;
                (place, Order::Same, 0.0)
            }
            Weights::Gguf(gguf) => {
                self.check(name, gguf.shape(name).ok_or_else(missing)?, expected)?;
                gguf.place(name)?.ok_or_else(missing)?
            }
            Weights::Made => (Made::of(name, expected).place(), Order::Same, 0.0),
        };
        let columns = match (expected, order) {
            ([], _) => 1,
            ([all], Order::Same) => *all,
            (_, _) => expected[1..].iter().product(),
        };
        let module = name.strip_suffix(".weight");
        let low_rank = match (&self.adapter, module) {
            (Some((adapter, family)), Some(module)) => {
                adapter.of(&family.module_name(module), expected)?
            }
            _ => None,
        };
        match columns.is_multiple_of(place.stored.elements()) {
            true => Ok(Source {
                place,
                columns,
                order,
                add,
                low_rank,
            }),
            // A vector in blocks whose values stand elsewhere.
            false => Err(ModelError::TensorShape {
                name: name.to_owned(),
                dir: self.path.clone(),
                found: vec![place.stored.elements()],
                expected: expected.to_vec(),
            }),
        }
    }

    /// Whether two matrices of the same shape hold the same numbers.
    pub(crate) fn same(&self, one: &str, other: &str, shape: [usize; 2]) -> Result<bool> {
        let [one, other] = [self.source(one, &shape)?, self.source(other, &shape)?];
        let height = (CHUNK / shape[1].max(1)).max(1);
        for first in (0..shape[0]).step_by(height) {
            let rows = first..shape[0].min(first + height);
            let values = |source: &Source<'_>, scratch: &mut Scratch| {
                scratch.wide.clear();
                source.widen(rows.clone(), |row| row, scratch)
            };
            let same = self.pool.with(|scratch| -> Result<bool> {
                values(&one, scratch)?;
                self.pool.with(|beside| {
                    values(&other, beside)?;
                    Ok(scratch.wide == beside.wide)
                })
            });
            if !same? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn check(&self, name: &str, found: &[usize], expected: &[usize]) -> Result<()> {
        if found == expected {
            return Ok(());
        }
        Err(ModelError::TensorShape {
            name: name.to_owned(),
            dir: self.path.clone(),
            found: found.to_vec(),
            expected: expected.to_vec(),
        })
    }
}

impl Source<'_> {
    /// How the numbers of [`widen`](Self::widen) lie: as in the file, but wide where an adapter is added to them.
    pub(crate) fn stored(&self) -> Stored {
        match self.low_rank {
            None => self.place.stored,
            Some(_) => Stored::F32,
        }
    }

    /// Leaves the bytes of the rows that `place` gives for `rows`, one after the other, in the scratch, as they are in the
    /// file.
    ///
    /// # Errors
    /// A file that can no longer be read.
    pub(crate) fn read(
        &self,
        rows: Range<usize>,
        place: impl Fn(usize) -> usize,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let (order, place, count) = (self.order, &place, rows.len());
        let places = || rows.clone().map(move |row| order.place(place(row)));
        let (Some(first), Some(last)) = (places().min(), places().max()) else {
            scratch.bytes.clear();
            return Ok(());
        };
        let width = self.place.stored.bytes(self.columns);
        let in_order = places().eq(first..first + count);
        let span = match in_order {
            true => &mut scratch.bytes,
            false => &mut scratch.span,
        };
        span.resize((last + 1 - first) * width, 0);
        self.place.read(first * width, span)?;
        if !in_order {
            scratch.bytes.clear();
            for at in places() {
                let row = &scratch.span[(at - first) * width..][..width];
                scratch.bytes.extend_from_slice(row);
            }
        }
        Ok(())
    }

    /// Appends the values of rows, as [`read`](Self::read) takes them, to those in the scratch.
    ///
    /// # Errors
    /// A file that can no longer be read.
    pub(crate) fn widen(
        &self,
        rows: Range<usize>,
        place: impl Fn(usize) -> usize,
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.read(rows.clone(), &place, scratch)?;
        let (from, stored) = (scratch.wide.len(), self.place.stored);
        stored.widen_to(&scratch.bytes, &mut scratch.wide)?;
        if let Some(low_rank) = self.low_rank {
            let values = scratch.wide[from..].chunks_exact_mut(self.columns);
            for (row, values) in rows.zip(values) {
                low_rank.add(place(row), values);
            }
        }
        if self.add != 0.0 {
            scratch.wide[from..].iter_mut().for_each(|x| *x += self.add);
        }
        Ok(())
    }

    /// Appends rows, as [`read`](Self::read) takes them, to the blocks in the scratch.
    ///
    /// # Errors
    /// A file that can no longer be read.
    pub(crate) fn requantise<K: Kind>(
        &self,
        rows: Range<usize>,
        place: impl Fn(usize) -> usize,
        scratch: &mut Scratch,
    ) -> Result<()> {
        match self.low_rank {
            None => self.read(rows, place, scratch)?,
            Some(_) => {
                scratch.wide.clear();
                self.widen(rows, place, scratch)?;
                scratch.bytes.clear();
                let values = scratch.wide.iter().flat_map(|value| value.to_le_bytes());
                scratch.bytes.extend(values);
            }
        }
        let stored = self.stored();
        let Scratch {
            bytes,
            wide,
            blocks,
            ..
        } = scratch;
        stored.requantise::<K>(bytes, wide, blocks)
    }

    /// The values of the first `rows` rows, read and narrowed a chunk at a time.
    fn narrowed<T: Element>(
        &self,
        pool: &Pool,
        rows: usize,
        place: impl Fn(usize) -> usize + Sync,
    ) -> Result<Vec<T>> {
        let len = rows * self.columns;
        let bytes = len as u128 * size_of::<T>() as u128;
        memory::require("a tensor", bytes, "what else runs on the machine")?;
        let mut values = T::zeros(len);
        let height = (CHUNK / self.columns.max(1)).max(1);
        let chunks = values
            .par_chunks_mut((height * self.columns).max(1))
            .enumerate();
        chunks.try_for_each(|(index, to)| -> Result<()> {
            let first = index * height;
            let rows = first..rows.min(first + height);
            pool.with(|scratch| {
                scratch.wide.clear();
                self.widen(rows, &place, scratch)?;
                T::narrow(&scratch.wide, to);
                Ok(())
            })
        })?;
        Ok(values)
    }
}

impl Weights {
    fn open(dir: &Path) -> Result<Self> {
        let paths = weight_files(dir)?;
        let files = paths.iter().map(|path| SafetensorsFile::open(path));
        Ok(Self::Safetensors(files.collect::<Result<_>>()?))
    }
}

/// `model.safetensors`, or the shards that `model.safetensors.index.json` names.
///
/// # Errors
/// A folder with neither, an index that cannot be read or names a file that is not there.
pub fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let single = dir.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = dir.join("model.safetensors.index.json");
    if !index.is_file() {
        return Err(ModelError::NotACheckpoint {
            dir: dir.to_path_buf(),
            missing: "model.safetensors".to_owned(),
        });
    }
    let malformed = |message: String| ModelError::Config {
        path: index.clone(),
        message,
    };
    let json = ConfigFile::read(&index)?;
    let map = json
        .get("weight_map")
        .and_then(|map| map.as_object())
        .ok_or_else(|| malformed("key `weight_map` is missing".to_owned()))?;
    let mut shards = Vec::new();
    for (tensor, file) in map {
        let file = file
            .as_str()
            .filter(|name| Path::new(name).file_name() == Some(name.as_ref()))
            .ok_or_else(|| {
                malformed(format!(
                    "`weight_map.{tensor}` does not name a file of this folder"
                ))
            })?;
        shards.push(dir.join(file));
    }
    shards.sort();
    shards.dedup();
    match shards.iter().find(|path| !path.is_file()) {
        Some(path) => Err(ModelError::NotACheckpoint {
            dir: dir.to_path_buf(),
            missing: path.file_name().map_or_else(String::new, |name| {
                format!("{} (named by the index)", name.to_string_lossy())
            }),
        }),
        None if shards.is_empty() => Err(malformed("`weight_map` names no file".to_owned())),
        None => Ok(shards),
    }
}
