//! A fixed-size set of layers, with attention and MLP as separate members.

use std::fmt;

/// The deepest model that a [`LayerSet`] can describe.
pub const MAX_LAYERS: usize = 256;

const WORD: usize = u64::BITS as usize;

/// One bit per layer.
type Bits = [u64; MAX_LAYERS / WORD];

/// A set of layers of up to [`MAX_LAYERS`], attention and MLP sub-layers apart.
///
/// Small and `Copy`, so that a plan can be made for every step without allocating.
///
/// ```
/// use skipbench_strategy::LayerSet;
/// let mut kept = LayerSet::from_layers([0, 2, 5]);
/// kept.insert_attention(3);
/// assert!(kept.contains(2) && !kept.contains(3));
/// assert_eq!(kept.to_vec(), [0, 2, 3, 5]);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LayerSet {
    attention: Bits,
    mlp: Bits,
}

impl LayerSet {
    /// The set without a layer.
    pub const fn empty() -> Self {
        Self {
            attention: [0; MAX_LAYERS / WORD],
            mlp: [0; MAX_LAYERS / WORD],
        }
    }

    /// The layers `0..n_layers`.
    ///
    /// # Panics
    /// If `n_layers` is greater than [`MAX_LAYERS`].
    pub fn full(n_layers: usize) -> Self {
        Self::from_layers(0..n_layers)
    }

    /// The set of these layers, both sub-layers of each.
    ///
    /// # Panics
    /// If a layer is [`MAX_LAYERS`] or greater.
    pub fn from_layers(layers: impl IntoIterator<Item = usize>) -> Self {
        let mut set = Self::empty();
        for layer in layers {
            set.insert(layer);
        }
        set
    }

    /// Adds both sub-layers of `layer`.
    ///
    /// # Panics
    /// If `layer` is [`MAX_LAYERS`] or greater.
    pub fn insert(&mut self, layer: usize) {
        self.insert_attention(layer);
        self.insert_mlp(layer);
    }

    /// Adds the attention of `layer`.
    ///
    /// # Panics
    /// If `layer` is [`MAX_LAYERS`] or greater.
    pub fn insert_attention(&mut self, layer: usize) {
        set_bit(&mut self.attention, layer);
    }

    /// Adds the MLP of `layer`.
    ///
    /// # Panics
    /// If `layer` is [`MAX_LAYERS`] or greater.
    pub fn insert_mlp(&mut self, layer: usize) {
        set_bit(&mut self.mlp, layer);
    }

    /// Whether both sub-layers of `layer` are in the set.
    pub fn contains(&self, layer: usize) -> bool {
        self.has_attention(layer) && self.has_mlp(layer)
    }

    /// Takes both sub-layers of `layer` out.
    pub fn remove(&mut self, layer: usize) {
        self.remove_attention(layer);
        self.remove_mlp(layer);
    }

    /// Takes the attention of `layer` out.
    pub fn remove_attention(&mut self, layer: usize) {
        clear_bit(&mut self.attention, layer);
    }

    /// Takes the MLP of `layer` out.
    pub fn remove_mlp(&mut self, layer: usize) {
        clear_bit(&mut self.mlp, layer);
    }

    /// Whether the attention of `layer` is in the set.
    pub fn has_attention(&self, layer: usize) -> bool {
        has_bit(&self.attention, layer)
    }

    /// Whether the MLP of `layer` is in the set.
    pub fn has_mlp(&self, layer: usize) -> bool {
        has_bit(&self.mlp, layer)
    }

    /// Number of layers of which at least one sub-layer is in the set.
    pub fn len(&self) -> usize {
        self.either().iter().map(|w| w.count_ones() as usize).sum()
    }

    /// Number of sub-layers in the set: two for each whole layer.
    pub fn sub_layers(&self) -> usize {
        let count = |bits: &Bits| bits.iter().map(|w| w.count_ones() as usize).sum::<usize>();
        count(&self.attention) + count(&self.mlp)
    }

    /// Whether no sub-layer is in the set.
    pub fn is_empty(&self) -> bool {
        *self == Self::empty()
    }

    /// The layers of which at least one sub-layer is in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + use<> {
        let either = self.either();
        (0..MAX_LAYERS).filter(move |&layer| has_bit(&either, layer))
    }

    /// Whether every sub-layer of this set is in `other` too.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.union(*other) == *other
    }

    /// The sub-layers that are in either set.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self {
            attention: or(self.attention, other.attention),
            mlp: or(self.mlp, other.mlp),
        }
    }

    /// [`iter`](Self::iter) as a vector.
    pub fn to_vec(&self) -> Vec<usize> {
        self.iter().collect()
    }

    fn either(&self) -> Bits {
        or(self.attention, self.mlp)
    }
}

/// Lists the layers; one with a single sub-layer is marked `a` (attention) or `m` (MLP).
impl fmt::Debug for LayerSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut set = f.debug_set();
        for layer in self.iter() {
            let mark = match (self.has_attention(layer), self.has_mlp(layer)) {
                (true, false) => "a",
                (false, true) => "m",
                _ => "",
            };
            set.entry(&format_args!("{layer}{mark}"));
        }
        set.finish()
    }
}

fn or(a: Bits, b: Bits) -> Bits {
    std::array::from_fn(|word| a[word] | b[word])
}

fn has_bit(bits: &Bits, layer: usize) -> bool {
    layer < MAX_LAYERS && bits[layer / WORD] >> (layer % WORD) & 1 == 1
}

fn clear_bit(bits: &mut Bits, layer: usize) {
    if layer < MAX_LAYERS {
        bits[layer / WORD] &= !(1 << (layer % WORD));
    }
}

fn set_bit(bits: &mut Bits, layer: usize) {
    assert!(
        layer < MAX_LAYERS,
        "layer {layer} is beyond the {MAX_LAYERS} that a LayerSet holds"
    );
    bits[layer / WORD] |= 1 << (layer % WORD);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn sub_layers_are_apart() {
        let mut set = LayerSet::empty();
        assert!(set.is_empty());
        set.insert_attention(3);
        set.insert_mlp(200);
        set.insert(64);
        assert!(set.has_attention(3) && !set.has_mlp(3) && !set.contains(3));
        assert!(!set.has_attention(200) && set.has_mlp(200) && !set.contains(200));
        assert!(set.contains(64) && !set.contains(MAX_LAYERS + 64));
        assert_eq!((set.len(), set.sub_layers()), (3, 4));
        assert_eq!(format!("{set:?}"), "{3a, 64, 200m}");
        assert!(!set.is_subset(&LayerSet::from_layers([3, 64])));
        assert!(set.is_subset(&LayerSet::full(MAX_LAYERS)));
        set.remove_attention(64);
        set.remove(200);
        set.remove(MAX_LAYERS + 64);
        assert_eq!(format!("{set:?}"), "{3a, 64m}");
    }

    #[test]
    #[should_panic(expected = "layer 256 is beyond the 256")]
    fn a_layer_out_of_range_panics() {
        LayerSet::empty().insert(MAX_LAYERS);
    }

    proptest! {
        #[test]
        fn behaves_like_a_set(
            a in proptest::collection::btree_set(0..MAX_LAYERS, 0..40),
            b in proptest::collection::btree_set(0..MAX_LAYERS, 0..40),
        ) {
            let (x, y) = (LayerSet::from_layers(a.clone()), LayerSet::from_layers(b.clone()));
            let union: BTreeSet<usize> = a.union(&b).copied().collect();
            prop_assert_eq!(x.len(), a.len());
            prop_assert_eq!(x.to_vec(), a.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(x.union(y).to_vec(), union.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(x.is_subset(&y), a.is_subset(&b));
            prop_assert!(x.is_subset(&x.union(y)));
        }
    }
}
