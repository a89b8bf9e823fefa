//! Many clients, clients that leave, and the end of the server.

use super::{ask, generated};
use crate::http::Server;
use crate::support::{assert_names, checkpoint};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// 200 requests from 32 clients, every eighth of them malformed.
#[test]
fn many_clients_at_once_get_what_each_asked_for() {
    let server = Server::start(&[]);
    let strategies = [
        "full",
        "unified@2",
        "skip-decode@2",
        "early-exit: {threshold: 0.5}",
    ];
    let tasks: Vec<(String, usize, usize)> = (0..200)
        .map(|index| {
            let words = ["dog", "house", "man", "report", "tree", "city", "river"];
            let prompt = format!("The {} and the {}", words[index % 7], words[index / 7 % 7]);
            (prompt, index % 4, 4 + index % 3)
        })
        .collect();
    // Each alone, by the command line.
    let expected: Vec<Vec<Value>> = (0..4)
        .map(|strategy| {
            (4..7)
                .flat_map(|most| {
                    let mine: Vec<Value> = tasks
                        .iter()
                        .enumerate()
                        .filter(|(_, task)| task.1 == strategy && task.2 == most)
                        .map(|(index, task)| json!({"id": index, "prompt": task.0}))
                        .collect();
                    match mine.is_empty() {
                        true => Vec::new(),
                        false => generated(
                            &checkpoint(),
                            &mine,
                            strategies[strategy],
                            &["--max-new-tokens", &most.to_string()],
                        ),
                    }
                })
                .collect()
        })
        .collect();
    let expected = expected.concat();
    let next = AtomicUsize::new(0);
    let answered = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some((prompt, strategy, most)) = tasks.get(index) else {
                        return;
                    };
                    let body = json!({
                        "model": format!("base:{}", strategies[*strategy]),
                        "prompt": prompt, "max_tokens": most, "temperature": 0, "stream": index.is_multiple_of(3),
                        "stream_options": {"include_usage": true},
                    });
                    match index % 16 {
                        5 => assert_eq!(server.send("POST", "/v1/completions", &[], b"{\"model\": \xff").status, 400),
                        13 => assert_eq!(ask(&server, "base:nothing@2", json!({"prompt": prompt})).status, 404),
                        _ => {
                            let answer = server.post("/v1/completions", &body);
                            let (text, layers) = match index % 3 {
                                0 => {
                                    let events = answer.events();
                                    let pieces = events.iter().filter_map(|event| event["choices"][0]["text"].as_str());
                                    (pieces.collect(), events.last().unwrap()["usage"]["layers"][0].clone())
                                }
                                _ => {
                                    let answer = answer.ok();
                                    (answer["choices"][0]["text"].as_str().unwrap().to_owned(), answer["usage"]["layers"][0].clone())
                                }
                            };
                            let line = expected.iter().find(|line| line["id"] == index).unwrap();
                            assert_eq!(text, line["text"], "{index}");
                            assert_eq!(layers, line["layers"], "{index}");
                        }
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(answered.into_inner(), 200);
    // A batch that has told all its rows is gone a moment later.
    wait_for(&server, "running", 0);
    wait_for(&server, "waiting", 0);
}

/// Until the server says so of itself, or a while.
fn wait_for(server: &Server, key: &str, count: u64) {
    let begun = Instant::now();
    loop {
        let health = server.send("GET", "/health", &[], b"").ok();
        if health[key] == count {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{key}: {health}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A window that no test waits for keeps rows in the queue.
const LONG_WINDOW: [&str; 2] = ["--window-ms", "60000"];

#[test]
fn who_leaves_frees_a_place_and_a_full_queue_says_so() {
    let server = Server::start(&[&LONG_WINDOW[..], &["--queue", "2"]].concat());
    let body = json!({"model": "base", "prompt": "A dog", "stream": true}).to_string();
    let first = server.begin("POST", "/v1/completions", &[], body.as_bytes());
    let second = server.begin(
        "POST",
        "/v1/completions",
        &[],
        body.replace("true", "false").as_bytes(),
    );
    wait_for(&server, "waiting", 2);
    let full = ask(&server, "base", json!({"prompt": "A dog"}));
    assert_names(&full.error(503), &["2 prompts wait already"]);
    assert_eq!(full.header("retry-after"), Some("1"));
    assert_names(
        &ask(&server, "base", json!({"prompt": ["A", "b", "c"]})).error(400),
        &["3 prompts"],
    );
    drop(first);
    wait_for(&server, "waiting", 1);
    drop(second);
    wait_for(&server, "waiting", 0);
}

#[test]
fn a_request_has_its_time() {
    let server = Server::start(&[&LONG_WINDOW[..], &["--timeout", "1"]].concat());
    let late = ask(&server, "base", json!({"prompt": "A dog"}));
    assert_names(&late.error(504), &["longer than the 1 s"]);
    assert_eq!(late.header("x-should-retry"), Some("false"));
    let streamed = ask(&server, "base", json!({"prompt": "A dog", "stream": true}));
    assert_eq!(streamed.status, 200);
    assert_names(
        &streamed.text(),
        &["data: {\"error\":", "longer than the 1 s"],
    );
    wait_for(&server, "waiting", 0);
    // A client that does not send what it said it would.
    let begun = server
        .begin_with("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{");
    assert_names(&begun.answer().error(504), &["longer than the 1 s"]);
}

#[cfg(unix)]
#[test]
fn it_stops_when_everyone_has_an_answer() {
    let mut server = Server::start(&LONG_WINDOW);
    let body =
        json!({"model": "base", "prompt": "A dog", "temperature": 0, "max_tokens": 8}).to_string();
    let waiting = server.begin("POST", "/v1/completions", &[], body.as_bytes());
    wait_for(&server, "waiting", 1);
    server.signal("TERM");
    let answer = waiting.answer().ok();
    let lines = generated(
        &checkpoint(),
        &[json!({"prompt": "A dog"})],
        "full",
        &["--max-new-tokens", "8"],
    );
    assert_eq!(answer["choices"][0]["text"], lines[0]["text"]);
    let (code, said) = server.ended();
    assert_eq!(code, Some(0), "{said}");
    assert_names(&said, &["stopping"]);
    assert!(!said.contains("panicked"), "{said}");
}
