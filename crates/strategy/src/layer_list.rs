//! Files that say which layers a pruned model keeps, in the forms in which other programs write and read them.

use crate::LayerSet;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A form of such a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerListForm {
    /// Indices of the layers that are dropped, one a line or with commas between them.
    Plain,
    /// The `slices` of a mergekit passthrough merge, with the ranges of layers that are kept (arXiv 2403.13257).
    Mergekit,
    /// A line for each layer, `none`, `attn`, `mlp` or `attn+mlp`, for what of it is dropped: what `drop_layers_from_config` of
    /// EvoPress' released code reads (arXiv 2410.14649).
    EvoPress,
    /// A map from a number of sub-layers to the list of those that are dropped then, `["mha", 3]` or `["mlp", 3]`: the
    /// `..._del_order_list.json` of BlockPruner's released code (arXiv 2406.10594).
    BlockPruner,
}

/// What a file lists.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LayerList {
    pub(crate) drop: Vec<usize>,
    pub(crate) drop_attention: Vec<usize>,
    pub(crate) drop_mlp: Vec<usize>,
    /// The layers that are kept, in a form that does not say how many there were.
    pub(crate) keep: Option<Vec<usize>>,
    /// Layers of the model that the list is for, in a form that has a line for each.
    pub(crate) n_layers: Option<usize>,
}

impl LayerListForm {
    /// Every form.
    pub const ALL: [Self; 4] = [
        Self::Plain,
        Self::Mergekit,
        Self::EvoPress,
        Self::BlockPruner,
    ];

    /// Its name on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Mergekit => "mergekit",
            Self::EvoPress => "evopress",
            Self::BlockPruner => "blockpruner",
        }
    }

    /// The file that says that a model of `n_layers` layers keeps `kept`; `model` is what mergekit is to call the model.
    ///
    /// # Errors
    /// Sub-layers, or no dropped layer at all, in a form that cannot say so.
    pub fn write(self, kept: &LayerSet, n_layers: usize, model: &str) -> Result<String, String> {
        let parts = (0..n_layers).map(|layer| (kept.has_attention(layer), kept.has_mlp(layer)));
        let parts: Vec<(bool, bool)> = parts.collect();
        let of_whole_layers = matches!(self, Self::Plain | Self::Mergekit);
        let part = parts.iter().position(|(attention, mlp)| attention != mlp);
        if let (true, Some(layer)) = (of_whole_layers, part) {
            return Err(format!(
                "layer {layer} is dropped in part, which the form `{}` cannot say; `evopress` and `blockpruner` can",
                self.name()
            ));
        }
        let mut text = String::new();
        let mut line = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        match self {
            Self::Plain => {
                let dropped = (0..n_layers).filter(|&layer| !kept.contains(layer));
                dropped.for_each(|layer| line(layer.to_string()));
                if text.is_empty() {
                    return Err("no layer is dropped, so that there is nothing to list".to_owned());
                }
            }
            Self::Mergekit => {
                line("slices:".to_owned());
                for (first, end) in runs(kept, n_layers) {
                    line("  - sources:".to_owned());
                    line(format!("      - model: {}", quoted(model)));
                    line(format!("        layer_range: [{first}, {end}]"));
                }
                line("merge_method: passthrough".to_owned());
            }
            Self::EvoPress => {
                for part in parts {
                    let dropped = match part {
                        (true, true) => "none",
                        (false, true) => "attn",
                        (true, false) => "mlp",
                        (false, false) => "attn+mlp",
                    };
                    line(dropped.to_owned());
                }
            }
            Self::BlockPruner => {
                let mut blocks = Vec::new();
                for (layer, (attention, mlp)) in parts.into_iter().enumerate() {
                    let dropped = [(attention, "mha"), (mlp, "mlp")];
                    let dropped = dropped.into_iter().filter(|(kept, _)| !kept);
                    blocks.extend(dropped.map(|(_, block)| format!("[\"{block}\", {layer}]")));
                }
                line(format!("{{\"{}\": [{}]}}", blocks.len(), blocks.join(", ")));
            }
        }
        Ok(text)
    }
}

/// The ranges of layers that are kept, from the first to the one behind the last.
fn runs(kept: &LayerSet, n_layers: usize) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for layer in (0..n_layers).filter(|&layer| kept.contains(layer)) {
        match runs.last_mut().filter(|(_, end)| *end == layer) {
            Some((_, end)) => *end += 1,
            None => runs.push((layer, layer + 1)),
        }
    }
    runs
}

/// A string as YAML and JSON both write it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

impl LayerList {
    /// Reads a file of any of the forms, which differ in how they begin. `blocks` picks the entry of BlockPruner's file, the one
    /// with the most sub-layers if not given.
    pub(crate) fn read(text: &str, blocks: Option<usize>) -> Result<Self, String> {
        let text = text.trim_start_matches('\u{feff}');
        let mut lines = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .peekable();
        let Some(first) = lines.peek() else {
            return Err("the file lists nothing".to_owned());
        };
        if first.starts_with('{') {
            return Self::read_blockpruner(text, blocks);
        }
        if blocks.is_some() {
            let message = "`blocks` is for a file of BlockPruner, which this is not; leave it out";
            return Err(message.to_owned());
        }
        if text.lines().any(|line| line.starts_with("slices:")) {
            Self::read_mergekit(text)
        } else if ["none", "attn", "mlp", "attn+mlp"].contains(first) {
            Self::read_evopress(text)
        } else {
            Self::read_plain(text)
        }
    }

    fn read_plain(text: &str) -> Result<Self, String> {
        let mut list = Self::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            for word in line.split([',', ' ', '\t', '\r']).filter(|w| !w.is_empty()) {
                let layer = word.parse().map_err(|_| {
                    format!(
                        "line {}: {word:?} is no layer; a list has indices, one a line or with commas between them; mergekit's `slices:`, EvoPress' lines of `none`, `attn`, `mlp` and `attn+mlp`, and BlockPruner's JSON are read too",
                        index + 1
                    )
                })?;
                list.drop.push(layer);
            }
        }
        Ok(list)
    }

    fn read_evopress(text: &str) -> Result<Self, String> {
        let mut list = Self::default();
        let lines = text.trim_end().lines().map(str::trim);
        let mut n_layers = 0;
        for (layer, line) in lines.enumerate() {
            match line {
                "none" => {}
                "attn" => list.drop_attention.push(layer),
                "mlp" => list.drop_mlp.push(layer),
                "attn+mlp" => list.drop.push(layer),
                other => {
                    return Err(format!(
                        "line {}: {other:?} is none of `none`, `attn`, `mlp` and `attn+mlp`, of which there is one for each layer",
                        layer + 1
                    ));
                }
            }
            n_layers = layer + 1;
        }
        list.n_layers = Some(n_layers);
        Ok(list)
    }

    fn read_blockpruner(text: &str, blocks: Option<usize>) -> Result<Self, String> {
        let entries: BTreeMap<usize, Vec<(Block, usize)>> = serde_json::from_str(text).map_err(|error| {
            format!("not BlockPruner's map from numbers to lists such as [[\"mha\", 3], [\"mlp\", 3]]: {error}")
        })?;
        let entry = match blocks {
            Some(blocks) => entries.get(&blocks),
            None => entries.values().next_back(),
        };
        let Some(entry) = entry else {
            let known: Vec<String> = entries.keys().map(usize::to_string).collect();
            return Err(match blocks {
                Some(blocks) => format!(
                    "there is no entry of {blocks} sub-layers; `blocks` may be {}",
                    known.join(", ")
                ),
                None => "the file lists nothing".to_owned(),
            });
        };
        let of = |wanted: Block| -> BTreeSet<usize> {
            let found = entry.iter().filter(|(block, _)| *block == wanted);
            found.map(|&(_, layer)| layer).collect()
        };
        let (attention, mlp) = (of(Block::Mha), of(Block::Mlp));
        Ok(Self {
            drop: attention.intersection(&mlp).copied().collect(),
            drop_attention: attention.difference(&mlp).copied().collect(),
            drop_mlp: mlp.difference(&attention).copied().collect(),
            ..Self::default()
        })
    }

    fn read_mergekit(text: &str) -> Result<Self, String> {
        let merge: Mergekit = serde_saphyr::from_str(text)
            .map_err(|error| format!("not mergekit's YAML: {error}"))?;
        let mut keep: Vec<usize> = Vec::new();
        let mut model: Option<&str> = None;
        for (index, slice) in merge.slices.iter().enumerate() {
            let wrong = |message: String| Err(format!("slice {}: {message}", index + 1));
            let [source] = &slice.sources[..] else {
                return wrong(format!(
                    "{} sources; only slices of one model can be a list of layers",
                    slice.sources.len()
                ));
            };
            if let Some(first) = model.filter(|first| *first != source.model) {
                return wrong(format!(
                    "the model is {}, and {first} before it; only slices of one model can be a list of layers",
                    source.model
                ));
            }
            model = Some(&source.model);
            let Some([first, end]) = source.layer_range else {
                return wrong("`layer_range: [a, b]` is missing".to_owned());
            };
            if first >= end || end > crate::MAX_LAYERS {
                return wrong(format!(
                    "`layer_range: [{first}, {end}]` is no range of up to {} layers",
                    crate::MAX_LAYERS
                ));
            }
            if let Some(last) = keep.last().filter(|&&last| last >= first) {
                return wrong(format!(
                    "layer {first} stands behind layer {last}; layers can be left out, but neither moved nor repeated"
                ));
            }
            keep.extend(first..end);
        }
        match keep.is_empty() {
            true => Err("`slices` holds no slice".to_owned()),
            false => Ok(Self {
                keep: Some(keep),
                ..Self::default()
            }),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Block {
    Mha,
    Mlp,
}

/// What of mergekit's configuration says which layers there are.
#[derive(Deserialize)]
struct Mergekit {
    slices: Vec<Slice>,
}

#[derive(Deserialize)]
struct Slice {
    sources: Vec<Source>,
}

#[derive(Deserialize)]
struct Source {
    model: String,
    #[serde(default)]
    layer_range: Option<[usize; 2]>,
}

impl fmt::Display for LayerListForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StrategySpec;

    /// What a model of eight layers runs under the list of a file.
    fn ran(text: &str, more: &str) -> Result<LayerSet, String> {
        let spec: StrategySpec = format!("drop-list: {{file: f{more}}}").parse().unwrap();
        assert!(spec.layer_file().is_some());
        let spec = spec
            .with_layer_file(text)
            .map_err(|error| error.to_string())?;
        assert!(spec.layer_file().is_none());
        // What is read stands in the long form, so that a digest of it determines the strategy.
        let again: StrategySpec =
            serde_json::from_value(serde_json::to_value(&spec).unwrap()).unwrap();
        assert_eq!(again, spec);
        let built = spec.build(8).map_err(|error| error.to_string())?;
        Ok(built.reachable())
    }

    #[test]
    fn what_is_written_is_read_again() {
        let whole = LayerSet::from_layers([0, 1, 4, 7]);
        let mut parts = whole;
        parts.remove_mlp(1);
        parts.insert_attention(2);
        parts.insert_mlp(5);
        for form in LayerListForm::ALL {
            let text = form.write(&whole, 8, "a \"b\"").unwrap();
            assert_eq!(ran(&text, "").unwrap(), whole, "{text}");
            match form {
                LayerListForm::Plain | LayerListForm::Mergekit => {
                    let error = form.write(&parts, 8, "m").unwrap_err();
                    assert!(error.contains("layer 1 is dropped in part"), "{error}");
                }
                LayerListForm::EvoPress | LayerListForm::BlockPruner => {
                    let text = form.write(&parts, 8, "m").unwrap();
                    assert_eq!(ran(&text, "").unwrap(), parts, "{text}");
                }
            }
        }
        assert!(
            LayerListForm::Plain
                .write(&LayerSet::full(8), 8, "m")
                .is_err()
        );
    }

    #[test]
    fn forms_of_other_programs() {
        let wanted = LayerSet::from_layers([0, 1, 2, 6, 7]);
        for text in [
            "3\n4\n5\n",
            "3,4,5",
            "3, 4\n# a comment\n5 # and another\r\n",
            "slices:\n- sources:\n  - model: a/b\n    layer_range: [0, 3]\n- sources:\n  - model: a/b\n    layer_range:\n    - 6\n    - 8\nmerge_method: passthrough\ndtype: bfloat16\n",
            "none\nnone\nnone\nattn+mlp\nattn+mlp\nattn+mlp\nnone\nnone\n",
            r#"{"1": [["mlp", 5]], "6": [["mha", 3], ["mlp", 3], ["mlp", 4], ["mha", 4], ["mha", 5], ["mlp", 5]]}"#,
        ] {
            assert_eq!(ran(text, "").unwrap(), wanted, "{text}");
        }
        // Numbers, not texts, are compared: 10 is more than 9.
        let text = r#"{"9": [["mha", 0]], "10": [["mha", 1]], "2": [["mlp", 2], ["mlp", 1]]}"#;
        assert!(!ran(text, "").unwrap().has_attention(1));
        assert!(!ran(text, ", blocks: 9").unwrap().has_attention(0));
        assert!(!ran(text, ", blocks: 2").unwrap().has_mlp(2));
    }

    #[test]
    fn what_cannot_be_read_is_said_with_its_place() {
        let slices = |ranges: &str| format!("slices:\n{ranges}merge_method: passthrough\n");
        let slice = |model: &str, range: &str| {
            format!("  - sources:\n      - model: {model}\n        layer_range: {range}\n")
        };
        let twice = slices(&(slice("a", "[0, 4]") + &slice("a", "[3, 8]")));
        let two = slices(&(slice("a", "[0, 4]") + &slice("b", "[4, 8]")));
        for (text, more, wanted) in [
            ("", "", "lists nothing"),
            ("# 1\n\n", "", "lists nothing"),
            ("1\nx\n", "", "line 2: \"x\""),
            ("1\n-2\n", "", "line 2: \"-2\""),
            ("1\n8\n", "", "no layer 8"),
            ("0,1,2,3,4,5,6", "", "1 of 8 layers are left"),
            ("1", ", blocks: 2", "`blocks` is for a file of BlockPruner"),
            ("1", ", drop: [2]", "give the one or the other"),
            ("none\nall\n", "", "line 2: \"all\""),
            ("none\nnone\nmlp\n", "", "for a model of 3 layers, not 8"),
            ("{\"1\": [[\"moe\", 3]]}", "", "moe"),
            ("{}", "", "lists nothing"),
            (
                "{\"1\": [[\"mha\", 3]]}",
                ", blocks: 3",
                "`blocks` may be 1",
            ),
            ("{\"1\"", "", "BlockPruner"),
            (&twice, "", "slice 2: layer 3 stands behind layer 3"),
            (&two, "", "slice 2: the model is b, and a before it"),
            (
                &slices(&slice("a", "[4, 4]")),
                "",
                "slice 1: `layer_range: [4, 4]`",
            ),
            (&slices(&slice("a", "[4, 12]")), "", "no layer 8"),
            (
                &slices(&slice("a", "[0, 99999999]")),
                "",
                "up to 256 layers",
            ),
            (
                "slices:\n  - sources:\n      - model: a\n",
                "",
                "slice 1: `layer_range: [a, b]` is missing",
            ),
            ("slices: []\n", "", "no slice"),
        ] {
            let error = ran(text, more).unwrap_err();
            assert!(error.contains(wanted), "{text:?}: {error}");
        }
        let unread: StrategySpec = "drop-list: {file: f}".parse().unwrap();
        let error = unread.validate(8).unwrap_err().to_string();
        assert!(error.contains("`file` of `drop-list`"), "{error}");
    }
}
