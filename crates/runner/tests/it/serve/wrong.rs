//! What is refused, and how that is said.

use super::{ask, chat_checkpoint};
use crate::http::Server;
use crate::support::{assert_names, checkpoint, refused, skipbench};
use serde_json::json;

/// Everything wrong that can be sent, with what is answered.
#[test]
fn what_is_wrong_is_said() {
    let server = Server::start(&[
        "--max-tokens",
        "100",
        "--max-prompt-tokens",
        "300",
        "--max-body-kib",
        "8",
    ]);
    let long: Vec<u32> = vec![5; 301];
    let roomy: Vec<u32> = vec![5; 300];
    let completions = [
        json!([1]),
        json!({"prompt": "x"}),
        json!({"model": 5, "prompt": "x"}),
        json!({"model": "other", "prompt": "x"}),
        json!({"model": "base-2", "prompt": "x"}),
        json!({"model": "base:unifid@2", "prompt": "x"}),
        json!({"model": "base:unified@99", "prompt": "x"}),
        json!({"model": "base:early-exit@2", "prompt": "x"}),
        json!({"model": "base:sleb@2", "prompt": "x"}),
        json!({"model": "base:drop-list: {file: /etc/passwd}", "prompt": "x"}),
        json!({"model": "base:random: {speedup: 2, seeds: 3}", "prompt": "x"}),
        json!({"model": "base:oracle-depth", "prompt": "x"}),
        json!({"model": "base"}),
        json!({"model": "base", "prompt": ""}),
        json!({"model": "base", "prompt": []}),
        json!({"model": "base", "prompt": ["a", ""]}),
        json!({"model": "base", "prompt": 5}),
        json!({"model": "base", "prompt": ["a", 5]}),
        json!({"model": "base", "prompt": [1, -1]}),
        json!({"model": "base", "prompt": [1, 1024]}),
        json!({"model": "base", "prompt": [1, 2.5]}),
        json!({"model": "base", "prompt": [[1], [true]]}),
        json!({"model": "base", "prompt": long}),
        json!({"model": "base", "prompt": roomy, "max_tokens": 300}),
        json!({"model": "base", "prompt": "x", "max_tokens": -1}),
        json!({"model": "base", "prompt": "x", "max_tokens": "5"}),
        json!({"model": "base", "prompt": "x", "temperature": 3}),
        json!({"model": "base", "prompt": "x", "temperature": 0.00001}),
        json!({"model": "base", "prompt": "x", "top_p": 0}),
        json!({"model": "base", "prompt": "x", "seed": 1.5}),
        json!({"model": "base", "prompt": "x", "stop": ""}),
        json!({"model": "base", "prompt": "x", "stop": ["a", 5]}),
        json!({"model": "base", "prompt": "x", "stream": "yes"}),
        json!({"model": "base", "prompt": "x", "echo": 1}),
        json!({"model": "base", "prompt": "x", "logprobs": true}),
        json!({"model": "base", "prompt": "x", "logprobs": 21}),
        json!({"model": "base", "prompt": "x", "n": 2}),
        json!({"model": "base", "prompt": "x", "suffix": "y"}),
        json!({"model": "base", "prompt": "x", "max_new_tokens": 2}),
        json!({"model": "base", "prompt": "x", "context_tokens": 1}),
        json!({"model": "base", "prompt": "x", "echo": true, "logprobs": 0, "context_tokens": [1, 2]}),
        json!({"model": "base", "prompt": [1, 2], "echo": true, "logprobs": 0, "context_tokens": 2}),
        json!({"model": "base", "prompt": [1, 2], "echo": true, "logprobs": 0, "context_tokens": 0}),
        json!({"model": "base", "prompt": [1, 2], "echo": true, "logprobs": 0, "score_mode": "decoded"}),
        json!({"model": "base", "prompt": [1, 2], "echo": true, "logprobs": 0, "score_mode": "as-decoded"}),
        json!({"model": "base:early-exit: {threshold: 0.5}", "prompt": [1, 2, 3], "echo": true, "logprobs": 0, "max_tokens": 0}),
        json!({"model": "base:self-speculative:top@2", "prompt": "x"}),
    ];
    let mut said = String::new();
    for body in &completions {
        let sent = body.to_string();
        let shown: String = sent.chars().take(120).collect();
        said += &format!(
            "{shown}\n    {}\n",
            server.post("/v1/completions", body).refusal()
        );
    }
    for raw in [
        &b"{\"model\": \"base\", \"prompt\": \"\xff\"}"[..],
        b"",
        b"{\"model\": \"base\",",
        b"{\"prompt\": \"\\ud800\"}",
    ] {
        let answer = server.send("POST", "/v1/completions", &[], raw);
        said += &format!("{}\n    {}\n", raw.escape_ascii(), answer.refusal());
    }
    let chat = json!({"model": "base", "messages": [{"role": "user", "content": "x"}]});
    said += &format!(
        "a chat without a template\n    {}\n",
        server.post("/v1/chat/completions", &chat).refusal()
    );
    said += &format!(
        "GET /v1/nothing\n    {}\n",
        server.send("GET", "/v1/nothing", &[], b"").refusal()
    );
    said += &format!(
        "GET /v1/completions\n    {}\n",
        server.send("GET", "/v1/completions", &[], b"").refusal()
    );
    said += &format!(
        "GET /v1/models/other\n    {}\n",
        server.send("GET", "/v1/models/other", &[], b"").refusal()
    );
    let large = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 8193\r\n\r\n";
    let large = server.begin_with(large).answer();
    said += &format!("8193 bytes\n    {}\n", large.refusal());
    insta::assert_snapshot!(said);
    // It goes on as if nothing had been.
    assert_eq!(ask(&server, "base", json!({"prompt": "x"})).status, 200);
}

#[test]
fn chats_that_are_wrong_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::of(&chat_checkpoint(dir.path()), &["--name", "tiny"]);
    let bodies = [
        json!({}),
        json!({"messages": []}),
        json!({"messages": "hello"}),
        json!({"messages": ["hello"]}),
        json!({"messages": [{"content": "x"}]}),
        json!({"messages": [{"role": "user", "content": 5}]}),
        json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
        json!({"messages": [{"role": "user", "content": "x"}], "top_logprobs": 2}),
        json!({"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]}),
        json!({"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_object"}}),
        json!({"messages": [{"role": "user", "content": "x"}], "prompt": "x"}),
        json!({"messages": [{"role": "user", "content": "x ".repeat(600)}]}),
    ];
    let mut said = String::new();
    for mut body in bodies {
        body["model"] = "tiny".into();
        let shown: String = body.to_string().chars().take(120).collect();
        said += &format!(
            "{shown}\n    {}\n",
            server.post("/v1/chat/completions", &body).refusal()
        );
    }
    insta::assert_snapshot!(said);
}

#[test]
fn what_cannot_be_served_is_refused_at_the_start() {
    let refused_with = |more: &[&str]| {
        let mut command = skipbench();
        command
            .args(["serve", "--port", "0", "--model"])
            .arg(checkpoint());
        refused(command.args(more))
    };
    assert_names(
        &refused_with(&["--strategy", "unifid@2"]),
        &["--strategy unifid@2", "unified"],
    );
    assert_names(
        &refused_with(&["--strategy", "unified@40"]),
        &["--strategy unified@40"],
    );
    assert_names(
        &refused_with(&["--strategy", "early-exit@2"]),
        &["--calibration"],
    );
    assert_names(
        &refused_with(&["--strategy", "random: {speedup: 2, seeds: 3}"]),
        &["several strategies"],
    );
    assert_names(&refused_with(&["--api-key", ""]), &["API key is empty"]);
    assert_names(
        &refused_with(&["--host", "192.0.2.1"]),
        &["cannot listen on 192.0.2.1:0"],
    );
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut command = skipbench();
    command
        .args(["serve", "--port", &port, "--model"])
        .arg(checkpoint());
    assert_names(
        &refused(&mut command),
        &["cannot listen on 127.0.0.1", "--port 0"],
    );
}
