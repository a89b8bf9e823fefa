//! Rotary positions, scaled as transformers scales them (`modeling_rope_utils.py`).

use crate::batch::Span;
use crate::config::ConfigFile;
use crate::error::Result;
use serde_json::Value;
use std::borrow::Cow;
use std::f64::consts::PI;

/// Rotary embedding (arXiv 2104.09864). Of each head the first `2 * inv_freq.len()` channels turn, channel `i` together with
/// channel `i + inv_freq.len()`; the others pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Inverse frequencies after any scaling, one per pair of channels, in sequences up to the trained length.
    pub inv_freq: Vec<f32>,
    /// What they become in longer sequences.
    pub beyond: Beyond,
    /// Factor of cosines and sines.
    pub attention_factor: f32,
    /// Positions that the frequencies are made for, where they have an end.
    pub max_positions: Option<usize>,
}

/// The frequencies of a sequence that is longer than those that the model was trained on.
#[derive(Debug, Clone, PartialEq)]
pub enum Beyond {
    /// They stay.
    Same,
    /// Dynamic NTK scaling: the base grows with the sequence. A prompt takes the base of its length and each token behind it
    /// the base of its own position, as a cache fills up in transformers' `generate`.
    Ntk {
        /// Base up to the trained length.
        theta: f64,
        /// Growth of the context.
        factor: f64,
        /// Trained length in tokens.
        trained: usize,
        /// Channels that turn.
        dim: usize,
    },
    /// LongRoPE (arXiv 2402.13753): other frequencies for every position.
    Long {
        /// `[pairs]`
        inv_freq: Vec<f32>,
        /// Trained length in tokens.
        trained: usize,
    },
}

/// What a family says of its rotary positions outside the object of RoPE parameters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RopeDefaults {
    pub(crate) head_dim: usize,
    /// Base where the parameters name none.
    pub(crate) theta: f64,
    /// Share of a head's channels that turn.
    pub(crate) partial: f64,
    /// Trained length, where it does not stand with the parameters.
    pub(crate) trained: Option<usize>,
    /// What `yarn` and `su` mean to Phi-3.
    pub(crate) yarn_is_longrope: bool,
}

impl RopeDefaults {
    /// Whole heads turn, by the config's `rope_theta`.
    pub(crate) fn of(file: &ConfigFile, head_dim: usize) -> Result<Self> {
        Ok(Self {
            head_dim,
            theta: file.positive_or("rope_theta", 10_000.0)?,
            partial: 1.0,
            trained: match file.get("original_max_position_embeddings") {
                None => None,
                Some(_) => Some(file.usize("original_max_position_embeddings")?),
            },
            yarn_is_longrope: false,
        })
    }
}

/// RoPE parameters of one kind of layer, with errors that name the key.
struct Parameters<'a> {
    file: &'a ConfigFile,
    values: Option<&'a Value>,
}

impl Rope {
    /// Reads `values`, the object of RoPE parameters that [`ConfigFile::rope_parameters`] finds.
    ///
    /// # Errors
    /// An unknown type of scaling, or a parameter that it needs and that is missing or no positive number.
    pub(crate) fn read(
        file: &ConfigFile,
        values: Option<&Value>,
        defaults: RopeDefaults,
    ) -> Result<Self> {
        let parameters = Parameters { file, values };
        let theta = parameters.number_or("rope_theta", defaults.theta)?;
        let dim = (defaults.head_dim as f64 * defaults.partial) as usize;
        // An odd number of channels is rounded up, as by transformers.
        if dim == 0 || dim.next_multiple_of(2) > defaults.head_dim {
            return Err(file.error(format!(
                "RoPE cannot turn {dim} of the {} channels of a head; it turns pairs",
                defaults.head_dim
            )));
        }
        let max = file.usize("max_position_embeddings")?;
        let trained = match defaults.trained {
            Some(trained) => trained,
            None => parameters.number_or("original_max_position_embeddings", max as f64)? as usize,
        };
        let plain: Vec<f64> = (0..dim.div_ceil(2))
            .map(|pair| theta.powf(-((2 * pair) as f64) / dim as f64))
            .collect();
        let mut rope = Self {
            inv_freq: narrow(plain.iter().copied()),
            beyond: Beyond::Same,
            attention_factor: 1.0,
            max_positions: Some(max),
        };
        let stretched =
            |length: usize, factor: f64| Some(max.max((length as f64 * factor) as usize));
        match parameters.kind(defaults.yarn_is_longrope)? {
            "default" => {}
            "linear" => {
                let factor = parameters.number("factor")?;
                rope.inv_freq = narrow(plain.iter().map(|freq| freq / factor));
                rope.max_positions = stretched(max, factor);
            }
            "llama3" => rope.inv_freq = narrow(parameters.llama3(&plain, trained)?),
            "dynamic" => {
                rope.beyond = Beyond::Ntk {
                    theta,
                    factor: parameters.number("factor")?,
                    trained: max,
                    dim,
                };
                rope.max_positions = None;
            }
            "yarn" => {
                let factor = parameters.number_or("factor", max as f64 / trained as f64)?;
                rope.inv_freq = narrow(parameters.yarn(&plain, theta, dim, trained, factor)?);
                rope.attention_factor = parameters.yarn_attention(factor)? as f32;
                rope.max_positions = stretched(trained, factor);
            }
            "longrope" => {
                let scaled = |key: &str| -> Result<Vec<f32>> {
                    let factors = parameters.numbers(key, plain.len())?;
                    Ok(narrow(
                        plain.iter().zip(factors).map(|(freq, by)| freq / by),
                    ))
                };
                rope.inv_freq = scaled("short_factor")?;
                let inv_freq = scaled("long_factor")?;
                rope.beyond = Beyond::Long { inv_freq, trained };
                let factor = parameters.number_or("factor", max as f64 / trained as f64)?;
                let attention = match factor <= 1.0 {
                    true => 1.0,
                    false => (1.0 + factor.ln() / (trained as f64).ln()).sqrt(),
                };
                rope.attention_factor = parameters.number_or("attention_factor", attention)? as f32;
            }
            other => {
                return Err(file.error(format!(
                    "rope type `{other}` is not supported; default, linear, dynamic, yarn, longrope and llama3 are"
                )));
            }
        }
        Ok(rope)
    }

    /// The frequencies in a sequence of `len` tokens.
    pub(crate) fn frequencies(&self, len: usize) -> Cow<'_, [f32]> {
        match &self.beyond {
            Beyond::Ntk {
                theta,
                factor,
                trained,
                dim,
            } if len > *trained => {
                let dim = *dim as f64;
                let growth = factor * len as f64 / *trained as f64 - (factor - 1.0);
                let theta = theta * growth.powf(dim / (dim - 2.0));
                let pairs = 0..self.inv_freq.len();
                Cow::Owned(narrow(
                    pairs.map(|pair| theta.powf(-((2 * pair) as f64) / dim)),
                ))
            }
            Beyond::Long { inv_freq, trained } if len > *trained => Cow::Borrowed(inv_freq),
            _ => Cow::Borrowed(&self.inv_freq),
        }
    }

    /// Cosines and sines of the angles of every token of `spans`, `[tokens, pairs]` each.
    pub(crate) fn turns(&self, spans: &[Span]) -> (Vec<f32>, Vec<f32>) {
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for span in spans {
            for position in span.start..span.start + span.len {
                // A prompt comes whole, what follows token by token, in whatever pieces it is computed.
                let len = match span.start {
                    0 => span.len,
                    _ => position + 1,
                };
                for freq in self.frequencies(len).iter() {
                    let (s, c) = (position as f32 * freq).sin_cos();
                    cos.push(c * self.attention_factor);
                    sin.push(s * self.attention_factor);
                }
            }
        }
        (cos, sin)
    }

    /// Whether whole heads of `head_dim` channels turn with nothing but the base `theta`.
    pub fn is_plain(&self, theta: f64, head_dim: usize) -> bool {
        let plain = |(pair, &found): (usize, &f32)| {
            let plain = theta.powf(-2.0 * pair as f64 / head_dim as f64);
            (f64::from(found) / plain - 1.0).abs() < 1e-5
        };
        self.beyond == Beyond::Same
            && self.attention_factor == 1.0
            && 2 * self.inv_freq.len() == head_dim
            && self.inv_freq.iter().enumerate().all(plain)
    }
}

fn narrow(values: impl IntoIterator<Item = f64>) -> Vec<f32> {
    values.into_iter().map(|value| value as f32).collect()
}

impl<'a> Parameters<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.values?.get(key).filter(|value| !value.is_null())
    }

    /// `rope_type`, or `type` as it was called before.
    fn kind(&self, yarn_is_longrope: bool) -> Result<&'a str> {
        let kind = match self.get("rope_type").or_else(|| self.get("type")) {
            None => "default",
            Some(value) => value
                .as_str()
                .ok_or_else(|| self.file.error(format!("rope type {value} is not a name")))?,
        };
        Ok(match kind {
            "su" | "yarn" if yarn_is_longrope => "longrope",
            other => other,
        })
    }

    fn number(&self, key: &str) -> Result<f64> {
        self.get(key)
            .and_then(Value::as_f64)
            .filter(|number| *number > 0.0 && number.is_finite())
            .ok_or_else(|| {
                self.file
                    .error(format!("rope parameters lack a positive `{key}`"))
            })
    }

    fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(_) => self.number(key),
        }
    }

    /// A list of `len` positive numbers.
    fn numbers(&self, key: &str, len: usize) -> Result<Vec<f64>> {
        let list = self.get(key).and_then(Value::as_array);
        let numbers: Option<Vec<f64>> = list.and_then(|list| {
            let number = |value: &Value| value.as_f64().filter(|number| *number > 0.0);
            list.iter().map(number).collect()
        });
        numbers
            .filter(|numbers| numbers.len() == len)
            .ok_or_else(|| {
                self.file.error(format!(
                    "rope parameter `{key}` must be a list of {len} positive numbers, one per pair of channels"
                ))
            })
    }

    /// LLaMA 3.1: long wavelengths are stretched by `factor`, short ones kept, those between blended linearly.
    fn llama3(&self, plain: &[f64], trained: usize) -> Result<Vec<f64>> {
        let factor = self.number("factor")?;
        let low = self.number("low_freq_factor")?;
        let high = self.number("high_freq_factor")?;
        if high <= low {
            return Err(self
                .file
                .error("rope: `high_freq_factor` must be above `low_freq_factor`"));
        }
        let scale = |freq: &f64| {
            let wavelength = 2.0 * PI / freq;
            let blend = ((trained as f64 / wavelength - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 - blend) * freq / factor + blend * freq
        };
        Ok(plain.iter().map(scale).collect())
    }

    /// YaRN (arXiv 2309.00071): channels that turn often keep their frequency, those that turn seldom are interpolated.
    fn yarn(
        &self,
        plain: &[f64],
        theta: f64,
        dim: usize,
        trained: usize,
        factor: f64,
    ) -> Result<Vec<f64>> {
        // The channel that turns so many times over the trained length.
        let channel = |rotations: f64| {
            dim as f64 * (trained as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln())
        };
        let mut low = channel(self.number_or("beta_fast", 32.0)?);
        let mut high = channel(self.number_or("beta_slow", 1.0)?);
        if self
            .get("truncate")
            .is_none_or(|value| *value != Value::Bool(false))
        {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dim as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        let scale = |(pair, freq): (usize, &f64)| {
            let interpolated = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
            freq / factor * interpolated + freq * (1.0 - interpolated)
        };
        Ok(plain.iter().enumerate().map(scale).collect())
    }

    fn yarn_attention(&self, factor: f64) -> Result<f64> {
        let scale = |by: f64| match factor <= 1.0 {
            true => 1.0,
            false => 0.1 * by * factor.ln() + 1.0,
        };
        let inferred = match (self.get("mscale"), self.get("mscale_all_dim")) {
            (Some(over), Some(under)) if !is_zero(over) && !is_zero(under) => {
                scale(self.number("mscale")?) / scale(self.number("mscale_all_dim")?)
            }
            _ => scale(1.0),
        };
        self.number_or("attention_factor", inferred)
    }
}

fn is_zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn rope(json: serde_json::Value) -> Result<Rope> {
        let mut json = json;
        json["max_position_embeddings"] = 64.into();
        let file = ConfigFile::of(Path::new("config.json"), json);
        let defaults = RopeDefaults::of(&file, 16)?;
        Rope::read(&file, file.rope_parameters()?, defaults)
    }

    #[test]
    fn both_forms_of_rope_settings_agree() {
        let llama3 = serde_json::json!({"rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
        let mut v5 = llama3.clone();
        v5["rope_theta"] = 5e5.into();
        let v4 = rope(serde_json::json!({"rope_theta": 5e5, "rope_scaling": llama3})).unwrap();
        let v5 = rope(serde_json::json!({"rope_parameters": v5})).unwrap();
        assert_eq!(v4, v5);
        assert!(!v4.is_plain(5e5, 16));
    }

    #[test]
    fn rope_type_wins_over_type() {
        let both = serde_json::json!({"rope_scaling": {"rope_type": "linear", "type": "dynamic", "factor": 2.0}});
        let linear = serde_json::json!({"rope_scaling": {"type": "linear", "factor": 2.0}});
        assert_eq!(rope(both).unwrap(), rope(linear).unwrap());
    }

    #[test]
    fn an_unknown_or_incomplete_scaling_is_named() {
        for (scaling, parts) in [
            (
                serde_json::json!({"rope_type": "spiral"}),
                ["`spiral`", "longrope"],
            ),
            (
                serde_json::json!({"rope_type": "linear"}),
                ["positive", "`factor`"],
            ),
            (
                serde_json::json!({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}),
                ["`short_factor`", "8 positive"],
            ),
        ] {
            let json = serde_json::json!({"rope_scaling": scaling});
            let message = rope(json).unwrap_err().to_string();
            for part in parts {
                assert!(message.contains(part), "{message}");
            }
        }
    }

    /// A prompt takes the base of its length, a token behind it that of its own position, in whatever piece it comes.
    #[test]
    fn dynamic_frequencies_follow_the_sequence() {
        let rope =
            rope(serde_json::json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}})).unwrap();
        let span = |start, len| Span { row: 0, start, len };
        let pairs = rope.inv_freq.len();
        let last = |(cos, _): (Vec<f32>, Vec<f32>)| cos[cos.len() - pairs..].to_vec();
        assert_eq!(rope.frequencies(64), rope.frequencies(1));
        assert_ne!(rope.frequencies(65), rope.frequencies(64));
        let alone = last(rope.turns(&[span(79, 1)]));
        assert_eq!(alone, last(rope.turns(&[span(70, 10)])));
        assert_eq!(alone, last(rope.turns(&[span(0, 80)])));
        let (prompt, _) = rope.turns(&[span(0, 90)]);
        assert_ne!(alone, prompt[79 * pairs..80 * pairs]);
    }
}
