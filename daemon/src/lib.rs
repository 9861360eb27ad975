//! The Rota daemon: model repository, poller, control socket, command line.
#![forbid(unsafe_code)]
