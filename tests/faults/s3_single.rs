//! Each fault of the store by itself.
