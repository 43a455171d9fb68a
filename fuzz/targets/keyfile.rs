//! Key files: an error tells nothing of what is in them; what parses says the same when it is written
//! and read again, and stays so through a rotation.

use vnet::secret::Secret;
use vnet::security::keyfile::KeyFile;

/// Longest word of a file that an error may repeat.
const WORD: usize = 16;

pub(crate) fn run(data: &[u8]) {
    let mut file = match KeyFile::parse(data) {
        Ok(file) => file,
        Err(error) => {
            let error = error.to_string();
            let text = String::from_utf8_lossy(data);
            let told = text.split_whitespace().find(|w| w.len() > WORD && error.contains(w));
            assert_eq!(told, None, "{error}");
            return;
        }
    };
    let drawn = |n: u8| std::array::from_fn(|at| n.wrapping_add((at * at % 256) as u8));
    let new = (1..=3).map(|n| Secret::new(drawn(n)));
    let new = new.into_iter().find(|new| file.accepted().all(|key| key != new));
    let new = new.expect("two are accepted at most");
    for _ in 0..4 {
        assert_eq!(KeyFile::parse(file.emit().as_bytes()).as_ref(), Ok(&file));
        let before = file.clone();
        file = file.rotate(new.clone()).0;
        assert!(file.accepted().any(|key| *key == before.used), "nobody is shut out in a step");
    }
}
