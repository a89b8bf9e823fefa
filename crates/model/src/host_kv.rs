//! Keys and values of a layer in plain memory, for the fused layers: in 32 bits, or in 16 that attention widens in registers.

use crate::cache_layer::{KV_CACHE, KV_CACHE_LOWER};
use crate::element::Element;
use crate::error::Result;
use crate::memory;
use candle_core::DType;
use half::{bf16, f16};
use std::fmt;
use std::ops::Range;

/// What keys and values are kept in. Whatever it is, attention computes with them in f32 on a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvType {
    /// 32 bits.
    F32,
    /// Brain float, 16 bits.
    Bf16,
    /// IEEE half, 16 bits: finer than [`Self::Bf16`], and infinite from 65,520 on.
    F16,
}

impl KvType {
    /// As it is written on a command line.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F32 => "f32",
            KvType::Bf16 => "bf16",
            KvType::F16 => "f16",
        }
    }

    /// What tensors of it hold.
    pub(crate) fn dtype(self) -> DType {
        match self {
            KvType::F32 => DType::F32,
            KvType::Bf16 => DType::BF16,
            KvType::F16 => DType::F16,
        }
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Keys and values of one layer.
#[derive(Debug)]
pub(crate) enum HostKv {
    F32(Pair<f32>),
    Bf16(Pair<bf16>),
    F16(Pair<f16>),
}

/// `[rows, n_kv_heads, capacity, head_dim]` each.
#[derive(Debug, Default)]
pub(crate) struct Pair<T> {
    pub(crate) k: Vec<T>,
    pub(crate) v: Vec<T>,
}

/// What `$body` makes of the pair, of whatever type it is.
macro_rules! of_pair {
    ($kv:expr, $pair:ident => $body:expr) => {
        match $kv {
            HostKv::F32($pair) => $body,
            HostKv::Bf16($pair) => $body,
            HostKv::F16($pair) => $body,
        }
    };
}

impl HostKv {
    /// Without memory for any position yet.
    pub(crate) fn new(kept: KvType) -> Self {
        match kept {
            KvType::F32 => HostKv::F32(Pair::default()),
            KvType::Bf16 => HostKv::Bf16(Pair::default()),
            KvType::F16 => HostKv::F16(Pair::default()),
        }
    }

    /// What it is kept in.
    pub(crate) fn kept(&self) -> KvType {
        match self {
            HostKv::F32(_) => KvType::F32,
            HostKv::Bf16(_) => KvType::Bf16,
            HostKv::F16(_) => KvType::F16,
        }
    }

    /// Makes of each run of `old` numbers one of `new`; `len`: how many numbers there are then.
    ///
    /// # Errors
    /// There is not so much memory.
    pub(crate) fn grow(&mut self, old: usize, new: usize, len: u128) -> Result<()> {
        of_pair!(self, pair => pair.grow(old, new, len))
    }

    /// Rounds keys and values to what is kept, from place `at` on.
    pub(crate) fn write(&mut self, at: usize, keys: &[f32], values: &[f32]) {
        of_pair!(self, pair => pair.write(at, keys, values))
    }

    /// Keys and values of some places.
    pub(crate) fn read(&self, places: Range<usize>) -> [Vec<f32>; 2] {
        of_pair!(self, pair => pair.read(places))
    }

    /// Takes keys and values over from another layer of the same cache.
    pub(crate) fn copy(&mut self, to: Range<usize>, other: &Self, from: Range<usize>) {
        match (self, other) {
            (HostKv::F32(pair), HostKv::F32(other)) => pair.copy(to, other, from),
            (HostKv::Bf16(pair), HostKv::Bf16(other)) => pair.copy(to, other, from),
            (HostKv::F16(pair), HostKv::F16(other)) => pair.copy(to, other, from),
            _ => unreachable!("all layers of a cache are kept in one type"),
        }
    }

    /// Gives each place in `moved` what stands at another: (to, from), all read before any is written.
    pub(crate) fn reorder(&mut self, moved: &[(usize, Range<usize>)]) {
        of_pair!(self, pair => pair.reorder(moved))
    }
}

impl<T: Element> Pair<T> {
    fn grow(&mut self, old: usize, new: usize, len: u128) -> Result<()> {
        for store in [&mut self.k, &mut self.v] {
            let mut grown = memory::zeros(KV_CACHE, len, KV_CACHE_LOWER)?;
            copy_runs(store, old, &mut grown, new);
            *store = grown;
        }
        Ok(())
    }

    fn write(&mut self, at: usize, keys: &[f32], values: &[f32]) {
        for (store, fresh) in [(&mut self.k, keys), (&mut self.v, values)] {
            T::narrow(fresh, &mut store[at..at + fresh.len()]);
        }
    }

    fn read(&self, places: Range<usize>) -> [Vec<f32>; 2] {
        [&self.k, &self.v].map(|store| store[places.clone()].iter().map(|x| x.widen()).collect())
    }

    fn copy(&mut self, to: Range<usize>, other: &Self, from: Range<usize>) {
        self.k[to.clone()].copy_from_slice(&other.k[from.clone()]);
        self.v[to].copy_from_slice(&other.v[from]);
    }

    fn reorder(&mut self, moved: &[(usize, Range<usize>)]) {
        for store in [&mut self.k, &mut self.v] {
            let found: Vec<Vec<T>> = moved
                .iter()
                .map(|(_, from)| store[from.clone()].to_vec())
                .collect();
            for ((to, _), found) in moved.iter().zip(found) {
                store[*to..to + found.len()].copy_from_slice(&found);
            }
        }
    }
}

/// Copies runs of `width` to runs of `wider`, which end in what they held.
pub(crate) fn copy_runs<T: Copy>(from: &[T], width: usize, to: &mut [T], wider: usize) {
    if width == 0 {
        return;
    }
    for (from, to) in from.chunks_exact(width).zip(to.chunks_exact_mut(wider)) {
        to[..width].copy_from_slice(from);
    }
}
