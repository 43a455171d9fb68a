//! VARP messages.
