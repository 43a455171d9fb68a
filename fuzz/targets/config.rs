//! Configuration files: an error names the file and a line, or the configuration works.

use std::path::Path;

use vnet::config::Config;

pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text, Path::new("varpd.toml")) {
        Ok(config) => {
            for (_, group) in config.vnet_groups() {
                assert!(group.is_multicast());
            }
        }
        Err(error) => assert!(error.to_string().starts_with("varpd.toml"), "{error}"),
    }
}
