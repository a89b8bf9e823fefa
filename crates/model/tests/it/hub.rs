//! The hub, played by a small server on the loopback address.

use crate::support::fixture;
use candle_core::Device;
use sha2::{Digest, Sha256};
use skipbench_model::{Backend, Decoder, Hub, HubName, Snapshot};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the server behaves.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Fine,
    /// Every answer has this status.
    Status(u16),
    /// The weights end in the middle.
    CutOff,
    /// Tags that lead out of the cache.
    Hostile,
}

struct Server {
    address: String,
    mood: Arc<Mutex<Mood>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Serves the files of a folder as the repository `owner/name`.
    fn of(folder: &Path) -> Self {
        let files: BTreeMap<String, Vec<u8>> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                (name, std::fs::read(entry.path()).unwrap())
            })
            .collect();
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

    fn hub(&self, cache: &Path) -> Hub {
        Hub {
            endpoint: format!("{}/", self.address),
            cache: cache.to_path_buf(),
            token: Some("hf_secret".to_owned()),
            offline: false,
        }
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn asked_for(&self, part: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|line| line.contains(part)).count()
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

fn name() -> HubName {
    "owner/name".parse().unwrap()
}

fn fetch(hub: &Hub) -> skipbench_model::Result<Snapshot> {
    let snapshot = hub.look(&name())?;
    snapshot.fetch(|_| true, |_| ())?;
    Ok(snapshot)
}

#[track_caller]
fn assert_refused(hub: &Hub, parts: &[&str]) {
    let message = fetch(hub).unwrap_err().to_string();
    for part in ["hub:owner/name"].iter().chain(parts) {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
}

#[test]
fn a_repository_is_fetched_once_and_loads() {
    for fixture_name in ["llama3-rope-head-dim", "mistral-sharded"] {
        let server = Server::of(&fixture(fixture_name));
        let cache = tempfile::tempdir().unwrap();
        let hub = server.hub(cache.path());
        let snapshot = hub.look(&name()).unwrap();
        let absent: Vec<_> = snapshot.absent().collect();
        let weights: Vec<_> = absent
            .iter()
            .filter(|file| Snapshot::is_weights(file))
            .collect();
        assert_eq!(
            weights.len(),
            if fixture_name == "mistral-sharded" {
                3
            } else {
                1
            }
        );
        for file in &weights {
            let bytes = std::fs::read(fixture(fixture_name).join(&file.name)).unwrap();
            assert_eq!(file.bytes, Some(bytes.len() as u64));
            assert_eq!(file.sha256, Some(format!("{:x}", Sha256::digest(bytes))));
        }
        // Nothing large has moved for the look alone.
        assert_eq!(server.asked_for(".safetensors "), 0);
        let told = Mutex::new(Vec::new());
        let tell = |message: &str| told.lock().unwrap().push(message.to_owned());
        snapshot.fetch(|_| true, tell).unwrap();
        assert!(
            told.lock()
                .unwrap()
                .iter()
                .any(|line| line.contains(".safetensors"))
        );
        assert_eq!(snapshot.absent().count(), 0);
        assert!(snapshot.folder().starts_with(cache.path()));
        assert!(server.asked_for("Bearer hf_secret") > 0);
        let model = Decoder::load(snapshot.folder(), &Device::Cpu, None, Backend::Auto);
        assert!(model.is_ok());

        let downloads = server.asked_for("/resolve/");
        fetch(&hub).unwrap();
        assert_eq!(server.asked_for("/resolve/"), downloads, "fetched again");
        // A file that is not needed was never asked for.
        assert_eq!(server.asked_for("expected.json"), 0);
    }
}

#[test]
fn what_is_in_the_cache_needs_no_network() {
    let server = Server::of(&fixture("llama1"));
    let cache = tempfile::tempdir().unwrap();
    let folder = fetch(&server.hub(cache.path()))
        .unwrap()
        .folder()
        .to_path_buf();
    let nobody = Hub {
        endpoint: "http://127.0.0.1:9".to_owned(),
        ..server.hub(cache.path())
    };
    assert_eq!(fetch(&nobody).unwrap().folder(), folder);
    let offline = Hub {
        offline: true,
        ..nobody
    };
    assert_eq!(fetch(&offline).unwrap().folder(), folder);
    let by_commit: HubName = format!("owner/name@{COMMIT}").parse().unwrap();
    assert_eq!(offline.look(&by_commit).unwrap().folder(), folder);
}

#[test]
fn without_a_network_the_error_says_what_to_do() {
    let cache = tempfile::tempdir().unwrap();
    let mut hub = Hub {
        endpoint: "http://127.0.0.1:9".to_owned(),
        cache: cache.path().to_path_buf(),
        token: None,
        offline: false,
    };
    assert_refused(&hub, &["http://127.0.0.1:9", "HF_ENDPOINT", "--local-dir"]);
    hub.offline = true;
    assert_refused(&hub, &["HF_HUB_OFFLINE", "folder"]);
}

#[test]
fn what_the_hub_refuses_is_said() {
    let server = Server::of(&fixture("llama1"));
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path());
    server.set(Mood::Status(401));
    assert_refused(&hub, &["this token", "HF_TOKEN"]);
    server.set(Mood::Status(403));
    assert_refused(&hub, &["HF_TOKEN", "terms"]);
    server.set(Mood::Status(404));
    assert_refused(&hub, &["no such repository", "HF_TOKEN"]);
    server.set(Mood::Status(503));
    assert_refused(&hub, &[&server.address]);
}

#[test]
fn a_download_that_is_cut_off_goes_on_where_it_stopped() {
    let server = Server::of(&fixture("llama1"));
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path());
    server.set(Mood::CutOff);
    assert_refused(&hub, &["model.safetensors", "goes on"]);
    let snapshot = hub.look(&name()).unwrap();
    assert!(snapshot.absent().any(Snapshot::is_weights));
    server.set(Mood::Fine);
    let folder = fetch(&hub).unwrap().folder().to_path_buf();
    let half = std::fs::metadata(fixture("llama1").join("model.safetensors"))
        .unwrap()
        .len()
        / 2;
    assert_eq!(server.asked_for(&format!("bytes={half}-")), 1);
    assert_eq!(
        std::fs::read(folder.join("model.safetensors")).unwrap(),
        std::fs::read(fixture("llama1").join("model.safetensors")).unwrap()
    );
}

#[test]
fn no_answer_leads_out_of_the_cache() {
    let server = Server::of(&fixture("llama1"));
    let cache = tempfile::tempdir().unwrap();
    let inner = cache.path().join("a/b/c");
    server.set(Mood::Hostile);
    assert_refused(&server.hub(&inner), &["escaped"]);
    assert!(!cache.path().join("escaped").exists());
    assert!(!cache.path().join("a/escaped").exists());
}

#[test]
fn a_repository_without_what_is_needed() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str| std::fs::write(folder.path().join(name), "{}").unwrap();
    let refused = |parts: &[&str]| {
        let server = Server::of(folder.path());
        let cache = tempfile::tempdir().unwrap();
        assert_refused(&server.hub(cache.path()), parts);
    };
    write("config.json");
    refused(&["model.safetensors"]);
    write("pytorch_model.bin");
    refused(&[".bin", "safetensors"]);
    write("model-q4.gguf");
    refused(&["model-q4.gguf", "path"]);
    let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors"}}"#;
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    refused(&["model-00001-of-00002.safetensors"]);
    let index = r#"{"weight_map": {"a": "../../evil"}}"#;
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    let server = Server::of(folder.path());
    let cache = tempfile::tempdir().unwrap();
    let error = fetch(&server.hub(cache.path())).unwrap_err().to_string();
    assert!(error.contains("weight_map.a"), "{error}");
}
