//! Values of options that are one of a few words, with their help. The data path has types of its own, which
//! know nothing of command lines.

use clap::ValueEnum;

use crate::port::tx::SourceMac;
use crate::vif::serve::View;

/// `--source-mac`: how to treat a frame whose source MAC is neither the vif's nor one learned behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SourceMacValue {
    /// Replace the source with the NIC's address (counter tx_stamped).
    #[default]
    Stamp,
    /// Drop the frame (counter tx_drop_source).
    Drop,
}

impl From<SourceMacValue> for SourceMac {
    fn from(value: SourceMacValue) -> Self {
        match value {
            SourceMacValue::Stamp => Self::Stamp,
            SourceMacValue::Drop => Self::Drop,
        }
    }
}

/// `--view`: which directories the process can see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ViewValue {
    /// Those of its own socket and of varpd's. If the system does not permit hiding the others, log a warning and continue.
    #[default]
    Own,
    /// The same, but exit if the system does not permit hiding the others.
    Required,
    /// All that it was started with: the service manager has hidden the others.
    Given,
}

impl From<ViewValue> for View {
    fn from(value: ViewValue) -> Self {
        match value {
            ViewValue::Own => Self::Own,
            ViewValue::Required => Self::Required,
            ViewValue::Given => Self::Given,
        }
    }
}
