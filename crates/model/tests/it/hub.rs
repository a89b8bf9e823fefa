//! The hub, played by a small server on the loopback address.

use crate::hub_server::{COMMIT, Mood, Server};
use crate::support::fixture;
use candle_core::Device;
use sha2::{Digest, Sha256};
use skipbench_model::{Backend, Decoder, Hub, HubName, Snapshot};
use std::path::Path;
use std::sync::Mutex;

fn hub(server: &Server, cache: &Path) -> Hub {
    Hub {
        endpoint: format!("{}/", server.address),
        cache: cache.to_path_buf(),
        token: Some("hf_secret".to_owned()),
        offline: false,
    }
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
        let hub = hub(&server, cache.path());
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
    let folder = fetch(&hub(&server, cache.path()))
        .unwrap()
        .folder()
        .to_path_buf();
    let nobody = Hub {
        endpoint: "http://127.0.0.1:9".to_owned(),
        ..hub(&server, cache.path())
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
    let hub = hub(&server, cache.path());
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
    let hub = hub(&server, cache.path());
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
    assert_refused(&hub(&server, &inner), &["escaped"]);
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
        assert_refused(&hub(&server, cache.path()), parts);
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
    let error = fetch(&hub(&server, cache.path())).unwrap_err().to_string();
    assert!(error.contains("weight_map.a"), "{error}");
}
