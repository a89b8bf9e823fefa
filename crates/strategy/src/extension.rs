//! Strategies of other crates.

use crate::settings::{Asked, Common, Definition, Settings};
use crate::{Knob, Strategy, StrategyError, StrategySpec};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use std::sync::{PoisonError, RwLock};

static REGISTERED: RwLock<Vec<&'static dyn Extension>> = RwLock::new(Vec::new());

/// A strategy that another crate brings: after [`register`] it has the short form `name[:variant][@speedup]`, the long
/// form, and its place in every command.
pub trait Extension: Sync {
    /// Its name in kebab-case.
    fn name(&self) -> &'static str;

    /// What it does, in a line.
    fn about(&self) -> &'static str;

    /// Its variants, the default first; empty if it has none.
    fn variants(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether it takes a target speedup.
    fn takes_speedup(&self) -> bool {
        true
    }

    /// The threshold to calibrate when there is a target and no `threshold`; `None` for a strategy without one.
    fn knob(&self) -> Option<Knob> {
        None
    }

    /// The strategy for a model of a given depth, from settings that a user gave.
    ///
    /// # Errors
    /// Settings that cannot work, with what would; called before a model is loaded, too.
    fn build(&self, request: &Request<'_>) -> Result<Box<dyn Strategy>, StrategyError>;
}

/// What a user asked of an [`Extension`].
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Layers of the model.
    pub n_layers: usize,
    /// One of the variants; `None` if there are none.
    pub variant: Option<&'static str>,
    /// The target speedup, where one was given.
    pub speedup: Option<f64>,
    /// The threshold, given or calibrated.
    pub threshold: Option<f64>,
    /// All other settings of the long form.
    pub settings: &'a Map<String, Value>,
}

/// Makes a strategy known by its name to everything that reads strategies, in this process.
///
/// # Errors
/// The name is taken.
pub fn register(extension: &'static dyn Extension) -> Result<(), StrategyError> {
    let name = extension.name();
    let taken = StrategySpec::all().iter().any(|spec| spec.name() == name);
    if taken || name.is_empty() || name.contains([':', '@', ' ', '{']) {
        return Err(StrategyError::CannotRegister {
            name: name.to_owned(),
            reason: match taken {
                true => "the name is taken",
                false => "a name is not empty and holds no `:`, `@`, `{` or space",
            },
        });
    }
    let mut registered = REGISTERED.write().unwrap_or_else(PoisonError::into_inner);
    registered.push(extension);
    Ok(())
}

/// Every registered strategy with its default settings.
pub(crate) fn all() -> Vec<Extended> {
    let registered = REGISTERED.read().unwrap_or_else(PoisonError::into_inner);
    registered
        .iter()
        .map(|&extension| Extended::new(extension))
        .collect()
}

/// A registered strategy with the settings that are its own.
#[derive(Clone)]
pub(crate) struct Extended {
    extension: &'static dyn Extension,
    variant: Option<&'static str>,
    settings: Map<String, Value>,
}

impl Extended {
    fn new(extension: &'static dyn Extension) -> Self {
        Self {
            extension,
            variant: extension.variants().first().copied(),
            settings: Map::new(),
        }
    }

    /// The same strategy with the settings of a long form. What is not of its kind, as a `variant` that is not known, stays
    /// among the settings, where the extension finds it.
    pub(crate) fn read(
        mut self,
        settings: Option<Map<String, Value>>,
        common: &mut Common,
    ) -> Self {
        self.settings = settings.unwrap_or_default();
        let definition = self.definition();
        for (key, slot) in [
            ("speedup", &mut common.speedup),
            ("threshold", &mut common.threshold),
        ] {
            let number = self.settings.get(key).and_then(Value::as_f64);
            if definition.takes(key) && number.is_some() {
                *slot = number;
                self.settings.shift_remove(key);
            }
        }
        let found = self.settings.get("variant").and_then(Value::as_str);
        let variants = self.extension.variants();
        if let Some(variant) = variants.iter().find(|variant| found == Some(variant)) {
            self.variant = Some(variant);
            self.settings.shift_remove("variant");
        }
        self
    }
}

impl std::fmt::Debug for Extended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct(self.extension.name())
            .field("variant", &self.variant)
            .field("settings", &self.settings)
            .finish()
    }
}

impl PartialEq for Extended {
    fn eq(&self, other: &Self) -> bool {
        self.extension.name() == other.extension.name()
            && self.variant == other.variant
            && self.settings == other.settings
    }
}

impl Serialize for Extended {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let variant = self
            .variant
            .map(|variant| ("variant", Value::from(variant)));
        let settings = self
            .settings
            .iter()
            .map(|(key, value)| (key.as_str(), value.clone()));
        serializer.collect_map(variant.into_iter().chain(settings))
    }
}

impl Settings for Extended {
    fn definition(&self) -> Definition {
        Definition {
            variant_key: Some("variant"),
            speedup: self.extension.takes_speedup(),
            threshold: self.extension.knob().is_some(),
            ..Definition::new(self.extension.name(), self.extension.about())
        }
    }

    fn variants(&self) -> Vec<&'static str> {
        self.extension.variants().to_vec()
    }

    fn variant(&self) -> Option<&'static str> {
        self.variant
    }

    fn set_variant(&mut self, variant: &'static str, _: &mut Common) {
        self.variant = Some(variant);
    }

    fn knob(&self) -> Option<Knob> {
        self.extension.knob()
    }

    fn build(&self, asked: &Asked<'_>) -> Result<Box<dyn Strategy>, StrategyError> {
        let mut request = Request {
            n_layers: asked.n_layers,
            variant: self.variant,
            speedup: asked.speedup,
            threshold: asked.threshold,
            settings: &self.settings,
        };
        match (self.extension.knob(), asked.speedup, asked.threshold) {
            // With a threshold that is still to be calibrated, the other settings are looked at with any.
            (Some(knob), Some(_), None) => {
                request.threshold = Some(knob.hi);
                self.extension.build(&request)?;
                let strategy = asked.name;
                Err(StrategyError::NotCalibrated { strategy })
            }
            _ => self.extension.build(&request),
        }
    }
}
