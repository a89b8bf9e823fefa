//! A server of the binary, and the smallest client that can ask it anything.

use crate::support::checkpoint;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// `skipbench serve`, which ends with the test.
pub(crate) struct Server {
    child: Child,
    address: String,
    said: std::process::ChildStderr,
}

impl Server {
    /// Of the shipped checkpoint.
    pub(crate) fn start(more: &[&str]) -> Self {
        Self::of(&checkpoint(), more)
    }

    pub(crate) fn of(model: &Path, more: &[&str]) -> Self {
        let mut child = Command::new(assert_cmd::cargo::cargo_bin("skipbench"))
            .args(["serve", "--port", "0", "--model"])
            .arg(model)
            .args(more)
            .env_remove("RUST_LOG")
            .env_remove("SKIPBENCH_API_KEY")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = child.stderr.take().unwrap();
        // A byte at a time, so that nothing is lost of what comes behind.
        let mut text = String::new();
        let address = loop {
            let mut byte = [0];
            assert_eq!(said.read(&mut byte).unwrap(), 1, "{text}");
            text.push(byte[0].into());
            if let Some(end) = text.strip_suffix("/v1\n") {
                break end.rsplit_once("http://").unwrap().1.to_owned();
            }
        };
        Self {
            child,
            address,
            said,
        }
    }

    /// Sends a request and leaves the answer for later.
    pub(crate) fn begin(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Begun {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n",
            self.address,
            body.len()
        );
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        let mut begun = self.begin_with(&(head + "\r\n"));
        // A server that refuses a body by its length need not read it.
        let _ = begun.0.write_all(body);
        begun
    }

    /// Sends what may be the beginning of a request.
    pub(crate) fn begin_with(&self, text: &str) -> Begun {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(120)))
            .unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        Begun(stream)
    }

    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        self.begin(method, path, headers, body).answer()
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[], body.to_string().as_bytes())
    }

    #[cfg(unix)]
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status();
        assert!(status.unwrap().success());
    }

    /// How it ended, and what it said after it was ready.
    #[cfg(unix)]
    pub(crate) fn ended(&mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.said.read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), said)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request whose answer is not read yet; dropping it hangs up.
pub(crate) struct Begun(TcpStream);

impl Begun {
    pub(crate) fn answer(self) -> Answer {
        let mut reader = BufReader::new(self.0);
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            assert!(
                reader.read_line(&mut line).unwrap() > 0,
                "no answer: {head:?}"
            );
            if line == "\r\n" {
                break;
            }
            head.push(line.trim_end().to_owned());
        }
        let mut answer = Answer {
            status: head[0].split(' ').nth(1).unwrap().parse().unwrap(),
            headers: head[1..]
                .iter()
                .map(|line| line.split_once(": ").unwrap())
                .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
                .collect(),
            body: Vec::new(),
        };
        match answer.header("content-length") {
            Some(length) => {
                answer.body = vec![0; length.parse().unwrap()];
                reader.read_exact(&mut answer.body).unwrap();
            }
            None => loop {
                assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
                let mut size = String::new();
                reader.read_line(&mut size).unwrap();
                let size = usize::from_str_radix(size.trim_end(), 16).unwrap();
                let mut chunk = vec![0; size + 2];
                reader.read_exact(&mut chunk).unwrap();
                if size == 0 {
                    break;
                }
                answer.body.extend_from_slice(&chunk[..size]);
            },
        }
        answer
    }
}

/// What a server said.
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let header = self.headers.iter().find(|(known, _)| known == name);
        header.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{}", self.text()))
    }

    /// The JSON of an answer that is one.
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// The message of an error with this status.
    #[track_caller]
    pub(crate) fn error(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text());
        self.json()["error"]["message"].as_str().unwrap().to_owned()
    }

    /// An error in a line, after a look at its form.
    #[track_caller]
    pub(crate) fn refusal(&self) -> String {
        let value = self.json();
        let keys: Vec<&String> = value["error"].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["message", "type", "param", "code"]);
        assert_eq!(value["error"]["type"], "invalid_request_error");
        let word = |key: &str| value["error"][key].as_str().unwrap_or("-").to_owned();
        format!(
            "{} {} {}: {}",
            self.status,
            word("param"),
            word("code"),
            word("message")
        )
    }

    /// The events of a stream that ended well.
    #[track_caller]
    pub(crate) fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("text/event-stream"));
        let text = self.text();
        let events = text
            .strip_suffix("data: [DONE]\n\n")
            .unwrap_or_else(|| panic!("{text}"));
        let events = events.split_terminator("\n\n");
        events
            .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
            .collect()
    }
}
