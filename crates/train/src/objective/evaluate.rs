//! The sum of a step's losses, with gradients.
//!
//! The logits of an exit are the largest thing that a step holds (tokens times vocabulary), so where there are several exits
//! each is run forward and backward on its own, and only the gradients of its state and of the head's weights stay.

use super::losses::{Divergence, distances};
use super::{Loss, Measure, Side, Step, Term};
use crate::data::{Batch, Depths};
use crate::error::{Result, TrainError};
use crate::net::{LayerUse, Net, Run};
use crate::ops::{CrossEntropy, to_vec};
use candle_core::{Device, Tensor, Var};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a step gives.
#[derive(Debug)]
pub struct Pass {
    /// The weighted sum of the losses: a scalar with gradients.
    pub loss: Tensor,
    /// Each loss of the step before it is weighed, in its order; 0 where it compares the whole network with itself.
    pub terms: Vec<f32>,
    /// Cross-entropy of the last layer, where that is one of them.
    pub last: Option<f32>,
    /// What ran under the depths of the step, layer by layer.
    pub ran: Vec<LayerUse>,
    /// What ran beside that in a pass through all layers; empty where there was none.
    pub full_ran: Vec<LayerUse>,
}

impl Net {
    /// Runs `batch` under the depths of `step`, and through all layers too where a loss asks for it, and adds the losses up.
    ///
    /// # Errors
    /// A batch that has more positions than the model, or counts no token; depths of another batch; a loss that the model
    /// does not have.
    pub fn losses(&self, batch: &Batch, step: &Step) -> Result<Pass> {
        let n_layers = self.shape().n_layers;
        step.check(n_layers)?;
        if batch.counted.is_empty() {
            return Err(TrainError::Config(
                "a batch has no response token to learn from".to_owned(),
            ));
        }
        let passes = Passes::run(self, batch, step)?;
        let mut sum = Sum {
            net: self,
            values: vec![0.0; step.terms.len()],
            parts: Vec::new(),
        };
        sum.add_heads(batch, step, &passes)?;
        for (index, term) in step.terms.iter().enumerate() {
            if let Loss::States {
                measure,
                at,
                trains_full,
            } = term.loss
                && let Some(depths) = &step.depths
                && let Some(apart) = passes.apart(batch, depths, measure, at, trains_full)?
            {
                sum.add(index, term.weight, apart)?;
            }
        }
        let is_last = |term: &Term| term.loss == Loss::Exit { layers: n_layers };
        let last = step.terms.iter().position(is_last);
        Ok(Pass {
            last: last.map(|index| sum.values[index]),
            loss: sum.total()?,
            terms: sum.values,
            ran: passes.drawn.ran,
            full_ran: passes.full.map_or(Vec::new(), |full| full.ran),
        })
    }
}

/// The passes through the layers that a step needs.
struct Passes {
    drawn: Run,
    /// `None` where nothing asks for it, or where the step's own pass is one through all layers.
    full: Option<Run>,
}

impl Passes {
    fn run(net: &Net, batch: &Batch, step: &Step) -> Result<Self> {
        let (mut exits, mut states) = (BTreeSet::new(), BTreeSet::new());
        let mut reads_full = false;
        for term in &step.terms {
            match term.loss {
                Loss::Exit { layers } => {
                    exits.insert(layers);
                }
                Loss::Logits { layers, .. } => {
                    exits.insert(layers);
                    reads_full = true;
                }
                Loss::Full => reads_full = true,
                Loss::States { .. } => {
                    states.extend(0..net.shape().n_layers);
                    reads_full = true;
                }
            }
        }
        let (depths, trains_full) = (step.depths.as_ref(), step.trains_full());
        exits.extend(&states);
        let full = match reads_full && depths.is_some() {
            true => Some(net.run(batch, None, &states, trains_full)?),
            false => None,
        };
        Ok(Self {
            drawn: net.run(batch, depths, &exits, true)?,
            full,
        })
    }

    /// The pass through all layers.
    fn whole(&self) -> &Run {
        self.full.as_ref().unwrap_or(&self.drawn)
    }

    /// Mean distance of the states on one side of the layers that response tokens run to those of the whole network; `None`
    /// where they run none.
    fn apart(
        &self,
        batch: &Batch,
        depths: &Depths,
        measure: Measure,
        at: Side,
        trains_full: bool,
    ) -> Result<Option<Tensor>> {
        let full = self.whole();
        let mut sum: Option<Tensor> = None;
        let mut count = 0;
        for layer in 0..full.ran.len() {
            let positions = batch.responses_through(depths, layer);
            if positions.is_empty() {
                continue;
            }
            let point = match at {
                Side::Input => layer,
                Side::Output => layer + 1,
            };
            let mine = select(&self.drawn.states[&point], &positions)?;
            let mut theirs = select(&full.states[&point], &positions)?;
            if !trains_full {
                theirs = theirs.detach();
            }
            let of_layer = distances(&mine, &theirs, measure)?.sum_all()?;
            sum = Some(match sum {
                Some(sum) => (sum + of_layer)?,
                None => of_layer,
            });
            count += positions.len();
        }
        match sum {
            Some(sum) => Ok(Some((sum / count as f64)?)),
            None => Ok(None),
        }
    }
}

/// Rows of a tensor.
fn select(states: &Tensor, rows: &[u32]) -> Result<Tensor> {
    Ok(states.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?)
}

/// Losses that are being added up.
struct Sum<'a> {
    net: &'a Net,
    /// Of each term, before it is weighed.
    values: Vec<f32>,
    /// Weighed, with gradients.
    parts: Vec<Tensor>,
}

/// States that go through the head, and the terms that read what comes out.
struct Head<'a> {
    states: Tensor,
    terms: Vec<(usize, &'a Term)>,
}

impl Sum<'_> {
    fn add(&mut self, index: usize, weight: f64, loss: Tensor) -> Result<()> {
        self.values[index] = loss.to_scalar()?;
        self.parts.push(weigh(loss, weight)?);
        Ok(())
    }

    /// Everything that reads logits.
    fn add_heads(&mut self, batch: &Batch, step: &Step, passes: &Passes) -> Result<()> {
        let n_layers = self.net.shape().n_layers;
        let mut by_exit: BTreeMap<usize, Vec<(usize, &Term)>> = BTreeMap::new();
        let mut whole = Vec::new();
        for (index, term) in step.terms.iter().enumerate() {
            match term.loss {
                // The whole network has nothing to learn from itself.
                Loss::Logits { layers, .. } if layers == n_layers && step.depths.is_none() => {}
                Loss::Exit { layers } | Loss::Logits { layers, .. } => {
                    by_exit.entry(layers).or_default().push((index, term));
                }
                Loss::Full => whole.push((index, term)),
                Loss::States { .. } => {}
            }
        }
        let counted = |run: &Run, layers: usize| select(&run.states[&layers], &batch.counted);
        let mut heads = Vec::new();
        for (layers, terms) in by_exit {
            heads.push(Head {
                states: counted(&passes.drawn, layers)?,
                terms,
            });
        }
        if !whole.is_empty() {
            heads.push(Head {
                states: counted(passes.whole(), n_layers)?,
                terms: whole,
            });
        }
        let teacher = match step.has_teacher_logits() {
            true => {
                let states = counted(passes.whole(), n_layers)?.detach();
                to_vec(&self.net.logits(&states)?)?
            }
            false => Vec::new(),
        };
        let teacher = &Arc::new(teacher);
        if let [head] = &heads[..] {
            let losses = self.read(&head.states, head, batch, teacher)?;
            self.parts.extend(losses);
            return Ok(());
        }
        self.add_apart(&heads, batch, teacher)
    }

    /// The weighed losses of what the head makes of `states`.
    fn read(
        &mut self,
        states: &Tensor,
        head: &Head<'_>,
        batch: &Batch,
        teacher: &Arc<Vec<f32>>,
    ) -> Result<Vec<Tensor>> {
        let logits = self.net.logits(states)?;
        let mut losses = Vec::new();
        for (index, term) in &head.terms {
            let loss = match term.loss {
                Loss::Logits { temperature, .. } => logits.apply_op1(Divergence {
                    teacher: Arc::clone(teacher),
                    temperature: temperature as f32,
                })?,
                _ => logits.apply_op1(CrossEntropy {
                    targets: batch.targets.clone(),
                })?,
            };
            self.values[*index] = loss.to_scalar()?;
            losses.push(weigh(loss, term.weight)?);
        }
        Ok(losses)
    }

    /// Each head forward and backward on its own. What is added is a tensor of the same value whose gradients are those that
    /// were found: for a tensor x with the gradient g, the sum of x times g.
    fn add_apart(
        &mut self,
        heads: &[Head<'_>],
        batch: &Batch,
        teacher: &Arc<Vec<f32>>,
    ) -> Result<()> {
        let mut of_weights: BTreeMap<&str, Tensor> = BTreeMap::new();
        let mut carried = Vec::new();
        let mut value = 0.0;
        let net = self.net;
        for head in heads {
            let states = Var::from_tensor(&head.states.detach())?;
            let Some(loss) = added(self.read(&states, head, batch, teacher)?)? else {
                continue;
            };
            value += f64::from(loss.to_scalar::<f32>()?);
            let grads = loss.backward()?;
            for name in net.names() {
                if let Some(grad) = grads.get(net.var(name)) {
                    let sum = match of_weights.remove(name.as_str()) {
                        Some(sum) => (sum + grad)?,
                        None => grad.clone(),
                    };
                    of_weights.insert(name, sum.detach());
                }
            }
            if let Some(grad) = grads.get(&states) {
                carried.push((&head.states * grad.detach())?.sum_all()?);
            }
        }
        for (name, grad) in of_weights {
            carried.push((net.var(name).as_tensor() * grad)?.sum_all()?);
        }
        if let Some(carried) = added(carried)? {
            let nothing = (&carried - carried.detach())?;
            self.parts.push((nothing + value)?);
        }
        Ok(())
    }

    fn total(&self) -> Result<Tensor> {
        added(self.parts.clone())?.ok_or_else(|| {
            TrainError::Config("a step has no loss that a weight could learn from".to_owned())
        })
    }
}

/// `weight * loss`; the plain loss goes through as it is.
fn weigh(loss: Tensor, weight: f64) -> Result<Tensor> {
    match weight {
        1.0 => Ok(loss),
        _ => Ok((loss * weight)?),
    }
}

/// The sum, in order.
fn added(parts: Vec<Tensor>) -> Result<Option<Tensor>> {
    let mut parts = parts.into_iter();
    let Some(mut sum) = parts.next() else {
        return Ok(None);
    };
    for part in parts {
        sum = (sum + part)?;
    }
    Ok(Some(sum))
}
