//! One layer of the KV cache: its memory, and how each position came to be.

use crate::batch::Span;
use crate::cache::{HoleReads, Provenance};
use crate::error::{ModelError, Result};
use crate::host_kv::{HostKv, copy_runs};
use crate::ops;
use candle_core::{Device, Tensor};
use std::ops::Range;

/// Where a layer's keys and values lie.
#[derive(Debug)]
pub(crate) enum Storage {
    /// In plain memory, for the fused CPU layer.
    Host(HostKv),
    /// `[rows, n_kv_heads, capacity, head_dim]` tensors on the model's device.
    Device {
        /// Keys.
        k: Tensor,
        /// Values.
        v: Tensor,
    },
}

/// Names in errors of memory.
pub(crate) const KV_CACHE: &str = "the KV cache";
pub(crate) const KV_CACHE_LOWER: &str = "max-new-tokens, the batch size or the number of beams";

#[derive(Debug)]
pub(crate) struct LayerKv {
    /// Positions that a row may come to hold; 0 for a layer that no decode step runs.
    pub(crate) limit: usize,
    /// Positions that a query sees, its own among them; all up to it where there is none.
    pub(crate) window: Option<usize>,
    /// Positions of each row that there is memory for by now.
    pub(crate) capacity: usize,
    pub(crate) storage: Storage,
    /// `[rows]`: positions `0..filled` of the row hold a key.
    pub(crate) filled: Vec<usize>,
    /// `[rows, capacity]`.
    pub(crate) provenance: Vec<Provenance>,
    /// `[rows]`: holes of the row by kind, so that counting reads costs nothing.
    pub(crate) holes: Vec<HoleReads>,
    /// `[rows, capacity]`: positions that no query sees; empty until there is one.
    pub(crate) masked: Vec<bool>,
}

impl LayerKv {
    /// Without memory for any position yet.
    pub(crate) fn new(rows: usize, limit: usize, storage: Storage) -> Self {
        Self {
            limit,
            window: None,
            capacity: 0,
            storage,
            filled: vec![0; rows],
            provenance: Vec::new(),
            holes: vec![HoleReads::default(); rows],
            masked: Vec::new(),
        }
    }

    /// Whether it lies in the machine's own memory.
    pub(crate) fn on_host(&self) -> bool {
        self.device().is_none_or(Device::is_cpu)
    }

    /// Where its tensors lie; `None` where it lies in plain memory.
    pub(crate) fn device(&self) -> Option<&Device> {
        match &self.storage {
            Storage::Host(_) => None,
            Storage::Device { k, .. } => Some(k.device()),
        }
    }

    /// Makes room for `capacity` positions of each row, no fewer than there are; `heads`: (n_kv_heads, head_dim).
    pub(crate) fn grow(
        &mut self,
        capacity: usize,
        (heads, head_dim): (usize, usize),
    ) -> Result<()> {
        let (rows, old) = (self.filled.len(), self.capacity);
        let bytes = |element: usize| {
            let sizes = [rows, heads, capacity, head_dim, element];
            let product = |all: u128, &n: &usize| all.saturating_mul(n as u128);
            sizes.iter().fold(1, product)
        };
        match &mut self.storage {
            Storage::Host(kv) => kv.grow(old * head_dim, capacity * head_dim, bytes(1))?,
            Storage::Device { k, v } => {
                for store in [k, v] {
                    let dims = (rows, heads, capacity, head_dim);
                    let grown = ops::zeros(dims, store.dtype(), store.device());
                    let grown = grown.map_err(|_| ModelError::NoMemory {
                        what: KV_CACHE,
                        bytes: bytes(store.dtype().size_in_bytes()),
                        free: None,
                        lower: KV_CACHE_LOWER,
                    })?;
                    if old > 0 {
                        ops::write(&grown, store, 2, 0)?;
                    }
                    *store = grown;
                }
            }
        }
        let mut provenance = vec![Provenance::Empty; rows * capacity];
        copy_runs(&self.provenance, old, &mut provenance, capacity);
        self.provenance = provenance;
        if !self.masked.is_empty() {
            let mut masked = vec![false; rows * capacity];
            copy_runs(&self.masked, old, &mut masked, capacity);
            self.masked = masked;
        }
        self.capacity = capacity;
        Ok(())
    }

    /// Marks slots of `row`; `slots` index `[rows, capacity]`.
    pub(crate) fn set(&mut self, row: usize, slots: Range<usize>, how: Provenance) {
        let holes = &mut self.holes[row];
        for slot in slots.clone() {
            match self.provenance[slot] {
                Provenance::Masked => holes.masked -= 1,
                old if old.is_approximate() => holes.approximate -= 1,
                _ => {}
            }
        }
        self.provenance[slots.clone()].fill(how);
        match how {
            Provenance::Masked => holes.masked += slots.len() as u64,
            how if how.is_approximate() => holes.approximate += slots.len() as u64,
            _ => {}
        }
        if !self.masked.is_empty() {
            self.masked[slots].fill(how == Provenance::Masked);
        }
    }

    /// Holes that the queries of `span` read, or should have. They all lie in front of it.
    pub(crate) fn hole_reads(&self, span: Span) -> HoleReads {
        let holes = self.holes[span.row];
        let queries = span.len as u64;
        let window = self.window.filter(|&window| window < span.start + span.len);
        let (Some(window), true) = (window, holes != HoleReads::default()) else {
            return HoleReads {
                approximate: queries * holes.approximate,
                masked: queries * holes.masked,
            };
        };
        let row = &self.provenance[span.row * self.capacity..][..span.start];
        let mut reads = HoleReads::default();
        for position in span.start..span.start + span.len {
            let seen = row.get((position + 1).saturating_sub(window)..);
            for how in seen.unwrap_or_default() {
                reads.approximate += u64::from(how.is_approximate());
                reads.masked += u64::from(*how == Provenance::Masked);
            }
        }
        reads
    }

    /// The first position that a query at `position` sees.
    pub(crate) fn first_seen(&self, position: usize) -> usize {
        let window = self.window.unwrap_or(usize::MAX);
        (position + 1).saturating_sub(window)
    }

    /// Forgets positions `len..` of `row`.
    pub(crate) fn truncate(&mut self, row: usize, len: usize) {
        let end = self.filled[row];
        if len < end {
            let first = row * self.capacity;
            self.set(row, first + len..first + end, Provenance::Empty);
            self.filled[row] = len;
        }
    }

    /// Which of the first `len` positions of `row` no query sees; empty if every one is seen.
    pub(crate) fn masked(&self, row: usize, len: usize) -> &[bool] {
        match self.masked.is_empty() || self.holes[row].masked == 0 {
            true => &[],
            false => &self.masked[row * self.capacity..row * self.capacity + len],
        }
    }

    /// Copies one position from `other`; `width`: (n_kv_heads, head_dim).
    pub(crate) fn copy_position(
        &mut self,
        other: &LayerKv,
        span: Span,
        (heads, head_dim): (usize, usize),
    ) -> Result<()> {
        let (row, position) = (span.row, span.start);
        match (&mut self.storage, &other.storage) {
            (Storage::Host(kv), Storage::Host(from)) => {
                for head in 0..heads {
                    let slot = |capacity: usize| {
                        let at = ((row * heads + head) * capacity + position) * head_dim;
                        at..at + head_dim
                    };
                    kv.copy(slot(self.capacity), from, slot(other.capacity));
                }
            }
            (
                Storage::Device { k, v },
                Storage::Device {
                    k: from_k,
                    v: from_v,
                },
            ) => {
                for (to, from) in [(k, from_k), (v, from_v)] {
                    let from = ops::packed(&from.get(row)?.narrow(1, position, 1)?)?;
                    ops::write(&to.get(row)?, &from, 1, position)?;
                }
            }
            _ => unreachable!("all layers of a cache lie in the same kind of memory"),
        }
        Ok(())
    }

    /// `moved`: (row, the row whose content it gets), and `order`, `[rows]`, the same on the device of a layer that lies there;
    /// gives the positions copied.
    pub(crate) fn reorder(
        &mut self,
        moved: &[(usize, usize)],
        order: Option<&Tensor>,
        (heads, head_dim): (usize, usize),
    ) -> Result<u64> {
        let capacity = self.capacity;
        match &mut self.storage {
            Storage::Host(kv) => {
                // Only what is filled: [heads] runs of the parent's positions.
                let head = capacity * head_dim;
                let runs = moved.iter().flat_map(|&(row, parent)| {
                    let filled = self.filled[parent] * head_dim;
                    (0..heads).map(move |at| {
                        let from = (parent * heads + at) * head;
                        ((row * heads + at) * head, from..from + filled)
                    })
                });
                kv.reorder(&runs.collect::<Vec<_>>());
            }
            Storage::Device { k, v } => {
                for store in [k, v] {
                    if let Some(order) = order {
                        *store = ops::rows(store, order)?;
                    }
                }
            }
        }
        let (filled, holes) = (self.filled.clone(), self.holes.clone());
        let provenance = self.provenance.clone();
        let masked = self.masked.clone();
        for &(row, parent) in moved {
            self.filled[row] = filled[parent];
            self.holes[row] = holes[parent];
            let (to, from) = (row * capacity, parent * capacity);
            self.provenance[to..to + capacity].copy_from_slice(&provenance[from..from + capacity]);
            if !masked.is_empty() {
                self.masked[to..to + capacity].copy_from_slice(&masked[from..from + capacity]);
            }
        }
        Ok(moved.iter().map(|&(_, parent)| filled[parent] as u64).sum())
    }
}
