//! Faults of the server, as the client meets them.
