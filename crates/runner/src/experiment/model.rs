//! `models:` of an experiment.

use super::{DtypeName, KvDtypeName};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use skipbench_model::Shape;
use skipbench_strategy::StrategySpec;
use std::fmt;
use std::path::{Path, PathBuf};

/// A model: a checkpoint, or the shape of one.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ModelEntry {
    /// Name in tables; if not given, the folder's, the file's without its ending, the repository's, or the shape's.
    #[serde(default)]
    pub name: Option<String>,
    /// Hugging Face folder (`config.json`, `model.safetensors` or its parts, `tokenizer.json`), `.gguf` file, or
    /// `hub:owner/name[@revision]`.
    #[serde(default)]
    pub path: PathBuf,
    /// Folder of a low-rank adapter (LoRA) in PEFT's form, added to the weights while they are read: what `train` writes. One
    /// that says which checkpoint it was made for is refused for another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<PathBuf>,
    /// Instead of a checkpoint, a model of this shape with random weights, made where it is computed with: the name of a
    /// published one, or keys of a `config.json` (`like: NAME` lays them over that one's). It has the speed of the real one
    /// and no quality; each four bytes of a prompt stand for a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "shape_schema")]
    pub shape: Option<ShapeEntry>,
    /// What its weights are kept in; if not given, what the experiment says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<DtypeName>,
    /// What its KV cache is kept in; if not given, what the experiment says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_dtype: Option<KvDtypeName>,
    /// Strategies to run it with, where they are not those of the experiment: for a checkpoint that was trained for some of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub strategies: Vec<StrategySpec>,
}

impl ModelEntry {
    /// What is wrong with it, if anything.
    pub(super) fn fault(&self) -> Option<&'static str> {
        match (self.path == Path::new(""), &self.shape) {
            (true, None) => {
                Some("a model needs a `path`, or a `shape` to be made of random weights")
            }
            (false, Some(_)) => Some("a model has either a `path` or a `shape`"),
            (true, Some(_)) if self.adapter.is_some() => {
                Some("random weights have no `adapter`; leave it out")
            }
            _ => None,
        }
    }
}

/// A model's shape, as it is written in an experiment.
#[derive(Debug, Clone, PartialEq)]
pub struct ShapeEntry(Shape);

impl ShapeEntry {
    /// What it is called.
    pub(crate) fn name(&self) -> &str {
        self.0.name()
    }

    /// What stands for it where a model is named by a path.
    pub(super) fn path(&self) -> PathBuf {
        self.0.path()
    }
}

impl Serialize for ShapeEntry {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match Shape::named(self.0.name()) {
            Ok(named) if named == self.0 => out.serialize_str(named.name()),
            _ => self.0.settings().serialize(out),
        }
    }
}

impl<'de> Deserialize<'de> for ShapeEntry {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct ShapeVisitor;

        impl<'de> Visitor<'de> for ShapeVisitor {
            type Value = ShapeEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a shape, or keys of a config.json")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<ShapeEntry, E> {
                Shape::named(name).map(ShapeEntry).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ShapeEntry, A::Error> {
                let mut settings = Map::new();
                while let Some((key, value)) = map.next_entry::<String, Value>()? {
                    settings.insert(key, value);
                }
                Shape::of_settings(settings)
                    .map(ShapeEntry)
                    .map_err(A::Error::custom)
            }
        }

        from.deserialize_any(ShapeVisitor)
    }
}

fn shape_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "anyOf": [{"enum": Shape::NAMES}, {"type": "object"}, {"type": "null"}],
    })
}
