//! Every way to write a strategy says the same: whatever the schema allows is read from its label and from its long form.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use skipbench_strategy::StrategySpec;
use std::sync::LazyLock;

static SCHEMA: LazyLock<Value> = LazyLock::new(|| schemars::schema_for!(StrategySpec).to_value());

/// The names of all strategies.
fn names() -> Vec<&'static str> {
    StrategySpec::all().iter().map(StrategySpec::name).collect()
}

/// A strategy with any of its variants and any target.
pub(crate) fn any_spec() -> impl Strategy<Value = StrategySpec> {
    let variants = |spec: StrategySpec| {
        let variants = spec.variants().into_iter();
        let named = variants.map(move |v| format!("{}:{v}", spec.name()).parse().unwrap());
        named.collect::<Vec<StrategySpec>>()
    };
    let all = StrategySpec::all();
    let specs: Vec<_> = all
        .iter()
        .cloned()
        .flat_map(variants)
        .chain(all.clone())
        .collect();
    let speedup = proptest::option::of(any_speedup());
    (proptest::sample::select(specs), speedup)
        .prop_map(|(spec, speedup)| speedup.map_or(spec.clone(), |s| spec.with_target(s)))
}

fn any_speedup() -> impl Strategy<Value = f64> {
    prop_oneof![1.0..100.0f64, 1.0..f64::MAX, Just(2.0)]
}

/// A strategy with any settings that its schema allows, in its long form.
fn any_long_form(names: Vec<&'static str>) -> BoxedStrategy<Value> {
    proptest::sample::select(names)
        .prop_flat_map(|name| {
            let forms = SCHEMA["anyOf"].as_array().unwrap();
            let form = forms.iter().find_map(|form| form["properties"].get(name));
            let settings = resolved(form.unwrap())["properties"].as_object().unwrap();
            let settings: Vec<_> = settings
                .iter()
                .map(|(key, schema)| proptest::option::of(any_setting(name, key, schema)))
                .collect();
            settings.prop_map(move |settings| {
                let given: Map<String, Value> = settings.into_iter().flatten().collect();
                json!({name: given})
            })
        })
        .boxed()
}

fn any_setting(name: &str, key: &str, schema: &Value) -> BoxedStrategy<(String, Value)> {
    let spec: StrategySpec = name.parse().unwrap();
    let variants = spec.variants();
    let key = key.to_owned();
    match key.as_str() {
        "speedup" => any_speedup().prop_map(Value::from).boxed(),
        // Any text is read, but only what is known can be meant.
        "preset" => proptest::sample::select(match variants.is_empty() {
            true => vec!["llama-2-7b"],
            false => variants[1..].to_vec(),
        })
        .prop_map(Value::from)
        .boxed(),
        "file" => proptest::sample::select(vec!["a.txt", "../lists/my list.yaml", "x: {y}"])
            .prop_map(Value::from)
            .boxed(),
        "draft" => {
            let mut drafts = names();
            drafts.retain(|name| variants.contains(name));
            any_long_form(drafts)
        }
        _ => any_value(schema),
    }
    .prop_map(move |value| (key.clone(), value))
    .boxed()
}

/// A value that a schema allows.
fn any_value(schema: &Value) -> BoxedStrategy<Value> {
    let schema = resolved(schema);
    if let Some(value) = schema.get("const") {
        return Just(value.clone()).boxed();
    }
    if let Some(values) = schema["enum"].as_array() {
        return proptest::sample::select(values.clone()).boxed();
    }
    if let Some(choices) = schema["oneOf"].as_array().or(schema["anyOf"].as_array()) {
        let choices: Vec<_> = choices.iter().map(any_value).collect();
        return proptest::strategy::Union::new(choices).boxed();
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => &kinds[0],
        kind => kind,
    };
    match kind.as_str().unwrap() {
        "boolean" => any::<bool>().prop_map(Value::from).boxed(),
        "integer" => {
            let least = schema["minimum"].as_u64().unwrap();
            prop_oneof![least..100, least..=u64::MAX]
                .prop_map(Value::from)
                .boxed()
        }
        "number" => prop_oneof![
            0.0..=1.0f64,
            proptest::num::f64::NORMAL | proptest::num::f64::ZERO
        ]
        .prop_map(Value::from)
        .boxed(),
        "array" => proptest::collection::vec(any_value(&schema["items"]), 0..5)
            .prop_map(Value::from)
            .boxed(),
        "object" => {
            let number = any_value(&json!({"type": "number"}));
            let map = proptest::collection::btree_map(0..300u32, number, 0..4);
            map.prop_map(|map| map.into_iter().map(|(k, v)| (k.to_string(), v)).collect())
                .boxed()
        }
        other => panic!("no values for {other}"),
    }
}

/// What a `$ref` stands for.
fn resolved(schema: &Value) -> &Value {
    match schema["$ref"].as_str() {
        Some(pointer) => SCHEMA.pointer(&pointer[1..]).unwrap(),
        None => schema,
    }
}

fn read_again(spec: &StrategySpec) -> Result<(), TestCaseError> {
    let label = spec.to_string();
    prop_assert_eq!(label.parse(), Ok(spec.clone()), "{}", label);
    let json = serde_json::to_string(spec).unwrap();
    let read: StrategySpec = serde_json::from_str(&json).unwrap();
    prop_assert_eq!(&read, spec);
    prop_assert_eq!(serde_json::to_string(&read).unwrap(), json);
    let yaml = serde_saphyr::to_string(spec).unwrap();
    let read = serde_saphyr::from_str::<StrategySpec>(&yaml).map_err(|error| error.to_string());
    prop_assert_eq!(read, Ok(spec.clone()), "{}", yaml);
    Ok(())
}

proptest! {
    #[test]
    fn every_variant_is_read_again(spec in any_spec()) {
        read_again(&spec)?;
    }

    #[test]
    fn every_setting_is_read_again(long in any_long_form(names())) {
        let spec: StrategySpec = serde_json::from_value(long).unwrap();
        read_again(&spec)?;
    }

    #[test]
    fn series_have_no_target(long in any_long_form(names()), target in any_speedup()) {
        let spec: StrategySpec = serde_json::from_value(long).unwrap();
        let series = spec.series();
        prop_assert!(!series.contains('@'), "{}", series);
        prop_assert_eq!(spec.with_target(target).series(), series.clone());
        let read: StrategySpec = series.parse().unwrap();
        prop_assert_eq!(read.target_speedup(), None);
        if let Some(target) = spec.target_speedup() {
            prop_assert_eq!(read.with_target(target), spec);
        }
    }
}
