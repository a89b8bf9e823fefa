//! Reading texts and models.

use crate::adapters;
use crate::digest::CheckpointDigest;
use crate::experiment::{DeviceName, DtypeName, KvDtypeName};
use anyhow::{Context, bail};
use candle_core::Device;
use clap::Args;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use skipbench_model::{Backend, Decoder};
use std::io::Read;
use std::path::{Path, PathBuf};

impl DeviceName {
    /// Refuses a device that this program was built without.
    ///
    /// # Errors
    /// CUDA was asked for and is not built in.
    pub fn check_built(self) -> anyhow::Result<()> {
        if self == DeviceName::Cuda && !candle_core::utils::cuda_is_available() {
            bail!(
                "device `cuda`: this binary was built without CUDA; build it with `--features cuda`, or use `device: cpu`"
            );
        }
        Ok(())
    }

    /// Opens the device.
    ///
    /// # Errors
    /// CUDA was asked for and is not there, or not built in.
    pub fn open(self) -> anyhow::Result<Device> {
        self.check_built()?;
        match self {
            DeviceName::Cpu => Ok(Device::Cpu),
            DeviceName::Cuda => Device::new_cuda(0).map_err(|error| {
                // Behind the first line candle's error carries a backtrace where those are asked for.
                let error = error.to_string();
                let reason = error.lines().next().unwrap_or_default();
                anyhow::anyhow!("device `cuda`: no usable GPU ({reason}); use `device: cpu`")
            }),
        }
    }
}

/// Where and how a command computes with one model.
#[derive(Debug, Clone, Args)]
pub(crate) struct ComputeArgs {
    /// Where to compute
    #[arg(long, default_value = "cpu")]
    device: DeviceName,
    /// What weights are kept in; the default is f32 on a CPU and the checkpoint's own on a GPU
    #[arg(long)]
    dtype: Option<DtypeName>,
    /// What the KV cache is kept in; the default is f32 on a CPU and what is computed in on a GPU
    #[arg(long)]
    kv_dtype: Option<KvDtypeName>,
    /// Folder of a low-rank adapter (LoRA) in PEFT's form, added to the weights
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Run the layers composed from candle operations instead of the fused CPU ones
    #[arg(long)]
    composed: bool,
}

impl ComputeArgs {
    /// Reads the weights of a model.
    ///
    /// # Errors
    /// A device that is not there, a checkpoint that cannot be used.
    pub(crate) fn load(&self, model: &Path) -> anyhow::Result<Decoder> {
        let backend = match self.composed {
            true => Backend::Composed,
            false => Backend::Auto,
        };
        let device = self.device.open()?;
        if let Some(adapter) = &self.adapter {
            adapters::check(&CheckpointDigest::of(model)?, adapter)?;
        }
        let adapter = self.adapter.as_deref();
        let dtype = self.dtype.map(Into::into);
        let decoder = Decoder::load_adapted(model, adapter, &device, dtype, backend)?;
        Ok(decoder.with_kv_type(self.kv_dtype.map(Into::into)))
    }
}

/// The text of a file without its byte-order mark, unpacked where its name ends in `.gz`.
///
/// # Errors
/// A file that cannot be read, or is not UTF-8 (naming the line).
pub(crate) fn read_text(path: &Path) -> anyhow::Result<String> {
    let raw = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let bytes = if path.extension().is_some_and(|extension| extension == "gz") {
        let mut bytes = Vec::new();
        flate2::read::MultiGzDecoder::new(raw.as_slice())
            .read_to_end(&mut bytes)
            .with_context(|| format!("{}: not a whole gzip file", path.display()))?;
        bytes
    } else {
        raw
    };
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.iter().filter(|&&byte| byte == b'\n').count() + 1;
        anyhow::anyhow!("{}: line {line} is not UTF-8", path.display())
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(text) => text.to_owned(),
        None => text,
    })
}

/// The lines of a file, split at line feeds only.
///
/// # Errors
/// As [`read_text`].
pub(crate) fn read_lines(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = read_text(path)?;
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text
        .split('\n')
        .map(|line| line.strip_suffix('\r').unwrap_or(line).to_owned())
        .collect())
}

/// Lines of two files that belong together.
pub(crate) struct FilePairs {
    sources: Vec<String>,
    references: Vec<String>,
    order: Order,
}

impl FilePairs {
    pub(crate) fn read(source: &Path, reference: &Path) -> anyhow::Result<Self> {
        let (sources, references) = (read_lines(source)?, read_lines(reference)?);
        if sources.len() != references.len() {
            bail!(
                "{} has {} lines, {} has {}; they must pair up",
                source.display(),
                sources.len(),
                reference.display(),
                references.len()
            );
        }
        if sources.is_empty() {
            bail!("{} is empty", source.display());
        }
        Ok(Self {
            order: Order::new(sources.len()),
            sources,
            references,
        })
    }

    /// The first `n` pairs in file order.
    pub(crate) fn first(&self, n: usize) -> impl Iterator<Item = (&str, &str)> {
        self.sources
            .iter()
            .zip(&self.references)
            .take(n)
            .map(|(source, reference)| (source.as_str(), reference.as_str()))
    }

    /// The `index`-th of an endless stream that passes over all pairs in a shuffled order, another offset each time.
    pub(crate) fn shuffled(&self, index: u64) -> (&str, &str) {
        let at = self.order.at(index);
        (&self.sources[at], &self.references[at])
    }
}

/// A shuffled order of places.
pub(crate) struct Order(Vec<u32>);

impl Order {
    /// Of `len` places, of which there is one at least.
    pub(crate) fn new(len: usize) -> Self {
        let mut order: Vec<u32> = (0..len as u32).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(0));
        Self(order)
    }

    /// The `index`-th place of an endless stream that passes over all of them, at another offset each time.
    pub(crate) fn at(&self, index: u64) -> usize {
        let len = self.0.len() as u64;
        let (epoch, place) = (index / len, index % len);
        // A stride coprime to the length visits every place once an epoch in another order.
        let mut stride = 2 * epoch + 1;
        while gcd(stride, len) != 1 {
            stride += 1;
        }
        self.0[((place * stride + epoch) % len) as usize] as usize
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
