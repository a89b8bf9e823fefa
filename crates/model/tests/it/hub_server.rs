//! A server on the loopback address that answers as the hub does; the tests of the binary take it from here.
#![allow(dead_code, reason = "each of the two test binaries uses a part of it")]

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the server behaves.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Mood {
    Fine,
    /// Every answer has this status.
    Status(u16),
    /// The weights end in the middle.
    CutOff,
    /// Tags that lead out of the cache.
    Hostile,
}

pub(crate) struct Server {
    pub(crate) address: String,
    mood: Arc<Mutex<Mood>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Serves the files of a folder as the repository `owner/name`, and as the data set of that name.
    pub(crate) fn of(folder: &Path) -> Self {
        let mut files = BTreeMap::new();
        read(folder, "", &mut files);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let mood = Arc::new(Mutex::new(Mood::Fine));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (shared_mood, shared_asked) = (mood.clone(), asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mood = *shared_mood.lock().unwrap();
                // A client that goes away is no reason to stop.
                let _ = answer(stream, &files, mood, &shared_asked);
            }
        });
        Self {
            address,
            mood,
            asked,
        }
    }

    pub(crate) fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    pub(crate) fn asked_for(&self, part: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|line| line.contains(part)).count()
    }
}

/// The files below a folder, by their paths.
fn read(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().into_string().unwrap());
        match entry.path().is_dir() {
            true => read(&entry.path(), &format!("{name}/"), files),
            false => drop(files.insert(name, std::fs::read(entry.path()).unwrap())),
        }
    }
}

fn answer(
    mut stream: TcpStream,
    files: &BTreeMap<String, Vec<u8>>,
    mood: Mood,
    asked: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let request = lines.first().cloned().unwrap_or_default();
    let header = |name: &str| {
        let found = lines.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        });
        found.unwrap_or_default()
    };
    asked.lock().unwrap().push(format!(
        "{request} {} {}",
        header("range"),
        header("authorization")
    ));
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let path = path.replacen("/api/datasets/", "/api/models/", 1);
    let path = path.strip_prefix("/datasets").unwrap_or(&path).to_owned();
    let send = |stream: &mut TcpStream, status: &str, more: &str, body: &[u8], length: usize| {
        write!(
            stream,
            "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{more}\r\n"
        )?;
        stream.write_all(body)
    };
    if let Mood::Status(status) = mood {
        return send(&mut stream, &format!("{status} No"), "", b"", 0);
    }
    if path.starts_with("/api/models/owner/name/revision/") {
        let siblings: Vec<_> = files
            .iter()
            .map(|(name, bytes)| {
                let large = name.ends_with(".safetensors");
                let sha256 = format!("{:x}", Sha256::digest(bytes));
                serde_json::json!({
                    "rfilename": name,
                    "size": bytes.len(),
                    "lfs": large.then(|| serde_json::json!({"sha256": sha256, "size": bytes.len()})),
                })
            })
            .collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return send(&mut stream, "200 OK", "", body.as_bytes(), body.len());
    }
    let file = path.strip_prefix(&format!("/owner/name/resolve/{COMMIT}/"));
    let Some(bytes) = file.and_then(|name| files.get(name)) else {
        return send(&mut stream, "404 Not Found", "", b"", 0);
    };
    let range = header("range");
    let range = range.strip_prefix("bytes=").unwrap_or("0-");
    let (from, to) = range.split_once('-').unwrap_or(("0", ""));
    let from = from.parse::<usize>().unwrap_or(0).min(bytes.len());
    let to = to
        .parse::<usize>()
        .map_or(bytes.len(), |to| (to + 1).min(bytes.len()));
    let etag = match mood {
        Mood::Hostile => "../../../escaped".to_owned(),
        _ => format!("{:x}", Sha256::digest(bytes)),
    };
    let more = format!(
        "ETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {from}-{}/{}\r\n",
        to.saturating_sub(1),
        bytes.len()
    );
    let body = &bytes[from..to.max(from)];
    let sent = match mood {
        Mood::CutOff if path.ends_with(".safetensors") && body.len() > 100 => {
            &body[..body.len() / 2]
        }
        _ => body,
    };
    send(&mut stream, "206 Partial Content", &more, sent, body.len())
}
