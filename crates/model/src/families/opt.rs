//! OPT (arXiv 2205.01068), as `modeling_opt.py` of transformers names its tensors: learned positions, ReLU, and for one size
//! norms behind each sum and an embedding of another width than the layers.

use super::Family;
use super::names::Names;
use crate::checkpoint::Checkpoint;
use crate::config::{Activation, Biases, ConfigFile, ModelConfig, NormPlacement, PositionScheme};
use crate::error::Result;
use crate::matrix::Matrix;
use crate::weights::{Frame, LayerWeights, Mlp, Norms};

/// What PyTorch's layer norm adds to the variance.
const NORM_EPS: f64 = 1e-5;

/// Rows of the table of positions that stand for padding.
const OFFSET: usize = 2;

pub(super) fn config(file: &ConfigFile) -> Result<ModelConfig> {
    let plain = ModelConfig::plain(file, Family::Opt, file.usize("ffn_dim")?, None)?;
    for (key, plain) in [
        ("layer_norm_elementwise_affine", true),
        ("_remove_final_layer_norm", false),
    ] {
        if file.bool_or(key, plain)? != plain {
            return Err(file.error(format!(
                "`{key}: {}` is not supported; no released OPT has it",
                !plain
            )));
        }
    }
    let bias = file.bool_or("enable_bias", true)?;
    Ok(ModelConfig {
        d_embed: file.usize_or("word_embed_proj_dim", Some(plain.d_model))?,
        n_kv_heads: plain.n_heads,
        norm_eps: NORM_EPS,
        max_positions: Some(file.usize("max_position_embeddings")?),
        positions: vec![PositionScheme::Learned],
        activation: file.activation("activation_function", Activation::Relu)?,
        norms: match file.bool_or("do_layer_norm_before", true)? {
            true => NormPlacement::Before,
            false => NormPlacement::Sum,
        },
        tied_head: file.bool_or("tie_word_embeddings", true)?,
        biases: Biases {
            qkv: bias,
            attention_out: bias,
            mlp: bias,
        },
        ..plain
    })
}

fn base(checkpoint: &Checkpoint) -> Names<'_> {
    Names::base(
        checkpoint,
        &["model.decoder.", "decoder.", ""],
        "embed_positions.weight",
    )
}

pub(super) fn frame(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<Frame> {
    let base = base(checkpoint);
    let (d, d_embed) = (config.d_model, config.d_embed);
    let (embedding, head) =
        base.embedding_and_head(config, "embed_tokens.weight", &["lm_head.weight"])?;
    let count = config.max_positions.unwrap_or_default();
    let positions = base.tensor("embed_positions.weight", &[count + OFFSET, d])?;
    let projects = d != d_embed;
    let projection = |name: &str, rows: usize, columns: usize| {
        projects
            .then(|| base.linear(name, rows, columns, false))
            .transpose()
    };
    // Norms behind the sums leave nothing to normalise at the end.
    let final_norm = (config.norms == NormPlacement::Before)
        .then(|| base.layer_norm("final_layer_norm", d, NORM_EPS))
        .transpose()?;
    Ok(Frame {
        positions: Some(positions.narrow(0, OFFSET, count)?),
        positions_at: Some(
            Matrix::whole(base.full("embed_positions.weight"), count + OFFSET, d)
                .pick(OFFSET, count, count, count),
        ),
        project_in: projection("project_in", d, d_embed)?,
        project_out: projection("project_out", d_embed, d)?,
        final_norm,
        ..Frame::new(embedding, head)
    })
}

pub(super) fn layer(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    index: usize,
) -> Result<LayerWeights> {
    let names = base(checkpoint).layer("layers", index);
    let (d, f, bias) = (config.d_model, config.d_ff, config.biases.mlp);
    let norms = |name: &str| -> Result<Norms> {
        let norm = names.layer_norm(name, d, NORM_EPS)?;
        Ok(match config.norms {
            NormPlacement::Sum => Norms {
                sum: Some(norm),
                ..Norms::default()
            },
            _ => Norms::before(norm),
        })
    };
    Ok(LayerWeights {
        attention_norms: norms("self_attn_layer_norm")?,
        attention: names.under("self_attn").attention(config, "out_proj")?,
        mlp_norms: norms("final_layer_norm")?,
        mlp: Mlp {
            gate: None,
            up: names.linear("fc1", f, d, bias)?,
            down: names.linear("fc2", d, f, bias)?,
        },
    })
}
