//! Parts of layers that are computed again for their gradients, so that what lies between need not be kept (gradient
//! checkpointing, arXiv 1604.06174).

use crate::error::TrainError;
use crate::layer::Layer;
use crate::ops::{floats, to_vec};
use candle_core::{
    CpuStorage, CustomOp3, Device, Error, Layout, Result, Shape, Tensor, TensorId, Var,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Gradients of weights, found beside those that candle collects.
#[derive(Default)]
pub(crate) struct Found(Mutex<HashMap<TensorId, Tensor>>);

impl Found {
    fn add(&self, var: &Var, grad: &Tensor) -> Result<()> {
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = match found.get(&var.id()) {
            Some(sum) => (sum + grad)?,
            None => grad.clone(),
        };
        found.insert(var.id(), sum.detach());
        Ok(())
    }

    /// All of them, which are gone then.
    pub(crate) fn take(&self) -> HashMap<TensorId, Tensor> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A part of a layer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    /// Attention over rows of so many positions.
    Attention { seq: usize },
    /// The MLP.
    Mlp,
}

/// What half a layer makes of `(state, input)`, both `[tokens, d_model]`; the third argument is a variable that is there so that
/// the gradients of the layer's weights are asked for where neither of the others has any.
pub(crate) struct Again {
    pub(crate) layer: Arc<Layer>,
    pub(crate) half: Half,
    pub(crate) found: Arc<Found>,
}

impl Again {
    fn run(&self, state: &Tensor, input: &Tensor) -> Result<Tensor> {
        match self.half {
            Half::Attention { seq } => self.layer.attend(state, seq),
            Half::Mlp => self.layer.feed(state, input),
        }
        .map_err(|error| match error {
            TrainError::Tensor(error) => error,
            other => Error::wrap(other),
        })
    }
}

impl CustomOp3 for Again {
    fn name(&self) -> &'static str {
        "train-again"
    }

    fn cpu_fwd(
        &self,
        state: &CpuStorage,
        state_layout: &Layout,
        input: &CpuStorage,
        input_layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let tensor = |storage, layout: &Layout| {
            Tensor::from_slice(floats(storage, layout)?, layout.shape(), &Device::Cpu)
        };
        let (state, input) = (tensor(state, state_layout)?, tensor(input, input_layout)?);
        let output = to_vec(&self.run(&state, &input)?)?;
        Ok((CpuStorage::F32(output), state_layout.shape().clone()))
    }

    fn bwd(
        &self,
        state: &Tensor,
        input: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let one = state.id() == input.id();
        let state = Var::from_tensor(&state.detach())?;
        let input = match one {
            true => state.clone(),
            false => Var::from_tensor(&input.detach())?,
        };
        let output = self.run(&state, &input)?;
        let grads = (output * grad.detach())?.sum_all()?.backward()?;
        for var in &self.layer.variables {
            if let Some(grad) = grads.get(var) {
                self.found.add(var, grad)?;
            }
        }
        let of = |var: &Var| grads.get(var).map(Tensor::detach);
        Ok((of(&state), if one { None } else { of(&input) }, None))
    }
}
