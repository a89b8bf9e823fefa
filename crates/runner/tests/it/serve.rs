//! `serve` over the loopback interface: what it answers, what it refuses, and that nobody disturbs anybody.

use crate::http::{Answer, Server};
use crate::support::{assert_names, checkpoint, checkpoint_copy, skipbench, stdout};
use serde_json::{Value, json};
use skipbench_model::{TextTokenizer, Tokenize};
use std::path::{Path, PathBuf};

mod crowd;
mod wrong;

const PROMPTS: [&str; 4] = [
    "The report says",
    "A dog",
    "The house of the man is",
    "Yesterday",
];

fn ids(text: &str) -> Vec<u32> {
    let tokenizer = TextTokenizer::load(&checkpoint(), 1024).unwrap();
    tokenizer.encode(text).unwrap()
}

/// What `skipbench generate` makes of prompts, a line each.
fn generated(model: &Path, lines: &[Value], strategy: &str, more: &[&str]) -> Vec<Value> {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("input.jsonl");
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(&input, text).unwrap();
    let mut command = skipbench();
    command.arg("generate").arg("--model").arg(model);
    command
        .arg("--input")
        .arg(&input)
        .args(["--strategy", strategy]);
    lines_of(&stdout(command.args(more)))
}

fn lines_of(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn prompts() -> Vec<Value> {
    PROMPTS
        .iter()
        .map(|prompt| json!({"prompt": prompt}))
        .collect()
}

/// A greedy completion.
fn ask(server: &Server, model: &str, more: Value) -> Answer {
    let mut body = json!({"model": model, "temperature": 0});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    server.post("/v1/completions", &body)
}

#[test]
fn answers_are_those_of_the_command_line() {
    let server = Server::start(&[]);
    for strategy in [
        "full",
        "unified@2",
        "skip-decode@2",
        "early-exit: {threshold: 0.5}",
    ] {
        let model = match strategy {
            "full" => "base".to_owned(),
            other => format!("base:{other}"),
        };
        let lines = generated(
            &checkpoint(),
            &prompts(),
            strategy,
            &["--max-new-tokens", "12"],
        );
        let texts = ask(
            &server,
            &model,
            json!({"prompt": PROMPTS, "max_tokens": 12}),
        )
        .ok();
        assert_eq!(texts["model"], model);
        assert_eq!(texts["object"], "text_completion");
        let as_ids: Vec<Vec<u32>> = PROMPTS.iter().map(|prompt| ids(prompt)).collect();
        let from_ids = ask(&server, &model, json!({"prompt": as_ids, "max_tokens": 12})).ok();
        assert_eq!(from_ids["choices"], texts["choices"]);
        assert_eq!(from_ids["usage"], texts["usage"]);
        let usage = &texts["usage"];
        let (mut tokens, mut layers) = (0, 0.0);
        for (index, line) in lines.iter().enumerate() {
            let choice = &texts["choices"][index];
            assert_eq!(choice["index"], index);
            assert_eq!(choice["text"], line["text"], "{strategy}");
            assert_eq!(usage["layers"][index], line["layers"], "{strategy}");
            let eos = line["tokens"].as_array().unwrap().last() == Some(&json!(2));
            assert_eq!(choice["finish_reason"], if eos { "stop" } else { "length" });
            let all = line["layers"].as_array().unwrap();
            tokens += all.len();
            layers += all.iter().map(|count| count.as_f64().unwrap()).sum::<f64>();
        }
        assert_eq!(usage["completion_tokens"], tokens);
        assert_eq!(usage["layers_per_token"], layers / tokens as f64);
        let prompt_tokens: usize = as_ids.iter().map(Vec::len).sum();
        assert_eq!(usage["prompt_tokens"], prompt_tokens);
        assert_eq!(usage["total_tokens"], prompt_tokens + tokens);
    }
}

#[test]
fn stops_ends_and_draws_are_as_asked() {
    let server = Server::start(&[]);
    let prompt = json!({"prompt": "The report says", "max_tokens": 40, "ignore_eos": true});
    let with = |more: Value| {
        let mut body = prompt.clone();
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        ask(&server, "base", body).ok()
    };
    let whole = with(json!({}));
    let text = whole["choices"][0]["text"].as_str().unwrap();
    assert_eq!(whole["usage"]["completion_tokens"], 40);
    let stop = text.split(' ').nth(3).unwrap();
    let cut = with(json!({"stop": [stop, "nowhere to be found"]}));
    assert_eq!(cut["choices"][0]["text"], text[..text.find(stop).unwrap()]);
    assert_eq!(cut["choices"][0]["finish_reason"], "stop");
    assert_eq!(with(json!({"stop": stop}))["choices"], cut["choices"]);
    assert_eq!(
        with(json!({"stop": null, "max_tokens": 0}))["choices"][0]["text"],
        ""
    );

    let drawn = |seed: Value| {
        let more = json!({"temperature": 1.5, "top_p": 0.9, "top_k": 50, "seed": seed, "prompt": ["A dog", "A dog"]});
        with(more)["choices"].clone()
    };
    assert_eq!(drawn(json!(7)), drawn(json!(7)));
    assert_ne!(drawn(json!(7)), drawn(json!(-8)));
    assert_ne!(drawn(json!(null)), drawn(json!(null)));
    let twice = drawn(json!(7));
    assert_ne!(
        twice[0]["text"], twice[1]["text"],
        "each prompt draws for itself"
    );
    let more = [
        "--temperature",
        "1.5",
        "--top-p",
        "0.9",
        "--top-k",
        "50",
        "--seed",
        "7",
        "--max-new-tokens",
        "40",
        "--ignore-eos",
    ];
    let lines = [json!({"prompt": "A dog"}), json!({"prompt": "A dog"})];
    let lines = generated(&checkpoint(), &lines, "full", &more);
    let texts = |values: &[Value]| -> Vec<Value> {
        values.iter().map(|value| value["text"].clone()).collect()
    };
    assert_eq!(texts(twice.as_array().unwrap()), texts(&lines));
}

/// Log-probabilities of `loglikelihood`, which takes texts: the pairs' tokens and scores.
fn scored(strategy: &str, mode: &str) -> Vec<(Vec<u32>, usize, Vec<f64>)> {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("pairs.jsonl");
    let pairs = [
        ("The report", " says that the dog"),
        ("A dog bit", " the man of the house"),
        ("", "The house"),
    ];
    let text: String = pairs
        .iter()
        .map(|(context, continuation)| {
            format!(
                "{}\n",
                json!({"context": context, "continuation": continuation})
            )
        })
        .collect();
    std::fs::write(&input, text).unwrap();
    let mut command = skipbench();
    command.args([
        "loglikelihood",
        "--strategy",
        strategy,
        "--mode",
        mode,
        "--model",
    ]);
    command.arg(checkpoint()).arg("--input").arg(&input);
    let lines = lines_of(&stdout(&mut command));
    let each = pairs.iter().zip(&lines);
    each.map(|((context, continuation), line)| {
        let all = ids(&format!("{context}{continuation}"));
        let scores: Vec<f64> = serde_json::from_value(line["token_logprobs"].clone()).unwrap();
        (all.clone(), all.len() - scores.len(), scores)
    })
    .collect()
}

/// As lm-eval asks: token ids, `echo`, one token more.
#[test]
fn scores_are_those_of_the_command_line() {
    let server = Server::start(&[]);
    for strategy in ["full", "unified@2", "top@2", "early-exit: {threshold: 0.5}"] {
        for mode in ["one-pass", "as-decoded"] {
            if mode == "one-pass" && strategy.starts_with("early") {
                continue;
            }
            let pairs = scored(strategy, mode);
            let prompts: Vec<&Vec<u32>> = pairs.iter().map(|(ids, ..)| ids).collect();
            let mut body = json!({"prompt": prompts, "max_tokens": 1, "echo": true, "logprobs": 1, "seed": 1234});
            if mode == "as-decoded" {
                body["context_tokens"] = pairs.iter().map(|(_, context, _)| *context).collect();
            }
            let answer = ask(&server, &format!("base:{strategy}"), body).ok();
            assert_eq!(answer["usage"]["score_mode"], mode);
            for (index, (ids, context, scores)) in pairs.iter().enumerate() {
                let logprobs = &answer["choices"][index]["logprobs"];
                let found = logprobs["token_logprobs"].as_array().unwrap();
                assert_eq!(found.len(), ids.len() + 1);
                assert_eq!(found[0], Value::Null);
                for (found, expected) in found[*context..ids.len()].iter().zip(scores) {
                    let difference = found.as_f64().unwrap() - expected;
                    assert!(difference.abs() < 1e-5, "{strategy}, {mode}: {difference}");
                }
                let layers = answer["usage"]["prompt_layers"][index].as_array().unwrap();
                let first = match mode {
                    "one-pass" => 1,
                    _ => *context,
                };
                assert_eq!(layers.len(), ids.len() - first);
                assert!(found[..first].iter().all(Value::is_null));
                // What is likeliest is no less likely than the token, and it is the token where the scores are one.
                for (found, top) in found[first..]
                    .iter()
                    .zip(&logprobs["top_logprobs"].as_array().unwrap()[first..])
                {
                    let top = top
                        .as_object()
                        .unwrap()
                        .values()
                        .map(|value| value.as_f64().unwrap());
                    let best = top.fold(f64::NEG_INFINITY, f64::max);
                    assert!(best >= found.as_f64().unwrap());
                }
                let tokens = logprobs["tokens"].as_array().unwrap();
                assert_eq!(tokens[0], "token_id:1");
                let text = answer["choices"][index]["text"].as_str().unwrap();
                let joined: String = tokens
                    .iter()
                    .skip(1)
                    .map(|token| token.as_str().unwrap())
                    .collect();
                assert_eq!(joined.trim_start(), text.trim_start());
                let offsets = logprobs["text_offset"].as_array().unwrap();
                assert!(offsets.is_sorted_by_key(|offset| offset.as_u64().unwrap()));
            }
        }
    }
    // Without a generated token, and of a single token.
    let body = json!({"prompt": [[5, 6, 7], [9]], "max_tokens": 0, "echo": true, "logprobs": 0});
    let answer = ask(&server, "base", body).ok();
    let lengths = answer["choices"].as_array().unwrap().iter();
    let lengths: Vec<usize> = lengths
        .map(|choice| choice["logprobs"]["tokens"].as_array().unwrap().len())
        .collect();
    assert_eq!(lengths, [3, 1]);
    assert_eq!(answer["usage"]["layers"], json!([[], []]));
    assert_eq!(answer["usage"]["prompt_layers"], json!([[16, 16], []]));
    assert_eq!(answer["usage"]["layers_per_token"], Value::Null);
}

#[test]
fn generated_tokens_bring_their_log_probabilities() {
    let server = Server::start(&[]);
    let body =
        json!({"prompt": "The report says", "max_tokens": 6, "ignore_eos": true, "logprobs": 2});
    let generated = ask(&server, "base:unified@2", body).ok();
    let logprobs = &generated["choices"][0]["logprobs"];
    let scores = logprobs["token_logprobs"].as_array().unwrap();
    assert_eq!(scores.len(), 6);
    for (score, top) in scores
        .iter()
        .zip(logprobs["top_logprobs"].as_array().unwrap())
    {
        let top = top.as_object().unwrap();
        assert_eq!(top.len(), 2);
        // Greedy.
        assert_eq!(top.values().next().unwrap(), score);
    }
    // The prompt in front: its text, and the answer's tokens as they were.
    let body = json!({"prompt": "The report says", "max_tokens": 6, "ignore_eos": true, "logprobs": 2, "echo": true});
    let echoed = ask(&server, "base:unified@2", body).ok();
    let text = echoed["choices"][0]["text"].as_str().unwrap();
    assert!(text.starts_with("The report says"), "{text}");
    assert!(text.ends_with(generated["choices"][0]["text"].as_str().unwrap()));
    let all = echoed["choices"][0]["logprobs"]["token_logprobs"]
        .as_array()
        .unwrap();
    assert_eq!(&all[all.len() - 6..], scores);
}

#[test]
fn a_streamed_answer_is_the_whole_one_in_pieces() {
    let server = Server::start(&[]);
    let cases = [
        json!({"prompt": PROMPTS, "max_tokens": 24}),
        json!({"prompt": "A dog", "max_tokens": 24, "ignore_eos": true, "stop": ["the", "them", "\n"]}),
        json!({"prompt": "A dog", "max_tokens": 24, "temperature": 1.9, "seed": 3, "ignore_eos": true}),
        json!({"prompt": PROMPTS, "max_tokens": 5, "echo": true}),
        json!({"prompt": "A dog", "max_tokens": 5, "echo": true, "logprobs": 2}),
        json!({"prompt": "A dog", "max_tokens": 0, "echo": true}),
        json!({"prompt": "A dog", "max_tokens": 9, "logprobs": 1}),
    ];
    for mut body in cases {
        let whole = ask(&server, "base:unified@2", body.clone()).ok();
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
        let parts = ask(&server, "base:unified@2", body.clone()).events();
        let (usage, parts) = parts.split_last().unwrap();
        assert_eq!(usage["choices"], json!([]));
        assert_eq!(usage["usage"], whole["usage"], "{body}");
        for choice in whole["choices"].as_array().unwrap() {
            let mine = |part: &&Value| part["choices"][0]["index"] == choice["index"];
            let mine: Vec<&Value> = parts
                .iter()
                .filter(mine)
                .map(|part| &part["choices"][0])
                .collect();
            let text: String = mine
                .iter()
                .map(|part| part["text"].as_str().unwrap())
                .collect();
            assert_eq!(text, choice["text"], "{body}");
            let ends: Vec<&Value> = mine
                .iter()
                .map(|part| &part["finish_reason"])
                .filter(|end| !end.is_null())
                .collect();
            assert_eq!(ends, [&choice["finish_reason"]], "{body}");
            for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                let shown = mine
                    .iter()
                    .filter_map(|part| part["logprobs"][key].as_array());
                let shown: Vec<&Value> = shown.flatten().collect();
                let expected: Vec<&Value> = choice["logprobs"][key]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .collect();
                assert_eq!(shown, expected, "{key}: {body}");
            }
        }
    }
    let body = json!({"prompt": "A dog", "max_tokens": 3, "stream": true});
    let parts = ask(&server, "base", body).events();
    assert!(
        parts
            .iter()
            .all(|part| part["usage"].is_null() && part["choices"] != json!([]))
    );
}

/// The shipped checkpoint with a chat template.
fn chat_checkpoint(dir: &Path) -> PathBuf {
    const TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{{ message.role }}: {{ message.content }}{{ eos_token }}{% endfor %}{% if quick is defined %}(quick){% endif %}{% if add_generation_prompt %}assistant:{% endif %}";
    let model = checkpoint_copy(dir);
    std::fs::copy(
        checkpoint().join("tokenizer_config.json"),
        model.join("tokenizer_config.json"),
    )
    .unwrap();
    std::fs::write(model.join("chat_template.jinja"), TEMPLATE).unwrap();
    model
}

#[test]
fn chats_are_answered_in_the_form_of_the_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let model = chat_checkpoint(dir.path());
    let server = Server::of(&model, &["--name", "tiny"]);
    let messages =
        json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a house"}]);
    let lines = generated(
        &model,
        &[json!({"messages": messages})],
        "unified@2",
        &["--chat", "--max-new-tokens", "9"],
    );
    let chat = |more: Value| {
        let mut body = json!({"model": "tiny:unified@2", "messages": messages, "temperature": 0, "max_tokens": 9});
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        server.post("/v1/chat/completions", &body)
    };
    let whole = chat(json!({})).ok();
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["choices"][0]["message"]["content"], lines[0]["text"]);
    assert_eq!(whole["choices"][0]["message"]["role"], "assistant");
    assert_eq!(whole["usage"]["layers"][0], lines[0]["layers"]);
    assert_eq!(whole["usage"]["prompt_tokens"], lines[0]["prompt_tokens"]);
    // Parts of a message, another name of the limit, variables of the template.
    let parts = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "house"}]}]);
    assert_eq!(
        chat(json!({"messages": parts})).ok()["choices"],
        whole["choices"]
    );
    let short = chat(json!({"max_tokens": null, "max_completion_tokens": 2})).ok();
    assert_eq!(short["usage"]["completion_tokens"], 2);
    let quick = chat(json!({"chat_template_kwargs": {"quick": true}})).ok();
    assert!(quick["usage"]["prompt_tokens"].as_u64() > whole["usage"]["prompt_tokens"].as_u64());

    let logprobs = chat(json!({"logprobs": true, "top_logprobs": 2})).ok();
    let content = logprobs["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    assert_eq!(
        content.len(),
        whole["usage"]["completion_tokens"].as_u64().unwrap() as usize
    );
    for token in content {
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 2);
        assert_eq!(token["top_logprobs"][0]["logprob"], token["logprob"]);
    }

    let events = chat(json!({"stream": true})).events();
    assert_eq!(events[0]["object"], "chat.completion.chunk");
    assert_eq!(
        events[0]["choices"][0]["delta"],
        json!({"role": "assistant", "content": ""})
    );
    let pieces = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    assert_eq!(
        pieces.collect::<String>(),
        lines[0]["text"].as_str().unwrap()
    );
    assert_eq!(
        events.last().unwrap()["choices"][0]["finish_reason"],
        whole["choices"][0]["finish_reason"]
    );
    // As long as the model has room for.
    let long = chat(json!({"max_tokens": null, "ignore_eos": true})).ok();
    assert_eq!(
        long["usage"]["total_tokens"], 513,
        "the last token needs no position"
    );

    let refused = chat(json!({"messages": [{"role": "tool", "content": "x"}]}));
    assert_names(&refused.error(400), &["no tools"]);
}

#[test]
fn the_models_are_listed_and_the_key_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let prompts = dir.path().join("prompts.txt");
    std::fs::write(&prompts, PROMPTS.join("\n")).unwrap();
    let server = Server::start(&[
        "--api-key",
        "secret",
        "--strategy",
        "unified@2",
        "--strategy",
        "early-exit@2",
        "--calibration",
        prompts.to_str().unwrap(),
    ]);
    assert_eq!(server.send("GET", "/health", &[], b"").ok()["status"], "ok");
    let wrong = [
        None,
        Some("Bearer wrong"),
        Some("Bearer secrets"),
        Some("Basic secret"),
        Some("Bearer "),
    ];
    for key in wrong {
        let headers: Vec<(&str, &str)> =
            key.map(|key| ("Authorization", key)).into_iter().collect();
        for path in ["/v1/models", "/v1/completions", "/nowhere"] {
            let answer = server.send("GET", path, &headers, b"");
            assert_names(&answer.error(401), &["API key"]);
        }
    }
    let key = [("Authorization", "Bearer secret")];
    let models = server.send("GET", "/v1/models", &key, b"").ok();
    let names: Vec<&str> = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["id"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["base", "base:unified@2", "base:early-exit@2"]);
    for (name, status) in [
        ("base", 200),
        ("base:early-exit@2", 200),
        ("base:top%402", 200),
        ("base:nothing", 404),
    ] {
        let answer = server.send("GET", &format!("/v1/models/{name}"), &key, b"");
        assert_eq!(answer.status, status, "{name}");
    }
    // What was calibrated at the start runs.
    let body =
        json!({"model": "base:early-exit@2", "prompt": "A dog", "temperature": 0, "max_tokens": 8});
    let answer = server
        .send("POST", "/v1/completions", &key, body.to_string().as_bytes())
        .ok();
    assert!(answer["usage"]["layers_per_token"].as_f64().unwrap() < 16.0);
}
