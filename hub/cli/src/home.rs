//! Where things are on this machine: members' folders, the `payhub dev` that runs, sockets of running wallets.
//!
//! ```text
//! ~/.payhub/                 or $PAYHUB_HOME
//!   run/current.json         the data folder of the `payhub dev` that was started last
//!   run/<16 digits>.sock     one socket per running wallet, named by its member's folder
//!   members/NAME/            members made by `payhub keys new`
//! <data dir of dev>/
//!   ledger/ hub/             the stores of the two
//!   members/NAME/            secret (mode 0600), config.json, store/
//! ```

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// The user's folder for everything that is not somebody else's data.
pub fn root() -> Result<PathBuf, Failure> {
    if let Some(home) = std::env::var_os("PAYHUB_HOME") {
        return Ok(home.into());
    }
    match std::env::var_os("HOME") {
        Some(home) => Ok(Path::new(&home).join(".payhub")),
        None => Err(Failure::usage("neither PAYHUB_HOME nor HOME is set", "set PAYHUB_HOME to a folder of your own")),
    }
}

/// What is remembered of a member beside his secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The hub's address, as in http://127.0.0.1:7440.
    pub hub: Option<String>,
    /// The ledger's JSON-RPC.
    pub rpc: Option<String>,
    /// The adjudicator, pinned when the hub was first used.
    pub adjudicator: Option<alloy_primitives::Address>,
    /// Signature scheme: 1 or 2.
    pub scheme: Option<u8>,
    /// The remote watchtower that gets the evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tower: Option<String>,
}

/// A member's folder.
#[derive(Clone, Debug)]
pub struct MemberHome {
    /// The member's name.
    pub name: String,
    /// The folder.
    pub dir: PathBuf,
}

/// The `payhub dev` that was started last.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Current {
    /// Its data folder.
    pub data_dir: PathBuf,
    /// Its process.
    pub pid: u32,
}

/// The data folder that a member's command means.
pub fn data_dir(given: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(dir) = given {
        return Ok(dir.to_owned());
    }
    let current = fs::read(root()?.join("run/current.json")).ok();
    let current: Option<Current> = current.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    match current.filter(|c| c.data_dir.is_dir()) {
        Some(current) => Ok(current.data_dir),
        None => root(),
    }
}

/// Says that a `payhub dev` with this data folder now runs.
pub fn set_current(data_dir: &Path) -> Result<(), Failure> {
    let run = run_dir()?;
    let current = Current { data_dir: data_dir.to_owned(), pid: std::process::id() };
    let bytes = serde_json::to_vec(&current).map_err(Failure::other)?;
    Ok(fs::write(run.join("current.json"), bytes)?)
}

/// Forgets it again, if it is still this process.
pub fn clear_current() {
    let Ok(path) = root().map(|r| r.join("run/current.json")) else { return };
    let current: Option<Current> = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    if current.is_some_and(|c| c.pid == std::process::id()) {
        let _ = fs::remove_file(path);
    }
}

fn run_dir() -> Result<PathBuf, Failure> {
    let run = root()?.join("run");
    fs::create_dir_all(&run)?;
    fs::set_permissions(&run, fs::Permissions::from_mode(0o700))?;
    Ok(run)
}

impl MemberHome {
    /// The folder of a member, whether it exists or not.
    pub fn at(data_dir: &Path, name: &str) -> Result<Self, Failure> {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > 32 || name.starts_with('.') || !name.chars().all(good) {
            let fix = "use 1 to 32 of a-z, 0-9, '-', '_' and '.'";
            return Err(Failure::usage(format!("{name:?} cannot be a member's name"), fix));
        }
        Ok(MemberHome { name: name.to_owned(), dir: data_dir.join("members").join(name) })
    }

    /// The folder of a member who must exist.
    pub fn existing(data_dir: &Path, name: &str) -> Result<Self, Failure> {
        let home = MemberHome::at(data_dir, name)?;
        if home.dir.join("secret").is_file() {
            return Ok(home);
        }
        let known = members(data_dir);
        let what = format!("there is no member {name:?} in {}", data_dir.display());
        let fix = if known.is_empty() {
            format!("start `payhub dev`, or make one: payhub keys new {name}")
        } else {
            format!("known here: {}; or make one: payhub keys new {name}", known.join(", "))
        };
        Err(Failure::not_found(what, fix))
    }

    /// Makes the folder with a secret; refuses to replace one.
    pub fn create(&self, secret: &[u8; 32]) -> Result<(), Failure> {
        fs::create_dir_all(&self.dir)?;
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o700))?;
        let path = self.dir.join("secret");
        let opened = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let mut file = match opened {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                let what = format!("{} exists; a secret is never replaced", path.display());
                return Err(Failure::usage(what, "choose another name, or move that folder away"));
            }
            Err(e) => return Err(e.into()),
        };
        writeln!(file, "{}", hex::encode(secret))?;
        file.sync_all()?;
        Ok(())
    }

    /// The member's secret; refuses a file that others can read.
    pub fn secret(&self) -> Result<[u8; 32], Failure> {
        let path = self.dir.join("secret");
        let mode = fs::metadata(&path)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let what = format!("{} can be read by others (mode {mode:o})", path.display());
            return Err(Failure::usage(what, format!("chmod 600 {}", path.display())));
        }
        parse_secret(&fs::read_to_string(&path)?)
    }

    /// What is remembered.
    pub fn config(&self) -> Config {
        fs::read(self.dir.join("config.json")).ok().and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default()
    }

    /// Remembers.
    pub fn set_config(&self, config: &Config) -> Result<(), Failure> {
        let bytes = serde_json::to_vec_pretty(config).map_err(Failure::other)?;
        // In one step, so that a kill in the middle does not forget the pinned contract.
        let new = self.dir.join("config.json.new");
        fs::write(&new, bytes)?;
        Ok(fs::rename(new, self.dir.join("config.json"))?)
    }

    /// The folder of the member's store.
    pub fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// The socket of this member's running wallet. It lies in the run folder, because a socket's path may only have
    /// some hundred bytes.
    pub fn socket(&self) -> Result<PathBuf, Failure> {
        let dir = fs::canonicalize(&self.dir)?;
        let digest = alloy_primitives::keccak256(dir.as_os_str().as_encoded_bytes());
        Ok(run_dir()?.join(format!("{}.sock", hex::encode(&digest[..8]))))
    }
}

/// Reads 64 hexadecimal digits.
pub fn parse_secret(text: &str) -> Result<[u8; 32], Failure> {
    let digits = text.trim().strip_prefix("0x").unwrap_or(text.trim());
    let bytes = hex::decode(digits).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    bytes.ok_or_else(|| Failure::usage("that is not a secret", "a secret is 64 hexadecimal digits"))
}

/// The members with a secret in a data folder.
pub fn members(data_dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(data_dir.join("members")).into_iter().flatten().flatten();
    let with_secret = entries.filter(|e| e.path().join("secret").is_file());
    let mut names: Vec<String> = with_secret.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}
