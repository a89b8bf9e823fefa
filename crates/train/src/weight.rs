//! The pieces of a layer: projections whose matrix is trained or kept as it is, and norms.

use crate::error::Result;
use crate::layer_norm::LayerNorm;
use crate::ops::{RmsNorm, floats, values};
use crate::products::{add_product, product, transposed_product};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Device, Error, Layout, Shape, Tensor, Var,
};
use skipbench_model::KeptMatrix;
use std::sync::Arc;

/// A matrix, `[rows, columns]`.
#[derive(Clone)]
pub(crate) enum Weight {
    /// In f32, with gradients.
    Trained(Var),
    /// As it is, in few bits: widened for each product, so that only one is wide at a time.
    Kept(Arc<KeptMatrix>),
}

/// `y = x W^T + b`, and what an adapter adds.
#[derive(Clone)]
pub(crate) struct Linear {
    pub(crate) weight: Weight,
    /// `[out]`
    pub(crate) bias: Option<Tensor>,
    pub(crate) adapter: Option<LowRank>,
}

/// `scale * x A^T B^T` (LoRA, arXiv 2106.09685, equation 3).
#[derive(Clone)]
pub(crate) struct LowRank {
    /// `[rank, in]`
    pub(crate) a: Tensor,
    /// `[out of the whole matrix, rank]`
    pub(crate) b: Tensor,
    /// Rows of `b` that are this projection's, where its matrix is a part of one in the checkpoint.
    pub(crate) rows: Option<Tensor>,
    pub(crate) scale: f64,
}

/// Normalisation over as many channels as there are weights.
#[derive(Clone)]
pub(crate) enum Norm {
    /// `x / rms(x) * weight` (arXiv 1910.07467).
    Rms { weight: Tensor, eps: f32 },
    /// Layer norm (arXiv 1607.06450).
    Layer {
        weight: Tensor,
        bias: Tensor,
        eps: f32,
    },
}

/// Norms around a sub-layer `f`: `x` becomes `sum(x + after(f(before(x))))`; one that is not there changes nothing.
#[derive(Clone)]
pub(crate) struct Norms {
    pub(crate) before: Option<Norm>,
    pub(crate) after: Option<Norm>,
    pub(crate) sum: Option<Norm>,
}

impl Weight {
    /// `x W^T`; `x`: `[tokens, columns]`.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Weight::Trained(var) => x.apply_op2(var, TrainedProduct)?,
            Weight::Kept(kept) => x.apply_op1(KeptProduct(Arc::clone(kept)))?,
        })
    }

    /// These rows: `[ids, columns]`.
    pub(crate) fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        Ok(match self {
            Weight::Trained(var) => var.index_select(&Tensor::new(ids, &Device::Cpu)?, 0)?,
            Weight::Kept(kept) => Tensor::from_vec(
                kept.rows_of(ids)?,
                (ids.len(), kept.columns()),
                &Device::Cpu,
            )?,
        })
    }

    /// Bytes of a kept matrix.
    pub(crate) fn kept_bytes(&self) -> usize {
        match self {
            Weight::Trained(_) => 0,
            Weight::Kept(kept) => kept.bytes(),
        }
    }
}

impl Linear {
    /// `x`: `[tokens, in]` to `[tokens, out]`.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let y = match (&self.weight, &self.adapter) {
            (Weight::Kept(kept), Some(low)) => {
                let op = AdaptedProduct {
                    kept: KeptProduct(Arc::clone(kept)),
                    scale: low.scale as f32,
                };
                x.apply_op3(&low.a, &low.upper()?, op)?
            }
            (weight, Some(low)) => {
                let inner = (x.matmul(&low.a.t()?)? * low.scale)?;
                (weight.apply(x)? + inner.matmul(&low.upper()?.t()?)?)?
            }
            (weight, None) => weight.apply(x)?,
        };
        match &self.bias {
            None => Ok(y),
            Some(bias) => Ok(y.broadcast_add(bias)?),
        }
    }
}

impl LowRank {
    /// The rows of `b` that are this projection's.
    fn upper(&self) -> Result<Tensor> {
        Ok(match &self.rows {
            None => self.b.clone(),
            Some(rows) => self.b.index_select(rows, 0)?,
        })
    }
}

impl Norm {
    fn weight(&self) -> &Tensor {
        match self {
            Norm::Rms { weight, .. } | Norm::Layer { weight, .. } => weight,
        }
    }

    /// `x`: `[tokens, _]`, normalised over as many channels at a time as there are weights.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let width = self.weight().elem_count();
        if x.dim(1)? != width {
            let parts = x.reshape((x.elem_count() / width, width))?;
            return Ok(self.over_rows(&parts)?.reshape(x.shape())?);
        }
        self.over_rows(x)
    }

    fn over_rows(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Norm::Rms { weight, eps } => x.apply_op2(weight, RmsNorm { eps: *eps })?,
            Norm::Layer { weight, bias, eps } => {
                x.apply_op3(weight, bias, LayerNorm { eps: *eps })?
            }
        })
    }
}

impl Norms {
    /// What the sub-layer reads.
    pub(crate) fn read(&self, x: &Tensor) -> Result<Tensor> {
        match &self.before {
            None => Ok(x.clone()),
            Some(norm) => norm.apply(x),
        }
    }

    /// Adds what the sub-layer gave to the state in front of it.
    pub(crate) fn join(&self, state: &Tensor, output: Tensor) -> Result<Tensor> {
        let output = match &self.after {
            None => output,
            Some(norm) => norm.apply(&output)?,
        };
        let sum = (state + output)?;
        match &self.sum {
            None => Ok(sum),
            Some(norm) => norm.apply(&sum),
        }
    }
}

/// `x W^T` of a matrix with gradients. `x`: `[tokens, columns]`, `w`: `[rows, columns]`.
struct TrainedProduct;

impl CustomOp2 for TrainedProduct {
    fn name(&self) -> &'static str {
        "train-product"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (rows, columns) = w_layout.shape().dims2()?;
        let tokens = x_layout.shape().dims2()?.0;
        let y = product(
            floats(x, x_layout)?,
            floats(w, w_layout)?,
            [rows, columns],
            false,
        );
        Ok((CpuStorage::F32(y), Shape::from((tokens, rows))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (rows, columns) = w.dims2()?;
        let grads = values(grad)?;
        let dx = product(&grads, &values(w)?, [rows, columns], true);
        let dw = transposed_product(&grads, &values(x)?, [rows, columns]);
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), x.device())?),
            Some(Tensor::from_vec(dw, w.shape(), w.device())?),
        ))
    }
}

/// `x W^T` of a matrix without gradients.
struct KeptProduct(Arc<KeptMatrix>);

impl KeptProduct {
    fn of(&self, x: &[f32], back: bool) -> candle_core::Result<Vec<f32>> {
        let kept = &self.0;
        let wide = kept.widen().map_err(Error::wrap)?;
        Ok(product(x, &wide, [kept.rows(), kept.columns()], back))
    }
}

impl CustomOp1 for KeptProduct {
    fn name(&self) -> &'static str {
        "train-kept-product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = floats(x, layout)?;
        let rows = x.len() / self.0.columns().max(1);
        let y = self.of(x, false)?;
        Ok((CpuStorage::F32(y), Shape::from((rows, self.0.rows()))))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let dx = self.of(&values(grad)?, true)?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

/// `x W^T + scale x A^T B^T` of a matrix without gradients, in one piece: nothing as wide as the result is kept or added up on the
/// way back. `x`: `[tokens, in]`, `a`: `[rank, in]`, `b`: `[out, rank]`.
struct AdaptedProduct {
    kept: KeptProduct,
    scale: f32,
}

impl AdaptedProduct {
    /// Rows and columns of the matrix, and the rank of what is added.
    fn sizes(&self, a: &[f32]) -> (usize, usize, usize) {
        let (rows, columns) = (self.kept.0.rows(), self.kept.0.columns());
        (rows, columns, a.len() / columns.max(1))
    }
}

impl CustomOp3 for AdaptedProduct {
    fn name(&self) -> &'static str {
        "train-adapted-product"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, a, b) = (
            floats(x, x_layout)?,
            floats(a, a_layout)?,
            floats(b, b_layout)?,
        );
        let (rows, columns, rank) = self.sizes(a);
        let mut y = self.kept.of(x, false)?;
        let inner = scaled(product(x, a, [rank, columns], false), self.scale);
        add_product(&mut y, &inner, b, [rows, rank], false);
        let tokens = x.len() / columns.max(1);
        Ok((CpuStorage::F32(y), Shape::from((tokens, rows))))
    }

    /// With g the gradient and h = scale g B: dx = g W + h A, dA = h^T x, dB = scale g^T (x A^T).
    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (xs, a_s, bs, grads) = (values(x)?, values(a)?, values(b)?, values(grad)?);
        let (rows, columns, rank) = self.sizes(&a_s);
        let inner = scaled(product(&grads, &bs, [rows, rank], true), self.scale);
        let mut dx = self.kept.of(&grads, true)?;
        add_product(&mut dx, &inner, &a_s, [rank, columns], true);
        let da = transposed_product(&inner, &xs, [rank, columns]);
        let lower = scaled(product(&xs, &a_s, [rank, columns], false), self.scale);
        let db = transposed_product(&grads, &lower, [rows, rank]);
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), x.device())?),
            Some(Tensor::from_vec(da, a.shape(), a.device())?),
            Some(Tensor::from_vec(db, b.shape(), b.device())?),
        ))
    }
}

fn scaled(mut values: Vec<f32>, by: f32) -> Vec<f32> {
    values.iter_mut().for_each(|value| *value *= by);
    values
}
