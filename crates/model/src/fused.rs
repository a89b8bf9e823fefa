//! The decoder layer as one piece of plain code for the CPU. Same arithmetic as [`crate::composed`] in f32, without its
//! allocations, transposes and copies, whatever type the weights are kept in.

use crate::attend::{self, Scoring};
use crate::batch::Span;
use crate::cache_layer::{LayerKv, Storage};
use crate::causal_lm::Part;
use crate::checkpoint::Checkpoint;
use crate::config::{Activation, ModelConfig, PositionScheme};
use crate::error::Result;
use crate::host_kv::HostKv;
use crate::matrix::Matrix;
use crate::packed::Packed;
use crate::pointwise;
use crate::rope::Rope;
use crate::shortlist::{Screen, Shortlist};
use crate::tables::SpanTables;
use crate::weights::{Frame, LayerWeights, Linear, Norm, Norms};
use candle_core::{DType, Device, Tensor};
use std::sync::OnceLock;

pub(crate) struct FusedLayer {
    attention_norms: FusedNorms,
    /// `[q_width, d_model]`
    q: FusedLinear,
    /// K and V stacked: `[2 kv_width, d_model]`. Apart from Q, since a skipped layer may need them alone.
    kv: FusedLinear,
    o: FusedLinear,
    mlp_norms: FusedNorms,
    /// Gate and up stacked, or up alone.
    up: FusedLinear,
    gated: bool,
    activation: Activation,
    down: FusedLinear,
    heads: Heads,
    parallel: bool,
}

struct Heads {
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    q_norm: Option<FusedNorm>,
    k_norm: Option<FusedNorm>,
    /// With its place among the model's schemes.
    rope: Option<(usize, Rope)>,
    scoring: Scoring,
}

pub(crate) struct FusedLinear {
    weight: Packed,
    bias: Option<Vec<f32>>,
}

/// As [`Norms`].
struct FusedNorms {
    before: Option<FusedNorm>,
    after: Option<FusedNorm>,
    sum: Option<FusedNorm>,
}

enum FusedNorm {
    Rms {
        weight: Vec<f32>,
        eps: f32,
    },
    Layer {
        weight: Vec<f32>,
        bias: Vec<f32>,
        eps: f32,
    },
}

/// Final norm and LM head.
pub(crate) struct FusedHead {
    norm: Option<FusedNorm>,
    project: Option<FusedLinear>,
    weight: Packed,
    /// Made when a list of tokens is first asked for.
    screen: OnceLock<Screen>,
    cap: Option<f32>,
}

impl FusedLayer {
    pub(crate) fn new(
        weights: &LayerWeights,
        config: &ModelConfig,
        index: usize,
        checkpoint: &Checkpoint,
    ) -> Result<Self> {
        let (attention, mlp) = (&weights.attention, &weights.mlp);
        let up: Vec<&Linear> = mlp.gate.iter().chain([&mlp.up]).collect();
        let stack = |parts: &[&Linear]| FusedLinear::stack(parts, checkpoint);
        Ok(Self {
            attention_norms: FusedNorms::new(&weights.attention_norms)?,
            q: stack(&[&attention.q])?,
            kv: stack(&[&attention.k, &attention.v])?,
            o: stack(&[&attention.o])?,
            mlp_norms: FusedNorms::new(&weights.mlp_norms)?,
            up: stack(&up)?,
            gated: mlp.gate.is_some(),
            activation: config.activation,
            down: stack(&[&mlp.down])?,
            heads: Heads::new(weights, config, index)?,
            parallel: config.parallel,
        })
    }

    /// `hidden`: `[tokens, d_model]` in and out.
    pub(crate) fn forward(
        &self,
        part: Part,
        hidden: &Tensor,
        kv: &mut LayerKv,
        tables: &mut SpanTables,
        spans: &[Span],
    ) -> Result<Tensor> {
        let shape = hidden.shape().clone();
        let mut hidden = hidden.flatten_all()?.to_vec1::<f32>()?;
        let mut scratch = vec![0.0; hidden.len()];
        // Side by side, the MLP reads what attention has not changed yet.
        let beside =
            (self.parallel && part == Part::Whole).then(|| self.mlp(&hidden, &mut scratch));
        if part.has_attention() {
            let output = self.attention(&hidden, &mut scratch, kv, tables, spans)?;
            self.attention_norms
                .join(&mut hidden, &output, &mut scratch);
        }
        if part.has_mlp() {
            let output = beside.unwrap_or_else(|| self.mlp(&hidden, &mut scratch));
            self.mlp_norms.join(&mut hidden, &output, &mut scratch);
        }
        Ok(Tensor::from_vec(hidden, shape, &Device::Cpu)?)
    }

    /// What attention adds to `hidden`: `[tokens, d_model]`; `scratch` is of the same size.
    fn attention(
        &self,
        hidden: &[f32],
        scratch: &mut [f32],
        kv: &mut LayerKv,
        tables: &mut SpanTables,
        spans: &[Span],
    ) -> Result<Vec<f32>> {
        let normed = self.attention_norms.before(hidden, scratch);
        let mut q = self.q.apply(normed);
        let heads = &self.heads;
        heads.prepare(
            &mut q,
            heads.q_width(),
            heads.q_width(),
            &heads.q_norm,
            tables,
        );
        let fresh = self.project_kv(normed, tables);
        let attended = if kv.capacity > 0 {
            heads.write(&fresh, kv, spans);
            heads.attend(&q, kv, spans)
        } else {
            // No later step reads this layer: keys and values live for this call only.
            let (mut room, spans) = heads.room(spans, kv)?;
            heads.write(&fresh, &mut room, &spans);
            heads.attend(&q, &room, &spans)
        };
        Ok(self.o.apply(&attended))
    }

    /// What the MLP adds to `hidden`: `[tokens, d_model]`; `scratch` is of the same size.
    fn mlp(&self, hidden: &[f32], scratch: &mut [f32]) -> Vec<f32> {
        let mut up = self.up.apply(self.mlp_norms.before(hidden, scratch));
        let inner = if self.gated {
            let width = self.up.out_width() / 2;
            let mut inner = vec![0.0; up.len() / 2];
            pointwise::gated(self.activation, &up, width, &mut inner);
            inner
        } else {
            pointwise::activate(self.activation, &mut up);
            up
        };
        self.down.apply(&inner)
    }

    /// Keys and values only.
    pub(crate) fn fill_kv(
        &self,
        hidden: &Tensor,
        kv: &mut LayerKv,
        tables: &mut SpanTables,
        spans: &[Span],
    ) -> Result<()> {
        if kv.capacity == 0 {
            return Ok(());
        }
        let hidden = hidden.flatten_all()?.to_vec1::<f32>()?;
        let mut scratch = vec![0.0; hidden.len()];
        let normed = self.attention_norms.before(&hidden, &mut scratch);
        let fresh = self.project_kv(normed, tables);
        self.heads.write(&fresh, kv, spans);
        Ok(())
    }

    /// Keys, rotated, and values: `[tokens, 2 kv_width]`.
    fn project_kv(&self, normed: &[f32], tables: &mut SpanTables) -> Vec<f32> {
        let mut fresh = self.kv.apply(normed);
        let heads = &self.heads;
        let width = heads.kv_width();
        heads.prepare(&mut fresh, 2 * width, width, &heads.k_norm, tables);
        fresh
    }
}

impl Heads {
    fn new(weights: &LayerWeights, config: &ModelConfig, index: usize) -> Result<Self> {
        let norm = |norm: &Option<Norm>| norm.as_ref().map(FusedNorm::new).transpose();
        let scheme = config.layers[index].positions;
        let (rope, slopes) = match &config.positions[scheme] {
            PositionScheme::Rope(rope) => (Some((scheme, rope.clone())), Vec::new()),
            PositionScheme::Alibi { slopes } => (None, slopes.clone()),
            PositionScheme::Learned => (None, Vec::new()),
        };
        Ok(Self {
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            q_norm: norm(&weights.attention.q_norm)?,
            k_norm: norm(&weights.attention.k_norm)?,
            rope,
            scoring: Scoring {
                group: config.n_heads / config.n_kv_heads,
                scale: config.score_scale as f32,
                cap: config.score_cap.map(|cap| cap as f32),
                slopes,
            },
        })
    }

    fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Normalises and rotates the first `width` channels of each token of `x`: `[tokens, stride]`.
    fn prepare(
        &self,
        x: &mut [f32],
        stride: usize,
        width: usize,
        norm: &Option<FusedNorm>,
        tables: &mut SpanTables,
    ) {
        if let Some(norm) = norm {
            let mut raw = vec![0.0; width];
            for token in x.chunks_exact_mut(stride) {
                raw.copy_from_slice(&token[..width]);
                norm.apply(&raw, &mut token[..width]);
            }
        }
        let Some((scheme, rope)) = &self.rope else {
            return;
        };
        let pairs = rope.inv_freq.len();
        let turns = tables.turns(*scheme, rope);
        let turns = turns
            .cos
            .chunks_exact(pairs)
            .zip(turns.sin.chunks_exact(pairs));
        for (token, (cos, sin)) in x.chunks_exact_mut(stride).zip(turns) {
            pointwise::rotate(&mut token[..width], self.head_dim, cos, sin);
        }
    }

    /// Writes keys and values, `fresh`: `[tokens, 2 kv_width]`, to the spans' slots.
    fn write(&self, fresh: &[f32], layer: &mut LayerKv, spans: &[Span]) {
        let capacity = layer.capacity;
        let Storage::Host(kv) = &mut layer.storage else {
            unreachable!("a fused layer is given the cache that its model made");
        };
        let slots = spans
            .iter()
            .flat_map(|span| (span.start..span.start + span.len).map(|at| (span.row, at)));
        for (token, (row, position)) in fresh.chunks_exact(2 * self.kv_width()).zip(slots) {
            let (keys, values) = token.split_at(self.kv_width());
            for head in 0..self.n_kv_heads {
                let from = head * self.head_dim..(head + 1) * self.head_dim;
                let to = ((row * self.n_kv_heads + head) * capacity + position) * self.head_dim;
                kv.write(to, &keys[from.clone()], &values[from]);
            }
        }
    }

    /// Attention of every token; `q` and the result: `[tokens, q_width]`.
    fn attend(&self, q: &[f32], layer: &LayerKv, spans: &[Span]) -> Vec<f32> {
        let heads = (self.n_kv_heads, self.head_dim);
        attend::attend(q, layer, spans, heads, &self.scoring)
    }

    /// Room for `spans` alone, which are whole prompts and see what they would see of `kv`, and where they stand in it.
    fn room(&self, spans: &[Span], kv: &LayerKv) -> Result<(LayerKv, Vec<Span>)> {
        let spans = Span::prompts(spans.iter().map(|span| span.len));
        let longest = spans.iter().map(|span| span.len).max().unwrap_or(0);
        let Storage::Host(kept) = &kv.storage else {
            unreachable!("a fused layer is given the cache that its model made");
        };
        let storage = Storage::Host(HostKv::new(kept.kept()));
        let mut layer = LayerKv {
            window: kv.window,
            ..LayerKv::new(spans.len(), longest, storage)
        };
        layer.grow(longest, (self.n_kv_heads, self.head_dim))?;
        Ok((layer, spans))
    }
}

impl FusedLinear {
    /// Projections of the same input as one, so that a step reads its input once.
    pub(crate) fn stack(parts: &[&Linear], checkpoint: &Checkpoint) -> Result<Self> {
        let weights: Vec<&Matrix> = parts.iter().map(|part| &part.weight).collect();
        let weight = Packed::read(checkpoint, &weights, false)?;
        let mut bias = Vec::new();
        for part in parts.iter().filter_map(|part| part.bias.as_ref()) {
            bias.extend(wide(part)?);
        }
        Ok(Self {
            bias: (bias.len() == weight.out_width()).then_some(bias),
            weight,
        })
    }

    fn out_width(&self) -> usize {
        self.weight.out_width()
    }

    /// `x`: `[tokens, in_width]` to `[tokens, out_width]`, in f32.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.apply(&x.flatten_all()?.to_vec1::<f32>()?);
        let shape = (x.dim(0)?, self.out_width());
        Ok(Tensor::from_vec(y, shape, &Device::Cpu)?)
    }

    /// `x`: `[tokens, in_width]` to `[tokens, out_width]`.
    fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; x.len() / self.weight.in_width() * self.out_width()];
        self.weight.matmul(x, &mut y);
        if let Some(bias) = &self.bias {
            for y in y.chunks_exact_mut(self.out_width()) {
                add(y, bias);
            }
        }
        y
    }
}

impl FusedNorms {
    fn new(norms: &Norms) -> Result<Self> {
        let norm = |norm: &Option<Norm>| norm.as_ref().map(FusedNorm::new).transpose();
        Ok(Self {
            before: norm(&norms.before)?,
            after: norm(&norms.after)?,
            sum: norm(&norms.sum)?,
        })
    }

    /// What the sub-layer reads of `x`; `scratch` is of the same size.
    fn before<'a>(&self, x: &'a [f32], scratch: &'a mut [f32]) -> &'a [f32] {
        match &self.before {
            None => x,
            Some(norm) => {
                norm.apply(x, scratch);
                scratch
            }
        }
    }

    /// Adds what the sub-layer gave to the state in front of it; `scratch` is of the same size.
    fn join(&self, state: &mut [f32], output: &[f32], scratch: &mut [f32]) {
        match &self.after {
            None => add(state, output),
            Some(norm) => {
                norm.apply(output, scratch);
                add(state, scratch);
            }
        }
        if let Some(norm) = &self.sum {
            norm.apply(state, scratch);
            state.copy_from_slice(scratch);
        }
    }
}

impl FusedNorm {
    fn new(norm: &Norm) -> Result<Self> {
        Ok(match norm {
            Norm::Rms { weight, eps, .. } => FusedNorm::Rms {
                weight: wide(weight)?,
                eps: *eps as f32,
            },
            Norm::Layer {
                weight, bias, eps, ..
            } => FusedNorm::Layer {
                weight: wide(weight)?,
                bias: wide(bias)?,
                eps: *eps as f32,
            },
        })
    }

    fn apply(&self, x: &[f32], out: &mut [f32]) {
        match self {
            FusedNorm::Rms { weight, eps } => pointwise::rms_norm(x, weight, *eps, out),
            FusedNorm::Layer { weight, bias, eps } => {
                pointwise::layer_norm(x, weight, bias, *eps, out);
            }
        }
    }
}

impl FusedHead {
    pub(crate) fn new(
        frame: &Frame,
        config: &ModelConfig,
        checkpoint: &Checkpoint,
    ) -> Result<Self> {
        let project = frame.project_out.as_ref();
        Ok(Self {
            norm: frame.final_norm.as_ref().map(FusedNorm::new).transpose()?,
            project: project
                .map(|linear| FusedLinear::stack(&[linear], checkpoint))
                .transpose()?,
            weight: Packed::read(checkpoint, &[&frame.head(config)], true)?,
            screen: OnceLock::new(),
            cap: config.logit_cap.map(|cap| cap as f32),
        })
    }

    /// `[vocab_size, d_embed]`: what embeds tokens too where the two are one.
    pub(crate) fn weight(&self) -> &Packed {
        &self.weight
    }

    /// Logits `[tokens, vocab_size]` of `hidden`: `[tokens, d_model]`.
    pub(crate) fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let state = self.state(hidden)?;
        let mut logits = vec![0.0; hidden.dim(0)? * self.weight.out_width()];
        self.weight.matmul(&state, &mut logits);
        self.capped(logits, self.weight.out_width())
    }

    /// As [`CausalLm::shortlists`](crate::CausalLm::shortlists).
    pub(crate) fn shortlists(&self, hidden: &Tensor, count: usize) -> Result<Vec<Shortlist>> {
        let screen = match self.screen.get() {
            Some(screen) => screen,
            None => {
                let screen = Screen::of(&self.weight)?;
                self.screen.get_or_init(|| screen)
            }
        };
        screen.lists(&self.weight, &self.state(hidden)?, count)
    }

    /// As [`CausalLm::head_of`](crate::CausalLm::head_of).
    pub(crate) fn forward_of(&self, hidden: &Tensor, lists: &[&Shortlist]) -> Result<Tensor> {
        let states = self.state(hidden)?;
        let states = states.chunks_exact(self.weight.in_width());
        let logits: Vec<f32> = lists
            .iter()
            .zip(states)
            .flat_map(|(list, state)| list.products(state))
            .collect();
        self.capped(logits, lists.first().map_or(0, |list| list.ids().len()))
    }

    /// What the weight is multiplied with, `[tokens, d_embed]`.
    fn state(&self, hidden: &Tensor) -> Result<Vec<f32>> {
        let mut state = hidden.flatten_all()?.to_vec1::<f32>()?;
        if let Some(norm) = &self.norm {
            let raw = state;
            state = vec![0.0; raw.len()];
            norm.apply(&raw, &mut state);
        }
        if let Some(project) = &self.project {
            state = project.apply(&state);
        }
        Ok(state)
    }

    /// `[_, width]`.
    fn capped(&self, mut logits: Vec<f32>, width: usize) -> Result<Tensor> {
        if let Some(cap) = self.cap {
            pointwise::soft_cap(&mut logits, cap);
        }
        let shape = (logits.len() / width.max(1), width);
        Ok(Tensor::from_vec(logits, shape, &Device::Cpu)?)
    }
}

/// The values of `[_]`, in f32.
fn wide(values: &Tensor) -> Result<Vec<f32>> {
    Ok(values.to_dtype(DType::F32)?.to_vec1()?)
}

fn add(sum: &mut [f32], term: &[f32]) {
    for (sum, term) in sum.iter_mut().zip(term) {
        *sum += term;
    }
}
