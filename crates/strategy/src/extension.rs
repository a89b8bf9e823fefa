//! Strategies of other crates.

use crate::budget::{MIN_KEPT, check_depth};
use crate::registry::{Kind, Settings};
use crate::{Knob, Strategy, StrategyError};
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
    let taken = Kind::all()
        .iter()
        .any(|kind| kind.settings().name() == name);
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

/// A registered strategy with its settings.
#[derive(Clone)]
pub(crate) struct Extended {
    extension: &'static dyn Extension,
    variant: Option<&'static str>,
    speedup: Option<f64>,
    threshold: Option<f64>,
    settings: Map<String, Value>,
}

impl Extended {
    fn new(extension: &'static dyn Extension) -> Self {
        Self {
            extension,
            variant: extension.variants().first().copied(),
            speedup: None,
            threshold: None,
            settings: Map::new(),
        }
    }

    /// The same strategy with the settings of a long form. A `variant` that is not known stays among the settings, where
    /// [`validate`](Settings::validate) finds it.
    pub(crate) fn read(mut self, settings: Option<Map<String, Value>>) -> Self {
        self.settings = settings.unwrap_or_default();
        if self.extension.takes_speedup()
            && let Some(speedup) = self.settings.get("speedup").and_then(Value::as_f64)
        {
            self.speedup = Some(speedup);
            self.settings.remove("speedup");
        }
        if self.extension.knob().is_some()
            && let Some(threshold) = self.settings.get("threshold").and_then(Value::as_f64)
        {
            self.threshold = Some(threshold);
            self.settings.remove("threshold");
        }
        let found = self.settings.get("variant").and_then(Value::as_str);
        let variants = self.extension.variants();
        if let Some(variant) = variants.iter().find(|variant| found == Some(variant)) {
            self.variant = Some(variant);
            self.settings.remove("variant");
        }
        self
    }

    fn request(&self, n_layers: usize) -> Request<'_> {
        Request {
            n_layers,
            variant: self.variant,
            speedup: self.speedup,
            threshold: self.threshold,
            settings: &self.settings,
        }
    }
}

impl std::fmt::Debug for Extended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct(self.extension.name())
            .field("variant", &self.variant)
            .field("speedup", &self.speedup)
            .field("threshold", &self.threshold)
            .field("settings", &self.settings)
            .finish()
    }
}

impl PartialEq for Extended {
    fn eq(&self, other: &Self) -> bool {
        self.extension.name() == other.extension.name()
            && (self.variant, self.speedup, self.threshold)
                == (other.variant, other.speedup, other.threshold)
            && self.settings == other.settings
    }
}

/// The long form: one key, the name, with the settings below it.
impl Serialize for Extended {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut settings = self.settings.clone();
        if let Some(variant) = self.variant {
            settings.insert("variant".to_owned(), variant.into());
        }
        if let Some(speedup) = self.speedup {
            settings.insert("speedup".to_owned(), speedup.into());
        }
        if let Some(threshold) = self.threshold {
            settings.insert("threshold".to_owned(), threshold.into());
        }
        let long: Map<String, Value> =
            [(self.extension.name().to_owned(), Value::Object(settings))]
                .into_iter()
                .collect();
        long.serialize(serializer)
    }
}

impl Settings for Extended {
    fn name(&self) -> &'static str {
        self.extension.name()
    }

    fn about(&self) -> &'static str {
        self.extension.about()
    }

    fn variants(&self) -> Vec<&'static str> {
        self.extension.variants().to_vec()
    }

    fn variant(&self) -> Option<&'static str> {
        self.variant
    }

    fn set_variant(&mut self, variant: &'static str) {
        self.variant = Some(variant);
    }

    fn speedup(&self) -> Option<f64> {
        self.speedup
    }

    fn speedup_mut(&mut self) -> Option<&mut Option<f64>> {
        self.extension.takes_speedup().then_some(&mut self.speedup)
    }

    fn threshold(&self) -> Option<f64> {
        self.threshold
    }

    fn threshold_mut(&mut self) -> Option<&mut Option<f64>> {
        self.extension
            .knob()
            .is_some()
            .then_some(&mut self.threshold)
    }

    fn knob(&self) -> Option<Knob> {
        let open = self.speedup.is_some() && self.threshold.is_none();
        self.extension.knob().filter(|_| open)
    }

    fn validate(&self, n_layers: usize) -> Result<(), StrategyError> {
        check_depth(self.extension.name(), n_layers, MIN_KEPT)?;
        let mut request = self.request(n_layers);
        // A threshold that is still to be calibrated is no error yet.
        if let Some(knob) = self.knob() {
            request.threshold = Some(knob.hi);
        }
        self.extension.build(&request).map(drop)
    }

    fn build(&self, n_layers: usize) -> Result<Box<dyn Strategy>, StrategyError> {
        self.validate(n_layers)?;
        match self.knob() {
            Some(_) => Err(StrategyError::NotCalibrated {
                strategy: self.extension.name(),
            }),
            None => self.extension.build(&self.request(n_layers)),
        }
    }
}
