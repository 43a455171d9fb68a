//! `vnet key`: files with the keys of secured vnets. Only the last step of a rotation needs varpd.

use std::io;
use std::path::Path;

use super::{OperatorError, ask};
use crate::cli::vnet::KeyAction;
use crate::secret::Secret;
use crate::security::keyfile::{self, KeyFile, Other};
use crate::security::keys::fingerprint;
use crate::show::{Rows, as_word};
use crate::sys::{process, secret_file};
use crate::wire::control::{Cell, Request, Table};

/// Carries out the command; returns the output. `varpd` is varpd's control socket.
pub(super) fn run(action: &KeyAction, varpd: &Path) -> Result<String, OperatorError> {
    match action {
        KeyAction::Generate { file, owner } => {
            let owner = owner.as_deref().map(user).transpose()?;
            let key = KeyFile::new(random(file)?);
            secret_file::create(file, key.emit().as_bytes(), owner).map_err(failed(file))?;
            Ok(fingerprints(&key))
        }
        KeyAction::ShowFingerprint { file } => Ok(fingerprints(&read(file)?)),
        KeyAction::Rotate { file, force } => {
            let key = read(file)?;
            if matches!(key.other, Some((Other::Old, _))) && !force {
                check_unused(&key, varpd)?;
            }
            let (key, step) = key.rotate(random(file)?);
            secret_file::replace(file, key.emit().as_bytes()).map_err(failed(file))?;
            let then = "copy the file to all hosts of the vnet";
            let next = match key.other {
                Some(_) => ", wait ten seconds, then rotate again",
                None => "",
            };
            Ok(format!("{}{step}: {then}{next}\n", fingerprints(&key)))
        }
    }
}

/// Checks that no host uses the old key any more, as far as this host's varpd knows.
fn check_unused(key: &KeyFile, varpd: &Path) -> Result<(), OperatorError> {
    let show = |table| ask(varpd, &Request::Show { table });
    let tables = show(Table::Vnets).and_then(|vnets| Ok((vnets, show(Table::Peers)?)));
    let why = match tables {
        Ok((vnets, peers)) => match in_the_way(&fingerprint(&key.used), &vnets, &peers) {
            None => return Ok(()),
            Some(why) => why,
        },
        Err(error) => format!("varpd can't be asked who still uses the old key: {error}"),
    };
    Err(OperatorError::Unready(format!(
        "the old key stays: {why} (--force gives it up all the same, and cuts off who uses it)"
    )))
}

/// The reason not to give up an old key, given the fingerprint of the used one, and the tables of
/// vnets and peers.
fn in_the_way(used: &str, vnets: &Rows, peers: &Rows) -> Option<String> {
    let of_key = |row: &&Vec<Cell>| as_word(vnets.cell(row, "key")) == used;
    let found: Vec<&Vec<Cell>> = vnets.rows.iter().filter(of_key).collect();
    if found.is_empty() {
        let text = "varpd on this host has no vif on a vnet that uses the new key, so it can't tell who uses the old one";
        return Some(text.to_owned());
    }
    for row in found {
        let id = vnets.cell(row, "vnet");
        let vnet = as_word(id);
        let uses_another = |row: &&Vec<Cell>| {
            peers.cell(row, "vnet") == id && *peers.cell(row, "key") == Cell::text("other")
        };
        let sessions = peers.rows.iter().filter(uses_another);
        let sessions: Vec<String> = sessions.map(|row| as_word(peers.cell(row, "peer"))).collect();
        if !sessions.is_empty() {
            let hosts = sessions.join(", ");
            return Some(format!(
                "on vnet {vnet} there are sessions with another key with {hosts}"
            ));
        }
        match vnets.cell(row, "others") {
            Cell::Number(0) => {}
            Cell::AtLeast(counted) => {
                return Some(format!(
                    "on vnet {vnet} varpd has heard more hosts than it can count, at least {counted} with another key or policy"
                ));
            }
            others => {
                let unproved = match vnets.cell(row, "untagged") {
                    Cell::Number(0) => String::new(),
                    n => {
                        let n = as_word(n);
                        format!(", {n} of them without a key, as anybody on the underlay can")
                    }
                };
                let others = as_word(others);
                let text = "hosts were last heard with another key or policy";
                return Some(format!("on vnet {vnet} {others} {text}{unproved}"));
            }
        }
    }
    None
}

fn failed(file: &Path) -> impl FnOnce(io::Error) -> OperatorError {
    move |source| OperatorError::Io { path: file.to_owned(), source }
}

fn user(name: &str) -> Result<u32, OperatorError> {
    process::user_id(name).map_err(|error| OperatorError::Usage(format!("--owner {name}: {error}")))
}

fn random(file: &Path) -> Result<Secret, OperatorError> {
    process::random().map(Secret::new).map_err(failed(file))
}

fn read(file: &Path) -> Result<KeyFile, OperatorError> {
    let (bytes, _) = secret_file::read(file, keyfile::MAX_LEN).map_err(failed(file))?;
    KeyFile::parse(&bytes).map_err(|error| failed(file)(io::Error::other(error)))
}

fn fingerprints(key: &KeyFile) -> String {
    let other = key.other.iter().map(|(other, key)| match other {
        Other::Next => format!("next {}\n", fingerprint(key)),
        Other::Old => format!("old  {}\n", fingerprint(key)),
    });
    format!("use  {}\n", fingerprint(&key.used)) + &other.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::Column;

    #[test]
    fn a_key_goes_through_its_steps_and_is_never_printed() {
        let closed = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        let dir = tempfile::Builder::new().permissions(closed).tempdir().unwrap();
        let file = dir.path().join("42.key");
        let nobody = dir.path().join("nobody");
        let run = |action: &KeyAction| run(action, &nobody);
        let rotate = |force| KeyAction::Rotate { file: file.clone(), force };
        let show = || run(&KeyAction::ShowFingerprint { file: file.clone() }).unwrap();
        let made = run(&KeyAction::Generate { file: file.clone(), owner: None }).unwrap();
        assert_eq!(made, show());
        let again = run(&KeyAction::Generate { file: file.clone(), owner: None }).unwrap_err();
        assert_eq!(again.exit_code(), 1, "{again}");
        let mut words = Vec::new();
        for (lines, force) in [(2, false), (2, false), (1, true)] {
            if force {
                let refused = run(&rotate(false)).unwrap_err();
                let text = refused.to_string();
                assert!(
                    text.contains("varpd can't be asked") && text.contains("--force"),
                    "{text}"
                );
                assert_eq!((refused.exit_code(), show().lines().count()), (1, 2));
            }
            let said = run(&rotate(force)).unwrap();
            assert!(said.starts_with(&show()), "{said}");
            assert_eq!(show().lines().count(), lines);
            let text = std::fs::read_to_string(&file).unwrap();
            words.extend(text.split_whitespace().filter(|w| w.len() == 64).map(str::to_owned));
            assert!(words.iter().all(|word| !said.contains(word.as_str())));
        }
        assert_ne!(made, show(), "another key");
        std::fs::write(&file, "use 12").unwrap();
        let broken = run(&KeyAction::ShowFingerprint { file: file.clone() });
        let broken = broken.unwrap_err().to_string();
        assert!(broken.contains("line 1"), "{broken}");
    }

    #[test]
    fn an_old_key_is_given_up_when_no_host_is_known_to_use_it() {
        let vnets = |rows: &[(u64, &'static str, Cell, u64)]| Rows {
            columns: ["vnet", "key", "others", "untagged"].map(Column::text).into(),
            rows: rows
                .iter()
                .map(|(vnet, key, others, untagged)| {
                    let (vnet, untagged) = (Cell::Number(*vnet), Cell::Number(*untagged));
                    vec![vnet, Cell::text(*key), others.clone(), untagged]
                })
                .collect(),
        };
        let peers = |rows: &[(u64, &'static str, &'static str)]| Rows {
            columns: ["vnet", "peer", "key"].map(Column::text).into(),
            rows: rows
                .iter()
                .map(|&(vnet, peer, key)| {
                    vec![Cell::Number(vnet), Cell::text(peer), Cell::text(key)]
                })
                .collect(),
        };
        let why = |vnets: &Rows, peers: &Rows| in_the_way("new", vnets, peers);
        let none = || Cell::Number(0);
        let new = vnets(&[(42, "new", none(), 0)]);
        assert_eq!(why(&new, &peers(&[(42, "192.0.2.2", "use")])), None);
        let old_43 = vnets(&[(42, "new", none(), 0), (43, "old", Cell::Number(3), 0)]);
        assert_eq!(why(&old_43, &peers(&[(43, "192.0.2.9", "other")])), None);
        let said = why(&vnets(&[(42, "old", none(), 0)]), &peers(&[])).unwrap();
        assert!(said.contains("can't tell"), "{said}");
        let said = why(&new, &peers(&[(42, "192.0.2.2", "other")])).unwrap();
        assert!(said.contains("vnet 42") && said.contains("192.0.2.2"), "{said}");
        let said = why(&vnets(&[(42, "new", Cell::Number(1), 0)]), &peers(&[])).unwrap();
        assert!(said.contains("vnet 42 1 host") && !said.contains("without a key"), "{said}");
        let said = why(&vnets(&[(42, "new", Cell::Number(3), 2)]), &peers(&[])).unwrap();
        assert!(
            said.contains("vnet 42 3 host") && said.contains("2 of them without a key"),
            "{said}"
        );
        let said = why(&vnets(&[(42, "new", Cell::AtLeast(0), 0)]), &peers(&[])).unwrap();
        assert!(said.contains("vnet 42") && said.contains("can count"), "a full table: {said}");
    }
}
