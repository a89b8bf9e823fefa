//! What can be wrong with a checkpoint or a call into a model.

use crate::form::WeightType;
use crate::memory;
use std::path::PathBuf;

/// An error of this crate: what was wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file of the checkpoint folder cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A folder holds none of the files that a checkpoint must have.
    #[error("{} is not a checkpoint folder: {missing} is missing (expected a Hugging Face folder with config.json, model.safetensors or its shards, tokenizer.json; a .gguf file and hub:owner/name are models too)", dir.display())]
    NotACheckpoint {
        /// The folder.
        dir: PathBuf,
        /// The file that was looked for.
        missing: String,
    },
    /// A JSON file does not hold what is needed.
    #[error("{}: {message}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, naming the key.
        message: String,
    },
    /// The architecture has no implementation here.
    #[error("{}: unknown architecture `{found}`; supported: {supported}", path.display())]
    UnknownArchitecture {
        /// The config file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// The names that would work.
        supported: String,
    },
    /// A safetensors file is cut off or damaged.
    #[error("{}: not a complete safetensors file ({message}); copy or download it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        message: String,
    },
    /// A GGUF file cannot be used.
    #[error("{}: not a GGUF file that can be used: {message}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, naming the key or the tensor.
        message: String,
    },
    /// A tensor that the config calls for is absent.
    #[error("tensor `{name}` is missing from {}; the model's configuration calls for it", dir.display())]
    MissingTensor {
        /// The checkpoint's name for the tensor.
        name: String,
        /// The checkpoint folder.
        dir: PathBuf,
    },
    /// A tensor has another shape than the config says.
    #[error("tensor `{name}` in {} has shape {found:?}, but the model's configuration calls for {expected:?}", dir.display())]
    TensorShape {
        /// The checkpoint's name for the tensor.
        name: String,
        /// The checkpoint folder.
        dir: PathBuf,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape that the config implies.
        expected: Vec<usize>,
    },
    /// A repository of the hub cannot be had.
    #[error("{name}: {message}")]
    Hub {
        /// `hub:owner/name[@revision]`.
        name: String,
        /// What is wrong, and what to do.
        message: String,
    },
    /// A tensor that holds no plain numbers.
    #[error("tensor `{name}` in {} has the element type {dtype}: its weights are quantised, which is not read whether config.json has a `quantization_config` or not; use the checkpoint that they were made from, or a GGUF file of it", dir.display())]
    Quantized {
        /// The checkpoint's name for the tensor.
        name: String,
        /// The checkpoint folder.
        dir: PathBuf,
        /// The element type.
        dtype: String,
    },
    /// The tokenizer cannot be used with the model.
    #[error("{}: {message}", path.display())]
    Tokenizer {
        /// The tokenizer file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A prompt with no token.
    #[error("prompt {row} is empty: a decoder needs at least one token to start from")]
    EmptyPrompt {
        /// Row of the batch, from 0.
        row: usize,
    },
    /// A token id that the model has no embedding for.
    #[error(
        "token id {id} is outside the model's vocabulary of {vocab_size}: the tokenizer knows a token that the model has no embedding for; take it out of the prompt, or use the model's own tokenizer"
    )]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// Number of embeddings.
        vocab_size: usize,
    },
    /// More positions than the model has.
    #[error(
        "row {row} needs {needed} positions (prompt and new tokens), but the model has {limit}; shorten the prompt or lower max-new-tokens"
    )]
    TooLong {
        /// Row of the batch, from 0.
        row: usize,
        /// Positions asked for.
        needed: usize,
        /// `max_position_embeddings`.
        limit: usize,
    },
    /// A row would grow past the length at which all its keys are turned otherwise.
    #[error(
        "row {row} would grow from {prompt} tokens to {needed}, past {limit}, where LongRoPE takes other frequencies for all positions; lower max-new-tokens so that the row stays within {limit}, or give it a longer prompt"
    )]
    Switch {
        /// Row of the batch, from 0.
        row: usize,
        /// Tokens of the prompt.
        prompt: usize,
        /// Positions asked for.
        needed: usize,
        /// Trained length.
        limit: usize,
    },
    /// Attention at a layer would read a key that was never written.
    #[error(
        "layer {layer} would read position {position} of row {row}, which was skipped and never filled; the strategy needs a KV fill such as `propagate`"
    )]
    Hole {
        /// Layer index.
        layer: usize,
        /// Cache row.
        row: usize,
        /// Absolute position.
        position: usize,
    },
    /// A position beyond what the cache holds.
    #[error(
        "layer {layer} has room for {capacity} positions in the KV cache, position {position} was asked for"
    )]
    CacheFull {
        /// Layer index.
        layer: usize,
        /// Allocated positions.
        capacity: usize,
        /// The position that did not fit.
        position: usize,
    },
    /// Memory that cannot be had.
    #[error(
        "{what} would take {}{}; lower {lower}",
        memory::human(*bytes),
        free.map_or(String::new(), |free| format!(", and {} are free", memory::human(free.into())))
    )]
    NoMemory {
        /// What it is for.
        what: &'static str,
        /// Bytes asked for.
        bytes: u128,
        /// Bytes that the machine can still give, where that is known.
        free: Option<u64>,
        /// What makes them fewer.
        lower: &'static str,
    },
    /// A matrix whose rows are no whole number of blocks.
    #[error(
        "tensor `{name}` in {} has rows of {columns} weights, which are no whole number of blocks of {block}: `{dtype}` cannot hold it; use `bf16` or `f16`", dir.display()
    )]
    Width {
        /// The checkpoint's name for the tensor.
        name: String,
        /// The checkpoint folder.
        dir: PathBuf,
        /// Weights of a row.
        columns: usize,
        /// What was asked for.
        dtype: WeightType,
        /// Weights of a block.
        block: usize,
    },
    /// Weights in blocks, for layers that compute with none.
    #[error(
        "weights of `{dtype}` are multiplied by the fused layers of a CPU alone; on a GPU, and where layers are composed, use `bf16`, `f16` or `f32`, or `device: cpu`"
    )]
    NoBlocks {
        /// What was asked for.
        dtype: WeightType,
    },
    /// A shape that has no name.
    #[error("there is no shape `{name}`; there are {known}, or give the keys of a config.json")]
    UnknownShape {
        /// The name.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// A model that is larger than memory.
    #[error(
        "the weights of {} take {} as `{dtype}`{}; {}",
        path.display(),
        memory::human(*bytes),
        free.map_or(String::new(), |free| format!(", and {} are free", memory::human(free.into()))),
        fits.map_or(
            "no element type makes them small enough: use a smaller model or a machine with more memory".to_owned(),
            |(dtype, bytes)| format!("`dtype: {dtype}` would fit with {}", memory::human(bytes))
        )
    )]
    TooLarge {
        /// The model.
        path: PathBuf,
        /// What its weights were to be kept in.
        dtype: WeightType,
        /// Bytes that they take.
        bytes: u128,
        /// Bytes that the machine can still give, where that is known.
        free: Option<u64>,
        /// The finest type in which they fit, and the bytes of that.
        fits: Option<(WeightType, u128)>,
    },
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, ModelError>;
