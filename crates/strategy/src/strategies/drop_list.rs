//! `drop-list`: all layers but those that a user lists.

use crate::budget::MIN_KEPT;
use crate::layer_list::LayerList;
use crate::preset::{self, Preset};
use crate::settings::{Asked, Common, Definition, Settings};
use crate::{LayerSet, Strategy, StrategyError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The variant whose layers the user lists.
const LISTED: &str = "listed";

/// Skips the listed layers in decoding, wherever the list comes from: a paper's table, another program's scores. Takes no
/// target.
///
/// The presets are the sub-layers that Draft & Verify (Zhang et al. 2023, arXiv 2309.08168) skips in drafting, as the authors
/// ship them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct DropList {
    /// Indices of the layers to skip, the lowest layer being 0; none if not given.
    drop: Vec<usize>,
    /// Layers of which the attention alone is skipped.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    drop_attention: Vec<usize>,
    /// Layers of which the MLP alone is skipped.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    drop_mlp: Vec<usize>,
    /// Indices of the layers to keep, instead of `drop`.
    #[serde(skip_serializing_if = "Option::is_none")]
    keep: Option<Vec<usize>>,
    /// Layers of the model that the lists are for, so that another is refused; any if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    n_layers: Option<usize>,
    /// A file with the lists instead: indices to drop, one a line or with commas between them; slices of mergekit; a
    /// configuration of EvoPress; an order of BlockPruner.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    file: Option<PathBuf>,
    /// Sub-layers to drop, of a file of BlockPruner, which has a list for several numbers; the largest if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    blocks: Option<usize>,
    /// Published lists instead; the variants of the short form.
    #[serde(skip_serializing_if = "Option::is_none")]
    preset: Option<String>,
}

/// Layers whose attention goes, and layers whose MLP goes.
type SubLayers = (&'static [usize], &'static [usize]);

/// `skip_layers.json` of the released code of arXiv 2309.08168.
const PRESETS: &[Preset<SubLayers>] = &[
    Preset {
        name: "llama-2-13b",
        n_layers: 40,
        layers: (
            &[
                3, 5, 6, 8, 10, 11, 14, 15, 18, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 33, 34, 35,
                36, 37,
            ],
            &[6, 9, 10, 11, 15, 24, 25, 27, 28, 35],
        ),
    },
    Preset {
        name: "llama-2-13b-chat",
        n_layers: 40,
        layers: (
            &[
                7, 8, 9, 10, 11, 14, 15, 18, 22, 23, 24, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35,
                36, 37, 38,
            ],
            &[7, 10, 11, 14, 27, 30, 32, 33, 37, 38],
        ),
    },
    Preset {
        name: "codellama-13b",
        n_layers: 40,
        layers: (
            &[
                5, 6, 9, 10, 11, 14, 15, 16, 21, 23, 24, 26, 27, 28, 29, 30, 31, 32, 34, 35, 36, 37,
            ],
            &[10, 11, 12, 14, 15, 25, 26, 27, 30, 32, 33, 34],
        ),
    },
    Preset {
        name: "llama-2-70b",
        n_layers: 80,
        layers: (
            &[
                10, 11, 13, 14, 16, 18, 19, 20, 21, 22, 25, 27, 28, 29, 30, 31, 35, 41, 43, 45, 46,
                47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 60, 61, 62, 63, 65, 66, 67, 68, 69,
                70, 74, 75, 78, 79,
            ],
            &[
                2, 4, 9, 10, 13, 14, 16, 20, 21, 22, 24, 25, 26, 27, 28, 29, 31, 34, 37, 41, 47,
                48, 49, 50, 53, 54, 55, 57, 58, 60, 62, 63, 66, 67, 68, 70, 76,
            ],
        ),
    },
];

impl DropList {
    fn layers(&self, asked: &Asked<'_>) -> Result<LayerSet, StrategyError> {
        let n_layers = asked.n_layers;
        if self.file.is_some() {
            let message = "it has not been read; name a file on the command line, or under `strategies` of an experiment";
            return Err(asked.wrong("file", message));
        }
        if let Some(wanted) = self.n_layers.filter(|&wanted| wanted != n_layers) {
            let message = format!("the list is for a model of {wanted} layers, not {n_layers}");
            return Err(asked.wrong("n-layers", message));
        }
        if self.keep.is_some() && !self.drop.is_empty() {
            return Err(asked.wrong("keep", "there is `drop` too; give the one or the other"));
        }
        let (attention, mlp) = self.sub_layers(asked)?;
        let lists = [
            ("keep", self.keep.as_deref().unwrap_or_default()),
            ("drop", &self.drop[..]),
            ("drop-attention", attention),
            ("drop-mlp", mlp),
        ];
        for (key, list) in lists {
            if let Some(layer) = list.iter().find(|&&layer| layer >= n_layers) {
                let message = format!(
                    "there is no layer {layer}; the {n_layers} layers are 0 to {}",
                    n_layers - 1
                );
                return Err(asked.wrong(key, message));
            }
        }
        let mut layers = match &self.keep {
            Some(keep) => LayerSet::from_layers(keep.iter().copied()),
            None => LayerSet::full(n_layers),
        };
        for &layer in &self.drop {
            layers.remove(layer);
        }
        for &layer in attention {
            layers.remove_attention(layer);
        }
        for &layer in mlp {
            layers.remove_mlp(layer);
        }
        match layers.len() {
            kept if kept < MIN_KEPT => Err(asked.wrong(
                "drop",
                format!("{kept} of {n_layers} layers are left, and at least {MIN_KEPT} must run"),
            )),
            _ => Ok(layers),
        }
    }

    fn has_lists(&self) -> bool {
        let lists = [&self.drop, &self.drop_attention, &self.drop_mlp];
        self.keep.is_some() || lists.iter().any(|list| !list.is_empty())
    }

    /// The file that is yet to be read.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Takes what stands in the file.
    pub(crate) fn read_file(&mut self, text: &str) -> Result<(), String> {
        if self.has_lists() || self.preset.is_some() {
            return Err("there are lists beside the file; give the one or the other".to_owned());
        }
        let list = LayerList::read(text, self.blocks)?;
        if let (Some(wanted), Some(found)) = (self.n_layers, list.n_layers)
            && wanted != found
        {
            return Err(format!(
                "the list is for a model of {found} layers, not {wanted}"
            ));
        }
        *self = Self {
            drop: list.drop,
            drop_attention: list.drop_attention,
            drop_mlp: list.drop_mlp,
            keep: list.keep,
            n_layers: list.n_layers.or(self.n_layers),
            ..Self::default()
        };
        Ok(())
    }

    /// Layers whose attention goes, and layers whose MLP goes.
    fn sub_layers(&self, asked: &Asked<'_>) -> Result<(&[usize], &[usize]), StrategyError> {
        let Some(name) = &self.preset else {
            return Ok((&self.drop_attention, &self.drop_mlp));
        };
        if self.has_lists() {
            let message = "there are lists too; give the one or the others";
            return Err(asked.wrong("preset", message));
        }
        preset::find(asked, PRESETS, name).copied()
    }
}

impl Settings for DropList {
    fn definition(&self) -> Definition {
        Definition {
            variant_key: Some("preset"),
            speedup: false,
            ..Definition::fixed(
                "drop-list",
                "all layers, or sub-layers, but those of a list",
            )
        }
    }

    fn variants(&self) -> Vec<&'static str> {
        preset::variants(LISTED, PRESETS)
    }

    fn variant(&self) -> Option<&'static str> {
        Some(preset::variant(LISTED, PRESETS, &self.preset))
    }

    fn set_variant(&mut self, variant: &'static str, _: &mut Common) {
        self.preset = (variant != LISTED).then(|| variant.to_owned());
    }

    fn build(&self, asked: &Asked<'_>) -> Result<Box<dyn Strategy>, StrategyError> {
        Ok(asked.run(self.layers(asked)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StrategySpec;

    #[test]
    fn what_is_listed_is_skipped() {
        let list = |lists: &str, n_layers| -> Result<String, String> {
            let spec: StrategySpec = format!("drop-list: {{{lists}}}").parse().unwrap();
            let built = spec.build(n_layers).map_err(|error| error.to_string())?;
            Ok(format!("{:?}", built.reachable()))
        };
        assert_eq!(list("drop: [1, 3, 3]", 6).unwrap(), "{0, 2, 4, 5}");
        assert!(list("", 2).is_ok());
        assert!(
            list("drop: [4]", 4)
                .unwrap_err()
                .contains("there is no layer 4")
        );
        let error = list("drop: [0, 1, 2]", 4).unwrap_err();
        assert!(error.contains("1 of 4 layers are left"), "{error}");
        let parts = "drop: [0], drop-attention: [1, 2], drop-mlp: [2, 3]";
        assert_eq!(list(parts, 5).unwrap(), "{1m, 3a, 4}");
        let error = list(parts, 3).unwrap_err();
        assert!(
            error.contains("`drop-mlp` of `drop-list`: there is no layer 3"),
            "{error}"
        );
    }

    #[test]
    fn lists_of_draft_and_verify() {
        for (name, n_layers, attention, mlp) in [
            ("llama-2-13b", 40, 24, 10),
            ("llama-2-13b-chat", 40, 24, 10),
            ("codellama-13b", 40, 22, 12),
            ("llama-2-70b", 80, 47, 37),
        ] {
            let spec: StrategySpec = format!("drop-list:{name}").parse().unwrap();
            let layers = spec.build(n_layers).unwrap().reachable();
            let dropped = |has: fn(&LayerSet, usize) -> bool| {
                (0..n_layers).filter(|&layer| !has(&layers, layer)).count()
            };
            assert_eq!(dropped(LayerSet::has_attention), attention, "{name}");
            assert_eq!(dropped(LayerSet::has_mlp), mlp, "{name}");
            let error = spec.validate(16).unwrap_err().to_string();
            assert!(error.contains(&format!("is for a model of {n_layers} layers, not 16")));
        }
        let both = r#"{"drop-list": {"preset": "llama-2-13b", "drop": [1]}}"#;
        let both: StrategySpec = serde_json::from_str(both).unwrap();
        assert!(both.validate(40).is_err());
    }
}
