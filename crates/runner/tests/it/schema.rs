//! The JSON schema of experiments, for editors.

use crate::support::repository;
use skipbench::experiment::Experiment;

#[test]
fn the_committed_schema_is_that_of_the_code() {
    let schema = serde_json::to_string_pretty(&schemars::schema_for!(Experiment)).unwrap() + "\n";
    let path = repository().join("experiments/schema.json");
    if std::env::var_os("SKIPBENCH_UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, &schema).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    // Thousands of lines: a comparison that prints them hides what it has to say.
    assert!(
        committed == schema,
        "run the tests once with SKIPBENCH_UPDATE_SCHEMA=1 and commit experiments/schema.json"
    );
}
