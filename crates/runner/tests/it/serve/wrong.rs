//! What is refused, and how that is said.

use super::{ask, chat_checkpoint};
use crate::http::{Answer, Server};
use crate::support::{assert_names, checkpoint, refused, skipbench};
use serde_json::{Value, json};

/// Holds where the status, the field and the code are these, and the message says so.
#[track_caller]
fn assert_refused(answer: &Answer, about: &str, begins: &str, says: &str) {
    let said = answer.refusal();
    assert!(
        said.starts_with(&format!("{begins}: ")) && said.contains(says),
        "{about}\n{said}\nis not {begins}: … {says}"
    );
}

/// Of a text, a strategy or its lengths.
#[test]
fn models_and_prompts_that_are_wrong_are_named() {
    let limits = ["--max-tokens", "100", "--max-prompt-tokens", "300"];
    let server = Server::start(&limits);
    let long: Vec<u32> = vec![5; 301];
    let strategy = "400 model invalid_strategy";
    let unknown = "404 model model_not_found";
    let prompt = "400 prompt[0] -";
    let model = |name: &str| json!({"model": name, "prompt": "x"});
    let of = |prompt: Value| json!({"model": "base", "prompt": prompt});
    let cases = [
        (json!([1]), "400 - -", "the body is a list"),
        (json!({"prompt": "x"}), "400 model -", "is missing"),
        (json!({"model": 5}), "400 model -", "a text, not 5"),
        (model("other"), unknown, "`base:unified@2`"),
        (model("base-2"), unknown, "no model `base-2`"),
        (model("base:unifid@2"), unknown, "unified"),
        (model("base:unified@99"), strategy, "layers"),
        (model("base:early-exit@2"), strategy, "--calibration"),
        (model("base:sleb@2"), strategy, "--calibration"),
        (
            model("base:drop-list: {file: /etc/passwd}"),
            strategy,
            "no request makes the server read a file",
        ),
        (
            model("base:random: {speedup: 2, seeds: 3}"),
            strategy,
            "several strategies",
        ),
        (model("base:oracle-depth"), strategy, "oracle-depth"),
        (json!({"model": "base"}), "400 prompt -", "is missing"),
        (of(json!("")), prompt, "is empty"),
        (of(json!([])), prompt, "is empty"),
        (of(json!(["a", ""])), "400 prompt[1] -", "is empty"),
        (of(json!(5)), "400 prompt -", "a list of texts"),
        (of(json!(["a", 5])), "400 prompt[1] -", "not 5"),
        (of(json!([1, -1])), prompt, "from 0 to 1023, not -1"),
        (of(json!([1, 1024])), prompt, "not 1024"),
        (of(json!([1, 2.5])), prompt, "not 2.5"),
        (of(json!([[1], [true]])), "400 prompt[1] -", "a token id"),
        (
            of(json!(long)),
            "400 prompt[0] context_length_exceeded",
            "301 tokens, and the server takes 300",
        ),
        (
            json!({"model": "base", "prompt": "x", "max_tokens": 101}),
            "400 max_tokens -",
            "0 to 100, not 101",
        ),
    ];
    for (body, begins, says) in cases {
        let answer = server.post("/v1/completions", &body);
        assert_refused(&answer, &body.to_string(), begins, says);
    }
    // It goes on as if nothing had been.
    assert_eq!(ask(&server, "base", json!({"prompt": "x"})).status, 200);
}

#[test]
fn fields_that_are_wrong_are_named() {
    let server = Server::start(&[]);
    let scored = |more: Value| {
        let mut body = json!({"prompt": [1, 2, 3], "echo": true, "logprobs": 0, "max_tokens": 0});
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        body
    };
    let border = "400 context_tokens -";
    let cases = [
        (json!({"max_tokens": -1}), "400 max_tokens -", "not -1"),
        (json!({"max_tokens": "5"}), "400 max_tokens -", "not a text"),
        (
            json!({"temperature": 3}),
            "400 temperature -",
            "from 0 to 2, not 3",
        ),
        (
            json!({"temperature": 0.00001}),
            "400 temperature -",
            "0.0001 up",
        ),
        (json!({"top_p": 0}), "400 top_p -", "0 is not above 0"),
        (
            json!({"seed": 1.5}),
            "400 seed -",
            "a whole number, not 1.5",
        ),
        (json!({"stop": ""}), "400 stop -", "is empty"),
        (
            json!({"stop": ["a", 5]}),
            "400 stop -",
            "a list of texts, not 5",
        ),
        (
            json!({"stream": "yes"}),
            "400 stream -",
            "true or false, not a text",
        ),
        (json!({"echo": 1}), "400 echo -", "true or false, not 1"),
        (json!({"logprobs": true}), "400 logprobs -", "from 0 to 20"),
        (json!({"logprobs": 21}), "400 logprobs -", "not 21"),
        (
            json!({"n": 2}),
            "400 n unsupported_parameter",
            "not supported",
        ),
        (
            json!({"suffix": "y"}),
            "400 suffix unsupported_parameter",
            "not supported",
        ),
        (
            json!({"max_new_tokens": 2}),
            "400 max_new_tokens unknown_parameter",
            "unknown field",
        ),
        (
            json!({"context_tokens": 1}),
            border,
            "`echo` and `logprobs`",
        ),
        (
            scored(json!({"context_tokens": [1, 2]})),
            border,
            "2 numbers for 1 prompts",
        ),
        (
            scored(json!({"context_tokens": 3})),
            border,
            "none is left to score",
        ),
        (
            scored(json!({"context_tokens": 0})),
            border,
            "1 or more, not 0",
        ),
        (
            scored(json!({"score_mode": "decoded"})),
            "400 score_mode -",
            "one-pass",
        ),
        (
            scored(json!({"score_mode": "as-decoded"})),
            border,
            "needs `context_tokens`",
        ),
        (
            scored(json!({"model": "base:early-exit: {threshold: 0.5}"})),
            border,
            "not the same at every token",
        ),
        (
            json!({"model": "base:self-speculative:top@2"}),
            "400 temperature -",
            "set `temperature` to 0",
        ),
        (
            json!({"prompt": vec![5; 500], "max_tokens": 100}),
            "400 prompt[0] context_length_exceeded",
            "take 599 positions, and the model has 512",
        ),
    ];
    for (mut body, begins, says) in cases {
        for (key, value) in [("model", "base"), ("prompt", "x")] {
            if body.get(key).is_none() {
                body[key] = value.into();
            }
        }
        let answer = server.post("/v1/completions", &body);
        assert_refused(&answer, &body.to_string(), begins, says);
    }
}

#[test]
fn bodies_and_paths_that_are_none_are_named() {
    let server = Server::start(&["--max-body-kib", "8"]);
    for (body, says) in [
        (
            &b"{\"model\": \"base\", \"prompt\": \"\xff\"}"[..],
            "not UTF-8 at byte 29",
        ),
        (b"", "not JSON"),
        (b"{\"model\": \"base\",", "not JSON"),
        (b"{\"prompt\": \"\\ud800\"}", "not JSON"),
    ] {
        let answer = server.send("POST", "/v1/completions", &[], body);
        assert_refused(&answer, says, "400 - -", says);
    }
    let chat = json!({"model": "base", "messages": [{"role": "user", "content": "x"}]});
    let chat = server.post("/v1/chat/completions", &chat);
    assert_refused(
        &chat,
        "no template",
        "400 - no_chat_template",
        "no chat template",
    );
    for (path, begins, says) in [
        ("/v1/nothing", "404 - -", "there is no `/v1/nothing`"),
        ("/v1/completions", "405 - -", "does not take GET"),
        (
            "/v1/models/other",
            "404 model model_not_found",
            "no model `other`",
        ),
    ] {
        assert_refused(&server.send("GET", path, &[], b""), path, begins, says);
    }
    let large = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 8193\r\n\r\n";
    let large = server.begin_with(large).answer();
    assert_refused(
        &large,
        "8193 bytes",
        "413 - request_too_large",
        "8192 bytes",
    );
}

#[test]
fn chats_that_are_wrong_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::of(&chat_checkpoint(dir.path()), &["--name", "tiny"]);
    let hello = json!([{"role": "user", "content": "x"}]);
    let of = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    let with = |key: &str, value: Value| json!({"messages": hello, key: value});
    let cases = [
        (json!({}), "400 messages -", "is missing"),
        (
            json!({"messages": []}),
            "400 messages -",
            "without any message",
        ),
        (json!({"messages": "hello"}), "400 messages -", "not a text"),
        (json!({"messages": ["hello"]}), "400 messages[0] -", ""),
        (
            json!({"messages": [{"content": "x"}]}),
            "400 messages[0] -",
            "`role`",
        ),
        (of(json!(5)), "400 messages[0].content -", "not 5"),
        (
            of(json!([{"type": "image_url", "image_url": {"url": "x"}}])),
            "400 messages[0].content -",
            "nothing else is read",
        ),
        (
            with("top_logprobs", json!(2)),
            "400 top_logprobs -",
            "needs `logprobs: true`",
        ),
        (
            with("tools", json!([{"type": "function"}])),
            "400 tools unsupported_parameter",
            "not supported",
        ),
        (
            with("response_format", json!({"type": "json_object"})),
            "400 response_format unsupported_parameter",
            "not supported",
        ),
        (
            with("prompt", json!("x")),
            "400 prompt unknown_parameter",
            "unknown field",
        ),
        (
            of(json!("the dog ".repeat(600))),
            "400 messages context_length_exceeded",
            "the server takes 512",
        ),
    ];
    for (mut body, begins, says) in cases {
        body["model"] = "tiny".into();
        let answer = server.post("/v1/chat/completions", &body);
        assert_refused(&answer, &body.to_string(), begins, says);
    }
}

#[test]
fn what_cannot_be_served_is_refused_at_the_start() {
    let refused_with = |more: &[&str]| {
        let mut command = skipbench();
        command.args(["serve", "--port", "0", "--model"]);
        refused(command.arg(checkpoint()).args(more))
    };
    for (strategy, says) in [
        ("unifid@2", "unified"),
        ("unified@40", "--strategy unified@40"),
        ("early-exit@2", "--calibration"),
        ("random: {speedup: 2, seeds: 3}", "several strategies"),
    ] {
        let said = refused_with(&["--strategy", strategy]);
        assert_names(&said, &[&format!("--strategy {strategy}"), says]);
    }
    assert_names(&refused_with(&["--api-key", ""]), &["API key is empty"]);
    let elsewhere = refused_with(&["--host", "192.0.2.1"]);
    assert_names(&elsewhere, &["cannot listen on 192.0.2.1:0"]);
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut command = skipbench();
    command.args(["serve", "--port", &port, "--model"]);
    let said = refused(command.arg(checkpoint()));
    assert_names(&said, &["cannot listen on 127.0.0.1", "--port 0"]);
}
