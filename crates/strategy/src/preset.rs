//! Layers that the authors of a method published for one model.

use crate::StrategyError;
use crate::settings::Asked;

/// One of them, under the name of its model.
pub(crate) struct Preset<T: 'static> {
    pub(crate) name: &'static str,
    pub(crate) n_layers: usize,
    pub(crate) layers: T,
}

/// The preset `name` for the model's depth.
pub(crate) fn find<T>(
    asked: &Asked<'_>,
    presets: &'static [Preset<T>],
    name: &str,
) -> Result<&'static T, StrategyError> {
    let n_layers = asked.n_layers;
    let setting = |message| asked.wrong("preset", message);
    let Some(preset) = presets.iter().find(|preset| preset.name == name) else {
        let known: Vec<&str> = presets.iter().map(|preset| preset.name).collect();
        return Err(setting(match known[..] {
            [] => format!("there is no preset `{name}`, nor any other"),
            _ => format!("there is no preset `{name}`; known: {}", known.join(", ")),
        }));
    };
    match preset.n_layers == n_layers {
        true => Ok(&preset.layers),
        false => Err(setting(format!(
            "`{name}` is for a model of {} layers, not {n_layers}; leave it out for this one",
            preset.n_layers
        ))),
    }
}

/// The variant without a preset, and one for each preset.
pub(crate) fn variants<T>(
    without: &'static str,
    presets: &'static [Preset<T>],
) -> Vec<&'static str> {
    [without]
        .into_iter()
        .chain(presets.iter().map(|preset| preset.name))
        .collect()
}

/// The variant that a `preset` stands for.
pub(crate) fn variant<T>(
    without: &'static str,
    presets: &'static [Preset<T>],
    preset: &Option<String>,
) -> &'static str {
    let named = presets
        .iter()
        .find(|known| Some(known.name) == preset.as_deref());
    named.map_or(without, |known| known.name)
}
