//! Repositories of the Hugging Face hub, through `hf-hub` and its usual cache.

use crate::error::{ModelError, Result};
use crate::memory::human;
use crate::source::{HubDataFile, HubName, is_plain};
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Files beside the weights that are taken where they are there.
const SETTINGS: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
];
const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Where repositories are taken from and kept.
#[derive(Debug, Clone)]
pub struct Hub {
    /// Address of the hub or of a mirror.
    pub endpoint: String,
    /// Folder of the cache.
    pub cache: PathBuf,
    /// Sent as a bearer token.
    pub token: Option<String>,
    /// Nothing is asked over the network.
    pub offline: bool,
}

impl Hub {
    /// As the environment says: `HF_ENDPOINT`, `HF_HOME` or `HF_HUB_CACHE`, `HF_TOKEN` or the token that `hf auth login` has
    /// kept, `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let own = || {
            let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
            let home = || std::env::home_dir().map(|home| home.join(".cache"));
            cache.or_else(home).unwrap_or_default().join("huggingface")
        };
        let home = set("HF_HOME").map_or_else(own, PathBuf::from);
        let cache = set("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from);
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let offline = set("HF_HUB_OFFLINE").is_some_and(|value| {
            !["0", "false", "no", "off"].contains(&value.to_lowercase().as_str())
        });
        let token = set("HF_TOKEN").or_else(|| std::fs::read_to_string(home.join("token")).ok());
        // A line feed at its end would make no header.
        let token = token.map(|token| token.trim().to_owned());
        Self {
            endpoint,
            cache,
            token: token.filter(|token| !token.is_empty()),
            offline,
        }
    }

    fn endpoint(&self) -> &str {
        self.endpoint.trim_end_matches('/')
    }

    fn api(&self, name: &HubName) -> Result<Api> {
        ApiBuilder::from_cache(self.cache())
            .with_endpoint(self.endpoint().to_owned())
            .with_token(self.token.clone())
            .build()
            .map_err(|error| self.failed(name, &error))
    }

    fn cache(&self) -> Cache {
        Cache::new(self.cache.clone())
    }

    /// What a repository holds, as the hub says; as the cache says where the hub cannot be reached.
    ///
    /// # Errors
    /// A repository that is not there, not open to this token, holds no safetensors weights, or cannot be asked about and is
    /// not in the cache.
    pub fn look(&self, name: &HubName) -> Result<Snapshot> {
        if !self.offline {
            match self.ask(name) {
                Ok(listing) => return self.snapshot(name, listing),
                Err(error) if refused(&error).is_some() => {
                    return Err(self.failed(name, &error));
                }
                Err(error) => match self.cached(name) {
                    Some(cached) => {
                        tracing::warn!(
                            "{name}: {} cannot be reached ({error}); what is in the cache is used",
                            self.endpoint()
                        );
                        return self.snapshot(name, cached);
                    }
                    None => return Err(self.failed(name, &error)),
                },
            }
        }
        let missing = || {
            name.error(format!(
                "not in the cache {}, and HF_HUB_OFFLINE is set; leave that out, or give a folder that holds the model",
                self.cache.display()
            ))
        };
        self.snapshot(name, self.cached(name).ok_or_else(missing)?)
    }

    fn ask(&self, name: &HubName) -> std::result::Result<Listing, ApiError> {
        let api = ApiBuilder::from_cache(self.cache())
            .with_endpoint(self.endpoint().to_owned())
            .with_token(self.token.clone())
            .build()?;
        let revision = name.revision().to_owned();
        let repo = api.repo(Repo::with_revision(
            name.repo().to_owned(),
            name.kind(),
            revision,
        ));
        let request = repo.info_request().query("blobs", "true");
        let mut response = request.call().map_err(Box::new)?;
        Ok(response.body_mut().read_json().map_err(Box::new)?)
    }

    /// What of a repository is in the cache.
    fn cached(&self, name: &HubName) -> Option<Listing> {
        let repo = |revision: &str| {
            let revision = revision.to_owned();
            Repo::with_revision(name.repo().to_owned(), name.kind(), revision)
        };
        let folder = self
            .cache
            .join(repo("main").folder_name())
            .join("refs")
            .join(name.revision());
        // A revision may be a commit itself.
        let commit = std::fs::read_to_string(folder).ok();
        let commit =
            commit.map_or_else(|| name.revision().to_owned(), |text| text.trim().to_owned());
        let folder = self.cache().repo(repo("main")).pointer_path(&commit);
        let present = std::fs::read_dir(&folder).ok()?;
        let names = present.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let siblings = names.map(|rfilename| Sibling {
            rfilename,
            size: None,
            lfs: None,
        });
        let listing = Listing {
            sha: commit,
            siblings: siblings.collect(),
        };
        is_plain(&listing.sha).then_some(listing)
    }

    /// A file of a data set, downloaded if it is not in the cache; `say` is told of it.
    ///
    /// # Errors
    /// A data set or a file that is not there, not open to this token, or cannot be asked about and is not in the cache.
    pub fn data_file(&self, file: &HubDataFile, say: impl Fn(&str)) -> Result<PathBuf> {
        let (name, path) = (file.name(), file.path());
        let asked = match self.offline {
            true => None,
            false => match self.ask(name) {
                Ok(listing) => Some(listing),
                Err(error) if refused(&error).is_some() => return Err(self.failed(name, &error)),
                Err(error) => {
                    tracing::debug!("{name}: {} cannot be reached ({error})", self.endpoint());
                    None
                }
            },
        };
        let Some(listing) = asked else {
            let cached = self.cached(name);
            let cached = cached.map(|listing| self.commit(name, listing.sha).folder.join(path));
            return cached.filter(|path| path.is_file()).ok_or_else(|| {
                name.error(format!(
                    "{} cannot be reached, and {path} is not in the cache {}; download the file elsewhere and give its path",
                    self.endpoint(),
                    self.cache.display()
                ))
            });
        };
        if !is_plain(&listing.sha) {
            return Err(self.no_commit(name, &listing));
        }
        let mut names = listing.siblings.iter().map(|file| file.rfilename.as_str());
        if !names.any(|name| name == path) {
            return Err(name.error(lacks_file(&listing, path)));
        }
        let mut snapshot = self.commit(name, listing.sha.clone());
        snapshot.list(&listing, path);
        snapshot.fetch(|_| true, say)?;
        Ok(snapshot.folder.join(path))
    }

    /// A commit of which no file is listed yet.
    fn commit(&self, name: &HubName, commit: String) -> Snapshot {
        let revision = name.revision().to_owned();
        let repo = Repo::with_revision(name.repo().to_owned(), name.kind(), revision);
        Snapshot {
            hub: self.clone(),
            name: name.clone(),
            folder: self.cache().repo(repo).pointer_path(&commit),
            commit,
            files: Vec::new(),
        }
    }

    fn no_commit(&self, name: &HubName, listing: &Listing) -> ModelError {
        name.error(format!(
            "{} gives {:?} for its commit, which is none",
            self.endpoint(),
            listing.sha
        ))
    }

    fn snapshot(&self, name: &HubName, listing: Listing) -> Result<Snapshot> {
        if !is_plain(&listing.sha) {
            return Err(self.no_commit(name, &listing));
        }
        let mut snapshot = self.commit(name, listing.sha.clone());
        let has = |file: &str| {
            let mut files = listing.siblings.iter();
            files.any(|sibling| sibling.rfilename == file)
        };
        for file in SETTINGS {
            if has(file) {
                snapshot.list(&listing, file);
            }
        }
        if has(WHOLE) {
            snapshot.list(&listing, WHOLE);
        } else if has(INDEX) {
            snapshot.list(&listing, INDEX);
            snapshot.fetch_file(INDEX)?;
            for shard in snapshot.shards()? {
                if !has(&shard) {
                    return Err(name.error(format!(
                        "its {INDEX} names {shard}, which the repository (or what is in the cache of it) does not hold"
                    )));
                }
                snapshot.list(&listing, &shard);
            }
        } else {
            return Err(name.error(lacks_weights(&listing)));
        }
        match has("config.json") {
            true => Ok(snapshot),
            false => Err(name.error("it holds no config.json".to_owned())),
        }
    }

    fn failed(&self, name: &HubName, error: &ApiError) -> ModelError {
        let endpoint = self.endpoint();
        name.error(match refused(error) {
            Some(401 | 403) => format!(
                "{endpoint} does not give it to {}; if it is gated, accept its terms on its page, then set HF_TOKEN to a token that may read it",
                match self.token {
                    Some(_) => "this token",
                    None => "somebody without a token",
                }
            ),
            Some(404) => format!(
                "{endpoint} has no such repository or revision; check the name, and set HF_TOKEN if it is private"
            ),
            Some(status) => format!("{endpoint} answered with the status {status}"),
            None => format!(
                "{endpoint} cannot be reached ({error}); name a mirror in HF_ENDPOINT, or download the repository elsewhere (`hf download {} --local-dir DIR`) and give the folder",
                name.repo()
            ),
        })
    }
}

/// The status of an answer that will be no other the next time.
fn refused(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status @ 400..=499) if status != 429 => Some(status),
            _ => None,
        },
        ApiError::TooManyRetries(error) => refused(error),
        _ => None,
    }
}

/// What is said of a data set without a file: the files of tables and lines that it has.
fn lacks_file(listing: &Listing, path: &str) -> String {
    const SHOWN: usize = 12;
    let endings = [".parquet", ".jsonl", ".jsonl.gz", ".json", ".txt"];
    let names = listing.siblings.iter().map(|file| file.rfilename.as_str());
    let data: Vec<&str> = names
        .filter(|name| endings.iter().any(|ending| name.ends_with(ending)))
        .collect();
    match data.len() {
        0 => format!(
            "it holds no {path}, nor any Parquet or JSON lines; download what it has and convert it"
        ),
        n => format!(
            "it holds no {path}; there {} {}{}",
            if n == 1 { "is" } else { "are" },
            data[..n.min(SHOWN)].join(", "),
            match n.saturating_sub(SHOWN) {
                0 => String::new(),
                more => format!(" and {more} more"),
            }
        ),
    }
}

fn lacks_weights(listing: &Listing) -> String {
    let names = listing.siblings.iter().map(|file| file.rfilename.as_str());
    let ggufs: Vec<&str> = names
        .clone()
        .filter(|name| name.ends_with(".gguf"))
        .collect();
    if ggufs.is_empty() {
        let bins = names.clone().any(|name| name.ends_with(".bin"));
        return match bins {
            true => "it holds its weights as pickles (.bin) only; convert them to safetensors, and give the folder".to_owned(),
            false => format!("it holds neither {WHOLE} nor {INDEX}"),
        };
    }
    format!(
        "it holds GGUF files only; download one of them ({}) and give its path",
        ggufs.join(", ")
    )
}

/// What the hub says of a repository.
#[derive(Debug, Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    sha256: Option<String>,
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubFile {
    /// Its name.
    pub name: String,
    /// Its size in bytes, where the hub says it.
    pub bytes: Option<u64>,
    /// SHA-256 of its contents, where the hub says it: of large files.
    pub sha256: Option<String>,
}

/// A commit of a repository: what is needed of it, and the folder in the cache.
#[derive(Debug, Clone)]
pub struct Snapshot {
    hub: Hub,
    name: HubName,
    commit: String,
    folder: PathBuf,
    files: Vec<HubFile>,
}

impl Snapshot {
    /// Where its files are, or will be.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The files that are not there yet.
    pub fn absent(&self) -> impl Iterator<Item = &HubFile> {
        let absent = |file: &&HubFile| !self.folder.join(&file.name).is_file();
        self.files.iter().filter(absent)
    }

    /// Whether a file holds weights: the others are small.
    pub fn is_weights(file: &HubFile) -> bool {
        file.name.ends_with(".safetensors")
    }

    fn list(&mut self, listing: &Listing, name: &str) {
        let mut files = listing.siblings.iter();
        let found = files.find(|sibling| sibling.rfilename == name);
        let lfs = found.and_then(|file| file.lfs.as_ref());
        self.files.push(HubFile {
            name: name.to_owned(),
            bytes: found.and_then(|file| file.size),
            sha256: lfs.and_then(|lfs| lfs.sha256.clone()),
        });
    }

    /// Downloads what is not there yet of the files that are `wanted`; `say` is told of each.
    ///
    /// # Errors
    /// A download that fails or ends too early. What has come stays, and the next attempt goes on from there.
    pub fn fetch(&self, wanted: impl Fn(&HubFile) -> bool, say: impl Fn(&str)) -> Result<()> {
        let absent: Vec<&HubFile> = self.absent().filter(|file| wanted(file)).collect();
        for file in absent {
            let size = file.bytes.map(|bytes| human(bytes.into()));
            say(&format!(
                "{}: downloading {}{}",
                self.name,
                file.name,
                size.map_or_else(String::new, |size| format!(", {size}"))
            ));
            self.fetch_file(&file.name)?;
        }
        Ok(())
    }

    /// The names of the shards in the index.
    fn shards(&self) -> Result<BTreeSet<String>> {
        let index = crate::config::ConfigFile::read(&self.folder.join(INDEX))?;
        let map = index.get("weight_map").and_then(|map| map.as_object());
        let map = map.ok_or_else(|| index.error("key `weight_map` is missing"))?;
        map.iter()
            .map(|(tensor, file)| {
                let name = file.as_str().filter(|name| is_plain(name));
                name.map(str::to_owned).ok_or_else(|| {
                    index.error(format!(
                        "`weight_map.{tensor}` does not name a file of this folder"
                    ))
                })
            })
            .collect()
    }

    fn fetch_file(&self, file: &str) -> Result<()> {
        if self.folder.join(file).is_file() {
            return Ok(());
        }
        let failed = |error: &ApiError| match error {
            ApiError::IoError(error) => self.name.error(format!(
                "the download of {file} broke off ({error}); the same command goes on from there"
            )),
            ApiError::LockAcquisition(path) => self.name.error(format!(
                "another process downloads {file}; wait for it, or remove {} if there is none",
                path.display()
            )),
            error => self.hub.failed(&self.name, error),
        };
        if self.hub.offline {
            return Err(self.name.error(format!(
                "{file} is not in the cache, and HF_HUB_OFFLINE is set"
            )));
        }
        let api = self.hub.api(&self.name)?;
        let repo = self.repo(&api);
        let metadata = api
            .metadata(&repo.url(file))
            .map_err(|error| failed(&error))?;
        // Both become names of files in the cache.
        if !is_plain(metadata.etag()) || metadata.commit_hash() != self.commit {
            return Err(self.name.error(format!(
                "{} answers for {file} with the tag {:?} and the commit {:?}, which cannot be; try again",
                self.hub.endpoint(),
                metadata.etag(),
                metadata.commit_hash()
            )));
        }
        let path = repo.download(file).map_err(|error| failed(&error))?;
        let found = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        if found != metadata.size() as u64 {
            // A short file must not look like a whole one the next time.
            let blob = std::fs::canonicalize(&path);
            let removed = blob.and_then(std::fs::remove_file);
            let removed = removed.and(std::fs::remove_file(&path));
            return Err(self.name.error(format!(
                "the download of {file} has {found} bytes instead of {}; {}",
                metadata.size(),
                match removed {
                    Ok(()) => "it was removed, so try again".to_owned(),
                    Err(_) => format!("remove {} and try again", path.display()),
                }
            )));
        }
        self.name_commit();
        Ok(())
    }

    fn repo(&self, api: &Api) -> ApiRepo {
        let repo = self.name.repo().to_owned();
        api.repo(Repo::with_revision(
            repo,
            self.name.kind(),
            self.commit.clone(),
        ))
    }

    /// Notes in the cache which commit the revision was; without it only the network knows.
    fn name_commit(&self) {
        let revision = self.name.revision().to_owned();
        let repo = Repo::with_revision(self.name.repo().to_owned(), self.name.kind(), revision);
        if let Err(error) = self.hub.cache().repo(repo).create_ref(&self.commit) {
            tracing::debug!("{}: the commit is not noted: {error}", self.name);
        }
    }
}
