//! The status of the process for the service manager, in one line.

use crate::sys::notify::ServiceManager;
use crate::wire::VifKey;

/// What the line is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// The guest's rings run.
    pub(super) active: bool,
    /// varpd is connected.
    pub(super) varpd: bool,
}

/// Tells the service manager, when there is something new.
pub(super) struct Status {
    manager: ServiceManager,
    key: VifKey,
    shown: Option<State>,
}

impl Status {
    pub(super) const fn new(manager: ServiceManager, key: VifKey) -> Self {
        Self { manager, key, shown: None }
    }

    /// The first time says that the process is ready.
    pub(super) fn show(&mut self, state: State) {
        let line = line(self.key, state);
        match self.shown.replace(state) {
            None => self.manager.ready(&line),
            Some(shown) if shown != state => self.manager.status(&line),
            Some(_) => {}
        }
    }
}

fn line(key: VifKey, state: State) -> String {
    let guest = if state.active { "the guest's NIC runs" } else { "no guest" };
    let varpd = if state.varpd { "" } else { "; varpd is away" };
    format!("vif {key}: {guest}{varpd}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Mac, VnetId};

    #[test]
    fn the_line_names_the_vif_and_what_is_missing() {
        let key = VifKey { vnet: VnetId::new(42).unwrap(), mac: Mac([0x52, 0x54, 0, 0, 0, 1]) };
        let line = |active, varpd| line(key, State { active, varpd });
        assert_eq!(line(true, true), format!("vif {key}: the guest's NIC runs"));
        assert_eq!(line(false, false), format!("vif {key}: no guest; varpd is away"));
    }
}
