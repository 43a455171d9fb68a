//! `vnet key`: files with the keys of secured vnets. Needs no varpd.

use std::io;
use std::path::Path;

use super::OperatorError;
use crate::cli::vnet::KeyAction;
use crate::security::keyfile::{self, KeyFile, Other};
use crate::security::keys::{Secret, fingerprint};
use crate::sys::{process, secret_file};

/// Does what the command line says; returns what is to be printed.
pub(super) fn run(action: &KeyAction) -> Result<String, OperatorError> {
    match action {
        KeyAction::Generate { file, owner } => {
            let owner = owner.as_deref().map(user).transpose()?;
            let key = KeyFile::new(random(file)?);
            secret_file::create(file, key.emit().as_bytes(), owner).map_err(failed(file))?;
            Ok(fingerprints(&key))
        }
        KeyAction::ShowFingerprint { file } => Ok(fingerprints(&read(file)?)),
        KeyAction::Rotate { file } => {
            let (key, step) = read(file)?.rotate(random(file)?);
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

    #[test]
    fn a_key_goes_through_its_steps_and_is_never_printed() {
        let closed = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        let dir = tempfile::Builder::new().permissions(closed).tempdir().unwrap();
        let file = dir.path().join("42.key");
        let show = || run(&KeyAction::ShowFingerprint { file: file.clone() }).unwrap();
        let made = run(&KeyAction::Generate { file: file.clone(), owner: None }).unwrap();
        assert_eq!(made, show());
        let again = run(&KeyAction::Generate { file: file.clone(), owner: None }).unwrap_err();
        assert_eq!(again.exit_code(), 1, "{again}");
        let mut words = Vec::new();
        for lines in [2, 2, 1] {
            let said = run(&KeyAction::Rotate { file: file.clone() }).unwrap();
            assert!(said.starts_with(&show()), "{said}");
            assert_eq!(show().lines().count(), lines);
            let text = std::fs::read_to_string(&file).unwrap();
            words.extend(text.split_whitespace().filter(|w| w.len() == 64).map(str::to_owned));
            assert!(words.iter().all(|word| !said.contains(word.as_str())));
        }
        assert_ne!(made, show(), "another key");
        std::fs::write(&file, "use 12").unwrap();
        let broken = run(&KeyAction::ShowFingerprint { file }).unwrap_err().to_string();
        assert!(broken.contains("line 1"), "{broken}");
    }
}
