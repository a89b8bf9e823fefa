//! Input that cannot be used: exit code 2, and an error that says what and where.

use crate::support::{assert_names, checkpoint, checkpoint_copy, refused, skipbench};
use std::path::Path;

fn generate(model: &Path, input: &Path) -> String {
    refused(
        skipbench()
            .arg("generate")
            .arg("--model")
            .arg(model)
            .arg("--input")
            .arg(input),
    )
}

fn prompt(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("prompt.txt");
    std::fs::write(&path, "a house\n").unwrap();
    path
}

/// Spoils a copy of the checkpoint and gives the error.
fn spoilt(spoil: impl FnOnce(&Path)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let model = checkpoint_copy(dir.path());
    spoil(&model);
    generate(&model, &prompt(dir.path()))
}

fn rewrite(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from}");
    std::fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn a_checkpoint_that_is_not_whole() {
    let missing = generate(Path::new("no/such folder"), Path::new("also missing"));
    assert_names(&missing, &["also missing"]);
    let dir = tempfile::tempdir().unwrap();
    let missing = generate(Path::new("no/such folder"), &prompt(dir.path()));
    assert_names(&missing, &["no/such folder", "config.json"]);

    let no_weights = spoilt(|model| std::fs::remove_file(model.join("model.safetensors")).unwrap());
    assert_names(&no_weights, &["model.safetensors"]);

    let truncated = spoilt(|model| {
        let weights = model.join("model.safetensors");
        let bytes = std::fs::read(&weights).unwrap();
        std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    });
    assert_names(&truncated, &["model.safetensors"]);

    let empty = spoilt(|model| std::fs::write(model.join("model.safetensors"), "").unwrap());
    assert_names(&empty, &["model.safetensors"]);

    let tokenizer = spoilt(|model| std::fs::remove_file(model.join("tokenizer.json")).unwrap());
    assert_names(&tokenizer, &["tokenizer.json"]);
}

#[test]
fn a_config_that_does_not_fit_the_weights() {
    let shape = spoilt(|model| {
        rewrite(
            &model.join("config.json"),
            "\"intermediate_size\": 256",
            "\"intermediate_size\": 250",
        )
    });
    assert_names(&shape, &["model.layers.0.mlp", "250", "256"]);

    let more_layers = spoilt(|model| {
        rewrite(
            &model.join("config.json"),
            "\"num_hidden_layers\": 16",
            "\"num_hidden_layers\": 17",
        )
    });
    assert_names(&more_layers, &["model.layers.16."]);

    let architecture = spoilt(|model| {
        rewrite(
            &model.join("config.json"),
            "\"model_type\": \"llama\"",
            "\"model_type\": \"lama\"",
        )
    });
    assert_names(&architecture, &["lama", "llama", "bloom"]);

    let vocabulary = spoilt(|model| {
        rewrite(
            &model.join("config.json"),
            "\"vocab_size\": 1024",
            "\"vocab_size\": 512",
        )
    });
    assert_names(&vocabulary, &["512"]);

    let json = spoilt(|model| {
        std::fs::write(model.join("config.json"), "{\n  \"model_type\": }").unwrap()
    });
    assert_names(&json, &["config.json", "line 2"]);

    let empty = spoilt(|model| std::fs::write(model.join("config.json"), "").unwrap());
    assert_names(&empty, &["config.json"]);
}

/// A token that was added behind the embedding is no reason to refuse a model, but a prompt that holds it is.
#[test]
fn a_token_that_the_model_has_no_embedding_for() {
    let dir = tempfile::tempdir().unwrap();
    let model = checkpoint_copy(dir.path());
    // One more token than the embedding has rows: nothing is wrong until a text holds it.
    let path = model.join("tokenizer.json");
    let mut json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let surplus = serde_json::json!({
        "id": 1024, "content": "<surplus>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true,
    });
    json["added_tokens"].as_array_mut().unwrap().push(surplus);
    std::fs::write(&path, json.to_string()).unwrap();
    let input = prompt(dir.path());
    let mut command = skipbench();
    command.arg("generate").arg("--model").arg(&model);
    command
        .arg("--input")
        .arg(&input)
        .args(["--max-new-tokens", "1"]);
    command.assert().success();
    std::fs::write(&input, "a house\na <surplus> house\n").unwrap();
    let text = generate(&model, &input);
    assert_names(&text, &["prompt 2", "tokenizer.json", "<surplus>", "1024"]);
}

#[test]
fn prompts_that_cannot_be_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prompts.txt");
    let with = |text: &[u8]| {
        std::fs::write(&path, text).unwrap();
        generate(&checkpoint(), &path)
    };
    assert_names(&with(b""), &["prompts.txt", "no prompt"]);
    assert_names(
        &with(b"a house\n\nthe dog\n"),
        &["prompts.txt", "prompt 2 is empty"],
    );
    assert_names(
        &with(b"a house\n\xff\xfe\n"),
        &["prompts.txt", "line 2", "UTF-8"],
    );
    let long = "the house ".repeat(600);
    assert_names(
        &with(format!("a house\n{long}\n").as_bytes()),
        &["prompts.txt", "prompt 2", "512"],
    );

    let json = dir.path().join("prompts.jsonl");
    std::fs::write(&json, "{\"prompt\": \"a\"}\n{\"promt\": \"b\"}\n").unwrap();
    assert_names(
        &generate(&checkpoint(), &json),
        &["prompts.jsonl", "line 2", "prompt"],
    );
}

#[test]
fn experiments_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("e.yaml");
    let model = format!(
        "models: [{{path: {:?}}}]\n",
        checkpoint().canonicalize().unwrap()
    );
    let task = "tasks: [{builtin: translation, prompts: 1}]\n";
    let with = |text: String| {
        std::fs::write(&path, text).unwrap();
        refused(
            skipbench()
                .arg("run")
                .arg(&path)
                .arg("--out")
                .arg(dir.path().join("out")),
        )
    };
    let whole = |more: &str| format!("name: e\n{model}{task}{more}");

    assert_names(&with(String::new()), &["e.yaml"]);
    assert_names(
        &with(whole("strategies: [unified]\nspedups: [2]\n")),
        &[
            "e.yaml:5:1: unknown key `spedups` (did you mean `speedups`?)",
            "5 | spedups: [2]",
            "  | ^^^^^^^",
        ],
    );
    assert_names(
        &with(whole("strategies: [unifed]\n")),
        &["e.yaml:4:14: ", "unifed", "did you mean `unified`?"],
    );
    assert_names(
        &with(whole("strategies: [early-exit: {treshold: 1}]\n")),
        &["e.yaml:4:27: ", "treshold", "did you mean `threshold`?"],
    );
    assert_names(
        &with(whole("strategies: [unified]\nspeedups: [12]\n")),
        &["e.yaml:4:14: ", "unified@12", "8"],
    );
    assert_names(&with(whole("strategies: []\n")), &["strategies", "empty"]);
    assert_names(
        &with(whole("strategies: [full]\nbatch-sizes: [0]\n")),
        &["e.yaml:5:15: `batch-sizes.0` is 0; it is a number from 1 to 4096"],
    );
    assert_names(
        &with(whole("strategies: [full]\ndevice: cuda\n")),
        &["cuda"],
    );
    assert_names(
        &with(format!(
            "name: e\n{model}tasks: [{{builtin: tranlation}}]\nstrategies: [full]\n"
        )),
        &["e.yaml:3:19: ", "tranlation", "did you mean `translation`?"],
    );
    assert_names(
        &with(format!(
            "name: e\n{model}tasks: [{{builtin: translation, metrics: [blue]}}]\nstrategies: [full]\n"
        )),
        &["e.yaml:3:42: ", "blue", "bleu"],
    );
    assert_names(
        &with(format!(
            "name: e\nmodels: [{{path: nowhere}}]\n{task}strategies: [full]\n"
        )),
        &["e.yaml:2:10: ", "nowhere", "config.json"],
    );
    assert_names(
        &with(format!(
            "name: e\n{model}tasks: [{{name: t, source: gone.txt, reference: gone.txt}}]\nstrategies: [full]\n"
        )),
        &["e.yaml:3:27: ", "gone.txt"],
    );
    std::fs::write(&path, b"name: \xff\n").unwrap();
    assert_names(
        &refused(skipbench().arg("plan").arg(&path)),
        &["e.yaml", "UTF-8"],
    );
    assert!(!dir.path().join("out/results.csv").exists());
}

/// What is wrong is said once, and nothing of what the YAML library advises those who call it.
#[test]
fn an_error_is_for_the_user_and_comes_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("e.yaml");
    let with = |text: &str, options: &[&str]| {
        std::fs::write(&path, text).unwrap();
        refused(skipbench().arg("plan").arg(&path).args(options))
    };
    let twice = with("name: e\nname: f\n", &[]);
    assert_names(&twice, &["e.yaml:2:1: key `name` stands twice"]);
    assert!(
        !twice.contains("Options") && !twice.contains("<input>"),
        "{twice}"
    );
    assert_eq!(twice.matches("stands twice").count(), 1, "{twice}");

    let text = format!(
        "name: e\nmodels: [{{path: {:?}}}]\ntasks: [{{builtin: translation}}]\nstrategies: [full]\n",
        checkpoint().canonicalize().unwrap()
    );
    let speedups = with(&format!("{text}speedups: 2\n"), &[]);
    assert_names(
        &speedups,
        &["e.yaml:5:11: `speedups` takes a list (write `speedups: [2]`), not `2`"],
    );
    let huge = with(&format!("{text}speedups: [1e308]\n"), &[]);
    assert!(huge.len() < 300, "{huge}");
    for (options, says) in [
        (
            ["--set", "speedups=2"],
            "--set speedups=2: `speedups` takes a list (write `speedups=[2]`)",
        ),
        (
            ["--set", "timing.batchs=2"],
            "--set timing.batchs=2: `timing`: unknown key `batchs` (did you mean `batches`?)",
        ),
        (
            ["--set", "tasks.1.prompts=2"],
            "`tasks` is a list with items 0 to 0",
        ),
        (
            ["--set", "tasks.0.prompts=0"],
            "--set tasks.0.prompts=0: `tasks.0.prompts` is 0",
        ),
        (
            ["--set", "timing.batches=18446744073709551615"],
            "`timing.batches` is 18446744073709551615; it is a number from 0 to 10000",
        ),
        (
            ["--set", "timing.repeats=100000000000"],
            "`timing.repeats` is 100000000000",
        ),
        (["--set", "nothing"], "write it as `key.path=value`"),
        (["--shard", "0/3"], "shares count from 1"),
        (["--shard", "4/3"], "there is no share 4 of 3"),
        (["--shard", "1/0"], "N is at least 1"),
        (["--shard", "half"], "written I/N"),
    ] {
        assert_names(&with(&text, &options), &[says]);
    }
}

#[test]
fn a_name_of_the_input_never_becomes_an_output() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("p.jsonl");
    let text = "{\"prompt\": \"a house\"}\n";
    std::fs::write(&input, text).unwrap();
    let link = dir.path().join("link.jsonl");
    std::fs::hard_link(&input, &link).unwrap();
    for output in [dir.path().join("./p.jsonl"), link] {
        for option in ["--trace", "--audit"] {
            let error = refused(
                skipbench()
                    .args(["generate", "--model"])
                    .arg(checkpoint())
                    .arg("--input")
                    .arg(&input)
                    .arg(option)
                    .arg(&output),
            );
            assert_names(&error, &["would overwrite what --input reads"]);
        }
    }
    assert_eq!(std::fs::read_to_string(&input).unwrap(), text);
}

#[test]
fn an_output_folder_that_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("e.yaml");
    let text = format!(
        "name: e\nmodels: [{{path: {:?}}}]\ntasks: [{{builtin: translation, prompts: 1}}]\nstrategies: [full]\n",
        checkpoint().canonicalize().unwrap()
    );
    std::fs::write(&path, text).unwrap();
    let file = dir.path().join("a file");
    std::fs::write(&file, "in the way").unwrap();
    let error = refused(
        skipbench()
            .arg("run")
            .arg(&path)
            .arg("--out")
            .arg(file.join("out")),
    );
    assert_names(&error, &["a file"]);
}

#[test]
fn a_run_of_another_version_is_not_mixed_in() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("e.yaml");
    let text = format!(
        "name: e\nmodels: [{{path: {:?}}}]\ntasks: [{{builtin: translation, prompts: 1}}]\nstrategies: [full]\n",
        checkpoint().canonicalize().unwrap()
    );
    std::fs::write(&path, text).unwrap();
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    // As skipbench wrote it before records had a version.
    let old = "{\"id\": \"a\", \"executed\": {\"full\": {}}, \"answers\": 1}\n";
    std::fs::write(out.join("cells.jsonl"), old).unwrap();
    let error = refused(skipbench().arg("run").arg(&path).arg("--out").arg(&out));
    assert_names(&error, &["cells.jsonl", "an older skipbench", "--out"]);
    assert_eq!(
        std::fs::read_to_string(out.join("cells.jsonl")).unwrap(),
        old
    );
}

#[test]
fn searches_that_contradict_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let error = |extra: &[&str]| {
        refused(
            skipbench()
                .args(["generate", "--model", "no such model", "--input"])
                .arg(prompt(dir.path()))
                .args(extra),
        )
    };
    // Each is refused before the model, which is not there, is looked for.
    assert_names(&error(&["--seed", "3"]), &["--seed does nothing"]);
    assert_names(
        &error(&["--beams", "4", "--temperature", "1"]),
        &["a beam search draws nothing"],
    );
    assert_names(
        &error(&["--beams", "4", "--trace", "t"]),
        &["leave out --beams, or --trace"],
    );
    assert_names(
        &error(&["--beams", "4", "--strategy", "self-speculative@2"]),
        &["cannot run under a beam search", "greedy"],
    );
    assert_names(
        &error(&["--top-k", "4", "--strategy", "oracle-exit"]),
        &["cannot run under sampling"],
    );
    assert_names(
        &error(&["--no-repeat-ngram", "3", "--strategy", "self-speculative@2"]),
        &["cannot run under `no-repeat-ngram`"],
    );
    for (options, says) in [
        (vec!["--temperature", "0"], "from 0.0001 up"),
        (vec!["--temperature", "1e-45"], "from 0.0001 up"),
        (vec!["--top-p", "1.5"], "`top-p`"),
        (vec!["--top-k", "0"], "`top-k`"),
        (
            vec!["--beams", "4", "--length-penalty", "-1e30"],
            "outside -10 to 10",
        ),
        (
            vec!["--length-penalty", "2"],
            "--length-penalty does nothing",
        ),
        (vec!["--calibration", "no such file"], "no such file"),
        (vec!["--trace", "a", "--audit", "./a"], "are the same file"),
        (
            vec!["--trace", "a.png", "--heatmap", "a.svg"],
            "are the same file",
        ),
        (vec!["--heatmap", "a.pdf"], "`.svg` or `.png`"),
        (vec!["--audit", "."], "is a folder"),
        (vec!["--max-new-tokens", "4000000000"], "1000000"),
    ] {
        assert_names(&error(&options), &[says]);
    }
    let model = checkpoint();
    let with_model = |extra: &[&str]| {
        refused(
            skipbench()
                .arg("generate")
                .arg("--model")
                .arg(&model)
                .arg("--input")
                .arg(prompt(dir.path()))
                .args(extra),
        )
    };
    assert_names(
        &with_model(&["--temperature", "0"]),
        &["temperature", "from 0.0001 up"],
    );
    assert_names(&with_model(&["--top-p", "1.5", "--seed", "1"]), &["top-p"]);
    assert_names(
        &with_model(&["--strategy", "oracle-depth"]),
        &["needs references", "skipbench run"],
    );
    assert_names(
        &with_model(&["--strategy", "block-influence:llama-2-7b@1.2"]),
        &["for a model of 32 layers, not 16"],
    );
    for option in ["--trace", "--heatmap", "--audit"] {
        assert_names(
            &with_model(&[option, "no such folder/t.svg"]),
            &["cannot write no such folder/t.svg"],
        );
    }
    assert_names(
        &with_model(&["--strategy", "random: {seeds: 3, speedup: 2}"]),
        &["stands for several strategies", "give a `seed`"],
    );
}

/// Weights in blocks through the binary: they answer, and what cannot hold them is refused with the fix.
#[test]
fn weights_that_cannot_be_kept_in_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let input = prompt(dir.path());
    let command = |model: &Path, more: &[&str]| {
        let mut command = skipbench();
        command.arg("generate").arg("--model").arg(model);
        command.arg("--input").arg(&input);
        command.args(["--max-new-tokens", "4"]).args(more);
        command
    };
    let model = checkpoint();
    for dtype in ["q8_0", "q4_1", "q4_0", "stored"] {
        let more = ["--dtype", dtype, "--strategy", "unified@2"];
        command(&model, &more).assert().success();
    }
    for kept in ["f32", "bf16", "f16"] {
        for more in [
            &["--kv-dtype", kept][..],
            &["--kv-dtype", kept, "--composed"],
        ] {
            command(&model, more).assert().success();
        }
    }
    let unknown = refused(&mut command(&model, &["--kv-dtype", "q8_0"]));
    assert_names(&unknown, &["q8_0", "bf16"]);
    let composed = refused(&mut command(&model, &["--dtype", "q8_0", "--composed"]));
    assert_names(&composed, &["q8_0", "device: cpu", "bf16"]);
    let unknown = refused(&mut command(&model, &["--dtype", "q8_1"]));
    assert_names(&unknown, &["q8_0", "stored"]);
    let narrow = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/llama1");
    let narrow = refused(&mut command(&narrow, &["--dtype", "q4_0"]));
    assert_names(&narrow, &["rows of 48 weights", "blocks of 32", "bf16"]);
}
