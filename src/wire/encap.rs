//! The encapsulation header.
