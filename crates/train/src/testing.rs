//! A small network and what its gradients are checked with.

use crate::config::{LossOn, ModelShape};
use crate::data::{Batch, Pair};
use crate::net::Net;
use crate::objective::Step;
use crate::ops::to_vec;
use candle_core::backprop::GradStore;

/// Layers of [`net`].
pub(crate) const LAYERS: usize = 3;

fn shape(tied_head: bool) -> ModelShape {
    ModelShape {
        vocab_size: 11,
        d_model: 8,
        n_layers: LAYERS,
        n_heads: 2,
        n_kv_heads: 1,
        d_ff: 12,
        rope_theta: 100.0,
        norm_eps: 1e-5,
        max_positions: 16,
        tied_head,
    }
}

/// Prompts of four and two tokens, responses of four and two.
pub(crate) fn pairs() -> [Pair; 2] {
    [
        ([1, 5, 6, 3].to_vec(), [7, 4, 9, 2].to_vec()),
        ([1, 8].to_vec(), [10, 2].to_vec()),
    ]
    .map(|(prompt, response)| Pair { prompt, response })
}

/// [`pairs`], with a loss on every token: ten of them.
pub(crate) fn batch() -> Batch {
    Batch::new(&pairs(), LossOn::All)
}

/// A network far enough from zero that every part of it matters.
pub(crate) fn net(tied_head: bool) -> Net {
    let net = Net::new(&shape(tied_head), 3).unwrap();
    for name in net.names() {
        let var = net.var(name);
        let scaled = match var.rank() {
            1 => (var.as_tensor() * 0.9).unwrap(),
            _ => (var.as_tensor() * 20.0).unwrap(),
        };
        var.set(&scaled).unwrap();
    }
    net
}

/// Gradients of a step.
pub(crate) fn gradients(net: &Net, step: &Step) -> GradStore {
    let pass = net.losses(&batch(), step).unwrap();
    pass.loss.backward().unwrap()
}

/// The slope of `loss` along the gradient of each weight, against the difference quotient; `loss` is what the gradients are of.
/// Weights for which `has_gradient` does not hold must have none.
pub(crate) fn check_slopes(
    net: &Net,
    grads: &GradStore,
    loss: impl Fn(&Net) -> f64,
    has_gradient: impl Fn(&str) -> bool,
) {
    for name in net.names() {
        let var = net.var(name);
        let grad = grads.get(var);
        if !has_gradient(name) {
            assert!(grad.is_none(), "{name} has a gradient");
            continue;
        }
        let grad = grad.unwrap_or_else(|| panic!("{name} has no gradient"));
        let squares = to_vec(grad).unwrap().into_iter().map(|g| g * g);
        let norm = squares.sum::<f32>().sqrt();
        assert!(norm > 1e-4, "{name} has no gradient");
        let direction = (grad / f64::from(norm)).unwrap();
        let start = var.as_tensor().copy().unwrap();
        let at = |step: f64| {
            var.set(&(&start + (&direction * step).unwrap()).unwrap())
                .unwrap();
            loss(net)
        };
        let h = 0.01;
        let slope = (at(h) - at(-h)) / (2.0 * h);
        var.set(&start).unwrap();
        let apart = (slope - f64::from(norm)).abs();
        assert!(
            apart < 0.02 * f64::from(norm) + 2e-4,
            "{name}: slope {slope}, gradient {norm}"
        );
    }
}

/// [`check_slopes`] of the sum of the losses of `step`, where every weight has a gradient.
pub(crate) fn check_gradients(tied_head: bool, step: &Step) {
    let net = net(tied_head);
    let loss = |net: &Net| {
        let pass = net.losses(&batch(), step).unwrap();
        f64::from(pass.loss.to_scalar::<f32>().unwrap())
    };
    check_slopes(&net, &gradients(&net, step), loss, |_| true);
}
